"""Networks of the authors' public code as `Segmenter`: every tensor accounted for, the same logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from emalab.checkpoints import CheckpointError, read_tensors
from emalab.data import get_spec
from emalab.recipes import Recipe, get_recipe
from emalab.segmenter import EMAConfig, Segmenter, SegmenterConfig, build_segmenter

__all__ = ["load_official", "official_recipe", "read_official"]

# Beginnings of the authors' keys, and of ours.
_NAMES = {
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
}
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
        CheckpointError: a tensor that is missing, left over or of another shape; the message names it.
        ValueError: a stride or a multi-grid that this network cannot have.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    model = build_segmenter(_config(state, output_stride, multi_grid)).to(state["fc2.weight"].dtype)
    wanted = {_theirs(key): value for key, value in model.state_dict().items()}
    # Batch counters decide nothing, and some versions of synchronized batch norm keep none.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    _refuse("without", missing)
    _refuse("with unknown", [key for key in state if key not in wanted])
    ours = {_ours(key): rearrange(value, "1 c k -> k c") if key == "emau.mu" else value for key, value in state.items()}
    for key, value in model.state_dict().items():
        if key in ours and ours[key].shape != value.shape:
            raise CheckpointError(
                f"not a network of the authors' code: {_theirs(key)} is {tuple(ours[key].shape)} where the other "
                f"tensors ask for {tuple(value.shape)}"
            )
    model.load_state_dict(ours, strict=False)
    return model.eval()


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.pth`` file of the authors' code: bare, or beside an optimizer's state and counters.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, one with code in it, or none with a single state dict.
    """
    content = read_tensors(path)
    candidates = [content, *content.values()] if isinstance(content, dict) else []
    states = [candidate for candidate in candidates if _is_state_dict(candidate)]
    if len(states) != 1:
        raise CheckpointError(f"{path} holds {len(states) or 'no'} state dicts; a checkpoint of the authors' holds one")
    return states[0]


def official_recipe(model: Segmenter, data: str = "voc") -> Recipe:
    """The authors' training of ``model`` (which `load_official` made) on the data set ``data``.

    Raises:
        ValueError: no such data set, or one with another number of classes.
    """
    spec, base = get_spec(data), get_recipe("voc-r101")
    if model.config.num_classes != spec.num_classes:
        raise ValueError(
            f"the network tells {model.config.num_classes} classes apart, {data} has {spec.num_classes}; "
            "name the data set that it was trained on"
        )
    return replace(
        base,
        name=f"official-{data}",
        summary="a network trained with the authors' code",
        data=replace(base.data, name=data),
        model=model.config,
    )


def _config(state: Mapping[str, Tensor], output_stride: int, multi_grid: Sequence[int]) -> SegmenterConfig:
    telling = ("extractor.4.0.conv1.weight", "fc0.conv.weight", "emau.mu", "fc1.0.conv.weight", "fc2.weight")
    _refuse("without", [key for key in telling if key not in state])
    if (bases := state["emau.mu"]).ndim != 3 or len(bases) != 1:
        raise CheckpointError(f"not a network of the authors' code: emau.mu is {tuple(bases.shape)} and not (1, c, k)")
    blocks = tuple(_count(state, f"extractor.{index}.") for index in range(4, 8))
    return SegmenterConfig(
        num_classes=len(state["fc2.weight"]),
        backbone=_BLOCKS.get(blocks, "resnet50s"),
        backbone_blocks=() if blocks in _BLOCKS else blocks,
        output_stride=output_stride,
        multi_grid=tuple(multi_grid),
        batch_norm_momentum=3e-4,
        channels=len(state["fc0.conv.weight"]),
        head_channels=len(state["fc1.0.conv.weight"]),
        align_corners=True,
        ema=EMAConfig(num_bases=bases.shape[2]),
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks of the stage whose keys begin with ``prefix``; at least one, to be reported as missing."""
    return max(len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}), 1)


def _ours(key: str) -> str:
    return next(ours + key.removeprefix(theirs) for theirs, ours in _NAMES.items() if key.startswith(theirs))


def _theirs(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for theirs, ours in _NAMES.items() if key.startswith(ours))


def _refuse(how: str, keys: Sequence[str]) -> None:
    if keys:
        raise CheckpointError(
            f"not a network of the authors' code: {how} {', '.join(keys[:3])}"
            + (f" and {len(keys) - 3} more tensors" if len(keys) > 3 else "")
        )


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
