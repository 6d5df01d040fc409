"""Networks of the authors' public code as `Segmenter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from emalab.convert.translation import Translation, count_blocks, read_state_dict, recipe_for
from emalab.recipes import Recipe, get_recipe
from emalab.segmenter import EMAConfig, Segmenter, SegmenterConfig, build_segmenter

__all__ = ["load_official", "official_recipe", "read_official"]

OFFICIAL = Translation(
    "the authors' code",
    {
        "extractor.0.": "backbone.network.conv1.",
        "extractor.1.": "backbone.network.bn1.",
        "extractor.4.": "backbone.network.layer1.",
        "extractor.5.": "backbone.network.layer2.",
        "extractor.6.": "backbone.network.layer3.",
        "extractor.7.": "backbone.network.layer4.",
        "fc0.conv.": "reduction.0.",
        "fc0.bn.": "reduction.1.",
        "emau.mu": "context.bases",
        "emau.conv1.": "context.conv_in.",
        "emau.conv2.": "context.conv_out.",
        "fc1.0.conv.": "classifier.0.0.",
        "fc1.0.bn.": "classifier.0.1.",
        "fc2.": "classifier.2.",
    },
)
_BLOCKS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50s",
    (3, 4, 23, 3): "resnet101s",
    (3, 8, 36, 3): "resnet152s",
}


def load_official(
    state: Mapping[str, Tensor], output_stride: int = 8, multi_grid: Sequence[int] = (1, 2, 4)
) -> Segmenter:
    """The network of a state dict of the authors' code, in evaluation mode and in the precision of its tensors.

    Depth, classes, channels and bases are read off the tensors. Stride and multi-grid leave no trace there; the
    defaults are those of the published networks.

    Args:
        state: the authors' keys, with or without the ``module.`` of `torch.nn.DataParallel`.
        output_stride: 8, 16 or 32.
        multi_grid: dilation factors of the last stage's blocks.

    Raises:
        CheckpointError: a tensor that is missing, left over, there twice, of another shape, or with NaN or infinite
            values; the message names it.
        ValueError: a stride or a multi-grid that this network cannot have.
    """
    state = OFFICIAL.unwrap(state)
    model = build_segmenter(_config(state, output_stride, multi_grid)).to(state["fc2.weight"].dtype)
    return OFFICIAL.fill(model, state)


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` file of the authors' code: bare, or beside an optimizer's state and counters.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, one with code in it, or none with a single state dict.
    """
    return read_state_dict(path, "the authors'", "net")


def official_recipe(model: Segmenter, data: str = "voc") -> Recipe:
    """The authors' training of ``model`` (which `load_official` made) on the data set ``data``.

    Raises:
        ValueError: no such data set, or one with another number of classes.
    """
    return recipe_for(
        model, data, get_recipe("voc-r101"), f"official-{data}", "a network trained with the authors' code"
    )


def _config(state: Mapping[str, Tensor], output_stride: int, multi_grid: Sequence[int]) -> SegmenterConfig:
    OFFICIAL.require(
        state, ("extractor.4.0.conv1.weight", "fc0.conv.weight", "emau.mu", "fc1.0.conv.weight", "fc2.weight")
    )
    blocks = tuple(count_blocks(state, f"extractor.{index}.") for index in range(4, 8))
    return SegmenterConfig(
        num_classes=OFFICIAL.rows(state, "fc2.weight"),
        backbone=_BLOCKS.get(blocks, "resnet50s"),
        backbone_blocks=() if blocks in _BLOCKS else blocks,
        output_stride=output_stride,
        multi_grid=tuple(multi_grid),
        batch_norm_momentum=3e-4,
        channels=OFFICIAL.rows(state, "fc0.conv.weight"),
        head_channels=OFFICIAL.rows(state, "fc1.0.conv.weight"),
        align_corners=True,
        ema=EMAConfig(num_bases=OFFICIAL.check_bases(state, "emau.mu")),
    )
