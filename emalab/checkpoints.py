"""Checkpoints: written whole or not at all, read without running code.

Two formats. Training writes ``.pt`` files with everything needed to resume. Released networks are ``.safetensors``
files whose metadata says how the network is built, trained and scored.
"""

from __future__ import annotations

import json
import math
import pickle
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emalab.files import write_atomically
from emalab.recipes import Recipe, recipe_from_dict, recipe_to_dict
from emalab.segmenter import Segmenter, build_segmenter
from emalab.shipped import find_checkpoint, shipped_weights

__all__ = [
    "CheckpointError",
    "all_finite",
    "export_segmenter",
    "load_initial_weights",
    "load_segmenter",
    "load_training_state",
    "named_tensors",
    "read_metadata",
    "read_recipe",
    "read_tensors",
    "require_finite",
    "save_training_state",
    "shipped_weights",
]

FORMAT = "emalab-1"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message names it and says what to do."""


def save_training_state(path: Path, recipe: Recipe, state: Mapping[str, Any]) -> None:
    """Write a ``.pt`` checkpoint: the recipe and ``state`` (model, optimizer, iteration, …), atomically.

    Raises:
        CheckpointError: a tensor with NaN or infinite values; the file stays what it was.
        OSError: the file cannot be written; it stays what it was.
    """
    tensors = dict(named_tensors(state))
    if not all_finite(tensors.values()):
        require_finite(tensors, f"{path} was not written")
    content = {"format": FORMAT, "recipe": json.dumps(recipe_to_dict(recipe)), **state}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_training_state(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """Read what `save_training_state` wrote, tensors on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: as in `read_tensors`, and for a file that another library wrote.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by emalab; is it a network of yours? "
            f"emalab convert state-dict {path} OUT.safetensors --recipe NAME"
        )
    return _read_recipe(path, content.pop("recipe", "")), content


def read_tensors(path: Path, entry: str = "") -> Any:
    """Whatever `torch.save` wrote to ``path``, tensors on the CPU, without running code from the file.

    Args:
        path: the file.
        entry: the weights' name in files of the library that wrote it; then the message about a pickle with code in it
            gives the command that saves them alone.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, or a pickle with code in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    with path.open("rb") as file:
        bare_pickle = file.read(1) == b"\x80"
    if not (bare_pickle or zipfile.is_zipfile(path)):  # torch writes zip archives
        raise CheckpointError(f"{path} is damaged or no checkpoint; copy or train it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and loading it could run code, so it was refused; "
            f"ask its author for a state dict or a safetensors file{_way_out(path, entry) if entry else ''}"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); copy or train it again") from error


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings and sequences, by its keys joined with dots."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping | list | tuple):
        for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite: the largest magnitude of all, in one fused reduction for each device."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return not floating or bool(torch.nn.utils.get_total_norm(floating, math.inf).isfinite())


def require_finite(tensors: Mapping[str, Tensor], problem: str) -> None:
    """Raise `CheckpointError` "PROBLEM: …" naming the first tensor with NaN or infinite values, and how many it has."""
    for key, value in tensors.items():
        count = int((~value.isfinite()).sum())
        if count:
            raise CheckpointError(f"{problem}: {count} of the {value.numel()} values of {key} are NaN or infinite")


def export_segmenter(
    model: Segmenter, path: Path, recipe: Recipe, metadata: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write a released network as ``.safetensors``: weights as ``dtype``, and how it came to be.

    Args:
        model: what to release.
        path: ends in ``.safetensors``.
        recipe: how it was trained; it says how to build the network again.
        metadata: anything else that JSON can hold: scores, data statement, license, commit.
        dtype: of the weights and bases; batch norm's statistics, which can be tiny or huge, and counters stay as
            they are.

    Raises:
        ValueError: a path with another ending.
        CheckpointError: values that are NaN or infinite, or too large for ``dtype``; nothing is written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"a released network is a .safetensors file; got {path}")
    tensors = {
        key: (value if key.endswith(_STATISTICS) else value.to(dtype)).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    require_finite(model.state_dict(), f"{path} was not written, as the network is of no use")
    require_finite(tensors, f"{path} was not written, as {dtype} is too narrow for the network")
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "recipe": json.dumps(recipe_to_dict(recipe))}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, texts))


def read_metadata(path_or_name: str | Path) -> dict[str, Any]:
    """What `export_segmenter` recorded beside the weights: ``recipe`` as a `Recipe`, and the given metadata.

    Raises:
        FileNotFoundError, CheckpointError: as in `load_segmenter`.
    """
    return _read_release(find_checkpoint(path_or_name), tensors=False)[0]


def read_recipe(path_or_name: str | Path) -> Recipe:
    """The recipe of a release or of a training checkpoint; errors as in `load_segmenter`."""
    path = find_checkpoint(path_or_name)
    return read_metadata(path)["recipe"] if path.suffix == ".safetensors" else load_training_state(path)[0]


def load_segmenter(path_or_name: str | Path) -> Segmenter:
    """A trained network in evaluation mode and float32, on the CPU.

    Args:
        path_or_name: a ``.safetensors`` release, a ``.pt`` training checkpoint, or the name of a shipped release.

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
        CheckpointError: a damaged file, one of another library, or weights that do not fit their own recipe.
    """
    path = find_checkpoint(path_or_name)
    if path.suffix == ".safetensors":
        metadata, state = _read_release(path)
        recipe = metadata["recipe"]
    else:
        recipe, content = load_training_state(path)
        if "model" not in content:
            raise CheckpointError(f"{path} holds no network, only {', '.join(content) or 'a recipe'}")
        state = content["model"]
    model = build_segmenter(replace(recipe.model, backbone_weights=None))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit the network of their recipe: {error}") from error
    return model.eval()


def load_initial_weights(model: Segmenter, path_or_name: str | Path) -> list[str]:
    """Give ``model`` the weights, statistics and bases of a trained network, to go on from there with other data.

    Strict: both must have the same tensors. Where they tell another number of classes apart, the tensors with a row for
    each class keep the values they have.

    Args:
        model: changed in place.
        path_or_name: as in `load_segmenter`.

    Returns:
        The names of the tensors that were left alone.

    Raises:
        FileNotFoundError, CheckpointError: as in `load_segmenter`, and for a network that differs in anything but the
            number of classes; the message names the first tensor that does.
    """
    source = load_segmenter(path_or_name)
    theirs, ours = source.state_dict(), model.state_dict()
    classes = (source.config.num_classes, model.config.num_classes)

    def classifies(key: str) -> bool:
        old, new = theirs[key].shape, ours[key].shape
        return classes[0] != classes[1] and (old[:1], new[:1]) == ((classes[0],), (classes[1],)) and old[1:] == new[1:]

    new = [key for key in ours if key in theirs and classifies(key)]
    for key in {**ours, **theirs}:
        shapes = [tuple(state[key].shape) if key in state else "absent" for state in (theirs, ours)]
        if shapes[0] != shapes[1] and key not in new:
            raise CheckpointError(
                f"the weights in {path_or_name} are of another network: {key} is {shapes[0]} there and {shapes[1]} "
                "here; only the number of classes may differ"
            )
    model.load_state_dict({key: value for key, value in theirs.items() if key not in new}, strict=False)
    return new


def _read_release(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); download it again") from error
    if texts.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} says nothing of how its network is built; it was not exported by emalab")
    recipe = _read_recipe(path, texts.pop("recipe", ""))
    return {**{key: json.loads(value) for key, value in texts.items()}, "recipe": recipe}, state


def _way_out(path: Path, entry: str) -> str:
    code = (
        "import sys, torch; source, out = sys.argv[1:]; "
        f'torch.save(torch.load(source, map_location="cpu", weights_only=False)["{entry}"], out)'
    )
    command = shlex.join(["python", "-c", code, str(path), str(path.with_name(f"{path.stem}-weights.pth"))])
    return (
        ", or, only if you trust the file, save its weights alone where the library that wrote it is installed: "
        f"{command}"
    )


def _read_recipe(path: Path, text: str) -> Recipe:
    try:
        return recipe_from_dict(json.loads(text))
    except ValueError as error:
        raise CheckpointError(
            f"the recipe in {path} cannot be read ({error}); was it written by another version of emalab?"
        ) from error
