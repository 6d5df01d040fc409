"""EMANets of mmsegmentation as `Segmenter`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from emalab.convert.translation import Translation, count_blocks, read_state_dict, recipe_for
from emalab.recipes import DataConfig, EvalConfig, OptimConfig, Recipe
from emalab.segmenter import EMAConfig, Segmenter, SegmenterConfig, build_segmenter

__all__ = ["load_mmseg", "mmseg_recipe", "read_mmseg"]

_NAMES = {
    "backbone.stem.7.": "backbone.network.bn1.",
    "backbone.stem.": "backbone.network.conv1.",
    "backbone.layer": "backbone.network.layer",
    "decode_head.ema_in_conv.conv.": "reduction.0.",
    "decode_head.ema_in_conv.bn.": "reduction.1.",
    "decode_head.ema_module.bases": "context.bases",
    "decode_head.ema_mid_conv.conv.": "context.conv_in.",
    "decode_head.ema_out_conv.conv.": "context.conv_out.0.",
    "decode_head.ema_out_conv.bn.": "context.conv_out.1.",
    "decode_head.conv_seg.": "classifier.2.",
    "auxiliary_head.convs.0.conv.": "auxiliary.0.0.",
    "auxiliary_head.convs.0.bn.": "auxiliary.0.1.",
    "auxiliary_head.conv_seg.": "auxiliary.2.",
}
# Behind a concatenation begins the classifier; then the bottleneck is a part of its own.
MMSEG = Translation(
    "mmsegmentation",
    _NAMES
    | {
        "decode_head.bottleneck.conv.": "bottleneck.0.",
        "decode_head.bottleneck.bn.": "bottleneck.1.",
        "decode_head.conv_cat.conv.": "classifier.0.0.",
        "decode_head.conv_cat.bn.": "classifier.0.1.",
    },
)
MMSEG_WITHOUT_CONCAT = Translation(
    "mmsegmentation",
    _NAMES | {"decode_head.bottleneck.conv.": "classifier.0.0.", "decode_head.bottleneck.bn.": "classifier.0.1."},
)
_BLOCKS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50c",
    (3, 4, 23, 3): "resnet101c",
    (3, 8, 36, 3): "resnet152c",
}


def load_mmseg(state: Mapping[str, Tensor], output_stride: int = 8, align_corners: bool = False) -> Segmenter:
    """The network of a state dict of mmsegmentation's EMANet, in evaluation mode and in the precision of its tensors.

    Depth, classes, channels, bases, and whether there are a concatenation (``concat_input``) and an auxiliary head are
    read off the tensors. Where mmsegmentation differs from the authors' code, the network does as mmsegmentation: it
    clamps divisors at 1e-12, and normalizes the mean of a batch before it mixes it into the bases.

    Args:
        state: the keys of mmsegmentation 1.x or 0.x, with or without ``module.`` in front.
        output_stride: 8, 16 or 32; the released networks have 8.
        align_corners: how logits are enlarged; True for the networks released for crops of 769×769.

    Raises:
        CheckpointError: a tensor that is missing, left over, there twice, of another shape, or with NaN or infinite
            values; the message names it.
        ValueError: a stride that this network cannot have.
    """
    state = MMSEG.unwrap(state)
    concat = any(key.startswith("decode_head.conv_cat.") for key in state)
    translation = MMSEG if concat else MMSEG_WITHOUT_CONCAT
    config = _config(translation, state, concat, output_stride, align_corners)
    return translation.fill(build_segmenter(config).to(state["decode_head.conv_seg.weight"].dtype), state)


def read_mmseg(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` file of mmsegmentation: bare, or beside its meta data and an optimizer's state.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, one with code in it, or none with a single state dict.
    """
    return read_state_dict(path, "mmsegmentation", "state_dict")


def mmseg_recipe(model: Segmenter, data: str = "cityscapes") -> Recipe:
    """mmsegmentation's training of ``model`` (which `load_mmseg` made) on ``data``, as far as our recipes can say it.

    The figures are those of its EMANet on Cityscapes. There, weight decay acts on every parameter, and the learning
    rate ends at 1e-4 rather than 0.

    Raises:
        ValueError: no such data set, or one with another number of classes.
    """
    base = Recipe(
        data=DataConfig(train_split="train", crop_size=(512, 1024), photometric=0.5),
        optim=OptimConfig(lr=1e-2, weight_decay=5e-4, iterations=80_000, batch_size=8, loss_average="all"),
        evaluation=EvalConfig(batch_size=1),
        precision="32-true",
    )
    return recipe_for(model, data, base, f"mmseg-{data}", "a network trained with mmsegmentation")


def _config(
    translation: Translation, state: Mapping[str, Tensor], concat: bool, output_stride: int, align_corners: bool
) -> SegmenterConfig:
    reduction, bases, auxiliary = (
        "decode_head.ema_in_conv.conv.weight",
        "decode_head.ema_module.bases",
        "auxiliary_head.convs.0.conv.weight",
    )
    bottleneck, classifier = "decode_head.bottleneck.conv.weight", "decode_head.conv_seg.weight"
    translation.require(state, ("backbone.stem.0.weight", reduction, bases, bottleneck, classifier))
    if any(key.startswith("auxiliary_head.") for key in state):
        translation.require(state, [auxiliary])
    blocks = tuple(count_blocks(state, f"backbone.layer{index}.") for index in range(1, 5))
    return SegmenterConfig(
        num_classes=translation.rows(state, classifier),
        backbone=_BLOCKS.get(blocks, "resnet50c"),
        backbone_blocks=() if blocks in _BLOCKS else blocks,
        output_stride=output_stride,
        channels=translation.rows(state, reduction),
        head_channels=translation.rows(state, bottleneck),
        concat_input=concat,
        auxiliary_channels=translation.rows(state, auxiliary) if auxiliary in state else 0,
        align_corners=align_corners,
        ema=EMAConfig(num_bases=translation.check_bases(state, bases), renormalize="batch_mean", eps=1e-12, clamp=True),
    )
