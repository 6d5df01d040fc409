"""Networks that somebody saved by themselves, as a state dict of `Segmenter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from emalab.checkpoints import CheckpointError, read_tensors, require_finite
from emalab.segmenter import Segmenter, build_segmenter
from emalab.segmenter_config import SegmenterConfig
from emalab.state_dicts import find_state_dict, without_prefix

__all__ = ["load_state_dict", "read_own"]


def read_own(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors; or of `torch.save`, bare, inside ``{"state_dict": …}``, or Lightning's.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, one with code in it, or one without a state dict.
    """
    if path.suffix == ".safetensors" and path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error
    try:
        return find_state_dict(read_tensors(path, "state_dict"))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} has no weights that can be found: {error}") from error


def load_state_dict(state: Mapping[str, Tensor], config: SegmenterConfig) -> Segmenter:
    """The network of ``config`` with the tensors of ``state``, in evaluation mode.

    Names that wrappers put in front of all tensors are taken off: ``module.``, ``_orig_mod.``, Lightning's ``model.``.

    Raises:
        CheckpointError: a tensor that is missing, left over, of another shape, or with NaN or infinite values; the
            message names it.
    """
    model = build_segmenter(replace(config, backbone_weights=None))
    wanted = model.state_dict()
    try:
        ours, _ = without_prefix(state, wanted)
    except ValueError as error:
        raise CheckpointError(f"not a single network: {error}") from error
    for problem, keys in (
        ("lack", [key for key in wanted if key not in ours and not key.endswith("num_batches_tracked")]),
        ("have, and the network has not,", [key for key in ours if key not in wanted]),
    ):
        if keys:
            raise CheckpointError(
                f"the weights are not those of the recipe's network: they {problem} {keys[0]!r}"
                + (f" and {len(keys) - 1} more of {len(wanted)} tensors" if len(keys) > 1 else "")
            )
    for key, value in ours.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(
                f"the weights are not those of the recipe's network: {key!r} is {tuple(value.shape)} and should be "
                f"{tuple(wanted[key].shape)}"
            )
    require_finite(ours, "the network is of no use")
    model.load_state_dict(ours, strict=False)
    return model.eval()
