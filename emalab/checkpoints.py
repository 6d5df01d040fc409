"""Checkpoints: written whole or not at all, read without running code.

Two formats. Training writes ``.pt`` files with everything needed to resume. Released networks are ``.safetensors``
files whose metadata says how the network is built, trained and scored.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import shlex
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emalab.data.spec import DatasetSpec
from emalab.files import write_atomically
from emalab.recipes import Recipe, recipe_changes, recipe_from_dict, recipe_to_dict
from emalab.segmenter_config import SegmenterConfig
from emalab.shipped import find_checkpoint, shipped_weights
from emalab.unfilled import fill, unfilled

__all__ = [
    "CheckpointError",
    "PrecisionWarning",
    "all_finite",
    "export_segmenter",
    "load_network",
    "load_training_state",
    "named_tensors",
    "read_metadata",
    "read_recipe",
    "read_spec",
    "read_tensors",
    "require_finite",
    "require_one_run",
    "save_training_state",
    "shipped_weights",
    "tensors_checksum",
]

FORMAT = "emalab-2"  # emalab-1 had no checksum
_FORMATS = ("emalab-1", FORMAT)
_LONGEST_RECIPE = 2**22  # characters; class weights of as many classes as are possible fit
_Network = TypeVar("_Network", bound=nn.Module)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; the message names it and says what to do."""


class PrecisionWarning(UserWarning):
    """A released network keeps some weights only roughly, or as 0; the message counts them and names the way out."""


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
    content["checksum"] = tensors_checksum(content)
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_training_state(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """Read what `save_training_state` wrote, tensors on the CPU.

    Raises:
        FileNotFoundError, CheckpointError: as in `read_tensors`, and for a file that another library wrote.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or content.get("format") not in _FORMATS:
        raise CheckpointError(
            f"{path} was not written by emalab; is it a network of yours? "
            f"emalab convert state-dict {path} OUT.safetensors --recipe NAME"
        )
    if content["format"] == FORMAT:  # the format before had no checksum
        _verify(path, content.pop("checksum", None), content)
    if "recipe" not in content:
        raise CheckpointError(f"{path} has no recipe")
    return _read_recipe(path, content.pop("recipe")), content


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
        if not bare_pickle:
            _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and loading it could run code, so it was refused; "
            f"ask its author for a state dict or a safetensors file{_way_out(path, entry) if entry else ''}"
        ) from error
    except Exception as error:  # a flipped bit makes torch and pickle fail in many ways
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}); copy or train it again") from error
    size = path.stat().st_size
    for name, tensor in named_tensors(content):
        if tensor.numel() * tensor.itemsize > size:  # one value, repeated
            raise CheckpointError(f"{path} was refused: its tensor {name} is larger than the file")
    return content


def _refuse_compressed(path: Path) -> None:
    """torch stores tensors as they are; a compressed one may fill the memory from a small file."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise CheckpointError(f"{path} was refused: its entries are compressed, which torch.save does not do")


def _verify(path: Path, written: Any, content: Any) -> None:
    """Refuse content without the checksum that was written with it."""
    try:
        right = written == tensors_checksum(content)
    except (RuntimeError, TypeError) as error:  # tensors of kinds that no checkpoint has
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); copy it again") from error
    if not right:
        raise CheckpointError(
            f"{path} is damaged: its content does not have the checksum that was written with it; copy it again, or go "
            "on from another checkpoint"
        )


def tensors_checksum(content: Any) -> str:
    """``sha256:`` and the digest of nested mappings and sequences of tensors and plain values, in their order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"{{{len(value)}".encode())
            for key, entry in value.items():
                digest.update(repr(key).encode("utf-8", "surrogatepass"))
                add(entry)
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for entry in value:
                add(entry)
        else:
            digest.update(repr(value).encode("utf-8", "surrogatepass"))

    add(content)
    return "sha256:" + digest.hexdigest()


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
    model: nn.Module, path: Path, recipe: Recipe, metadata: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write a released network as ``.safetensors``: weights as ``dtype``, and how it came to be.

    Args:
        model: what to release.
        path: ends in ``.safetensors``.
        recipe: how it was trained; it says how to build the network again.
        metadata: anything else that JSON can hold: scores, data statement, license, commit.
        dtype: of the weights and bases; batch norm's statistics, which can be tiny or huge, and tensors of whole,
            complex or logical values stay as they are.

    Warns:
        PrecisionWarning: weights that are too small for ``dtype``, and so many or so large beside the others that the
            network changes.

    Raises:
        ValueError: a path with another ending.
        CheckpointError: values that are NaN or infinite, or too large for ``dtype``; nothing is written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"a released network is a .safetensors file; got {path}")
    tensors = {
        key: (value.to(dtype) if _may_shrink(key, value) else value).contiguous().cpu()
        for key, value in model.state_dict().items()
    }
    require_finite(model.state_dict(), f"{path} was not written, as the network is of no use")
    way_out = "keep float32: --dtype float32, or dtype=torch.float32 in Python"
    require_finite(tensors, f"{path} was not written, as {dtype} is too narrow for the network ({way_out})")
    if lost := _vanished(model.state_dict(), tensors):
        name, (count, total) = max(lost.items(), key=lambda item: item[1][0])
        warnings.warn(
            f"{path}: {sum(count for count, _ in lost.values())} weights are too small for {dtype} and become 0 or "
            f"lose most digits, as {count} of the {total} of {name}; {way_out}",
            PrecisionWarning,
            stacklevel=2,
        )
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "recipe": json.dumps(recipe_to_dict(recipe))}
    texts["checksum"] = tensors_checksum([sorted(texts.items()), sorted(tensors.items())])
    write_atomically(path, lambda temporary: _save(tensors, temporary, texts))


def _may_shrink(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and not name.endswith(_STATISTICS)


def _save(tensors: dict[str, Tensor], path: Path, texts: dict[str, str]) -> None:
    try:
        save_file(tensors, path, texts)
    except SafetensorError as error:  # of its own kind, for a full disk, too
        raise RuntimeError(str(error)) from error


def _vanished(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """How many values of a tensor are 0 or subnormal in its new type, and of how many, where that matters.

    Rounding changes each normal number by a part u (the unit roundoff) at most, and so the norm of an output channel by
    u at most. Small values matter where a channel changes by 8u or more; a few beside large ones do not.
    """
    found = {}
    for name, old in before.items():
        new = after[name]
        if not new.is_floating_point() or torch.finfo(new.dtype).bits >= torch.finfo(old.dtype).bits:
            continue
        limits = torch.finfo(new.dtype)
        rows = old.detach().cpu().double().reshape(len(old) if old.ndim > 1 else 1, -1)
        small = (rows != 0) & (rows.abs() < limits.tiny)
        change = (rows - new.double().reshape(rows.shape)).norm(dim=1)
        changed = change > 8 * limits.eps / 2 * rows.norm(dim=1)
        if count := int(small[changed].sum()):
            found[name] = (count, old.numel())
    return found


def read_metadata(path_or_name: str | Path) -> dict[str, Any]:
    """What `export_segmenter` recorded beside the weights: ``recipe`` as a `Recipe`, and the given metadata.

    Raises:
        FileNotFoundError, CheckpointError: as in `load_network`.
    """
    return _read_release(find_checkpoint(path_or_name), tensors=False)[0]


def read_recipe(path_or_name: str | Path) -> Recipe:
    """The recipe of a release or of a training checkpoint; errors as in `load_network`."""
    path = find_checkpoint(path_or_name)
    return read_metadata(path)["recipe"] if path.suffix == ".safetensors" else load_training_state(path)[0]


def read_spec(path_or_name: str | Path) -> DatasetSpec | None:
    """Classes and colors of the data that a network was trained on; None where its file is from before they were kept.

    Errors as in `load_network`.
    """
    path = find_checkpoint(path_or_name)
    release = path.suffix == ".safetensors"
    values = (read_metadata(path) if release else load_training_state(path)[1]).get("spec")
    if values is None:
        return None
    try:
        lists = {key: tuple(map(_hashable, value)) for key, value in values.items() if isinstance(value, list | tuple)}
        return DatasetSpec(**{**values, **lists})
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the classes in {path} cannot be read ({error})") from error


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def require_one_run(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a record of other weights than those in the checkpoint ``path``.

    Raises:
        CheckpointError: the run, the recipe, or the weights are others. Records from before runs had names are compared
            by their recipe alone.
    """
    recipe, state = load_training_state(path)
    found = {"run": state.get("run"), "weights": tensors_checksum(state.get("model"))}
    wrong = [f"{key} {found[key]} and {record[key]}" for key in found if key in record and record[key] != found[key]]
    recorded = recipe_from_dict(dict(record["recipe"]))
    if recipe_changes(recorded, replace(recipe, evaluation=recorded.evaluation)):
        wrong.append("another recipe")
    if state.get("iteration", 0) < recipe.optim.iterations:
        wrong.append(f"iteration {state.get('iteration', 0)} of {recipe.optim.iterations}")
    if wrong:
        raise CheckpointError(
            f"{path} and the record beside it are not of one finished run ({'; '.join(wrong)}); go on with the run "
            "(--resume) to score its weights"
        )


def load_network(
    build: Callable[[SegmenterConfig], _Network], path_or_name: str | Path, allow_code: Collection[str] = ()
) -> _Network:
    """A trained network in evaluation mode and float32, on the CPU: what `Segmenter.from_pretrained` does.

    Args:
        build: makes the network that a configuration describes.
        path_or_name: a ``.safetensors`` release, a ``.pt`` training checkpoint, or the name of a shipped release.
        allow_code: modules that may be imported where the file names one of them as "module:Class", the context module
            of its network.

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
        CheckpointError: a damaged file, one of another library, weights that are not finite or do not fit their own
            recipe, or code that is not allowed.
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
    if not all_finite(tensor for _, tensor in named_tensors(state)):
        require_finite(dict(named_tensors(state)), f"{path} is of no use")
    return _filled(build, path, recipe, state, allow_code).eval()


def _filled(
    build: Callable[[SegmenterConfig], _Network], path: Path, recipe: Recipe, state: Any, allow_code: Collection[str]
) -> _Network:
    """The network of ``recipe`` with the weights ``state``; nothing is allocated before they are known to fit."""
    module, colon, _ = recipe.model.context.partition(":")
    if colon and module not in allow_code:
        raise CheckpointError(
            f"the network in {path} needs code, {recipe.model.context}, which a file may not import by itself; if you "
            f"trust it, allow the module {module} (--allow-code {module}; in Python allow_code=({module!r},))"
        )
    config = replace(recipe.model, backbone_weights=None)
    try:
        with nullcontext() if colon else unfilled():
            model = build(config)
        wanted = {key: value.shape for key, value in model.state_dict().items()}
        found = {key: value.shape for key, value in named_tensors(state)}
        if wanted == found:
            if colon or not fill(model, state):
                model = build(config)
                model.load_state_dict(state)
            return model
        key = next(key for key in {**wanted, **found} if wanted.get(key) != found.get(key))
        reason = " and ".join(
            f"{key} is {tuple(shapes[key]) if key in shapes else 'absent'} {where}"
            for shapes, where in ((found, "there"), (wanted, "in the network"))
        )
    except (RuntimeError, ValueError, AttributeError) as error:
        reason = str(error)
    raise CheckpointError(f"the weights in {path} do not fit the network of their recipe: {reason}")


def _read_release(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); download it again") from error
    if texts.get("format") not in _FORMATS:
        raise CheckpointError(f"{path} has no recipe that says how its network is built; emalab did not export it")
    written = texts.pop("checksum", None)
    if tensors and texts["format"] == FORMAT:
        _verify(path, written, [sorted(texts.items()), sorted(state.items())])
    del texts["format"]
    recipe = _read_recipe(path, texts.pop("recipe", ""))
    try:
        return {**{key: json.loads(value) for key, value in texts.items()}, "recipe": recipe}, state
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the metadata in {path} cannot be read ({error}); download it again") from error


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


def _read_recipe(path: Path, text: Any) -> Recipe:
    try:
        if not isinstance(text, str) or len(text) > _LONGEST_RECIPE:
            raise ValueError("it is no text, or a long one")
        return recipe_from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the recipe in {path} cannot be read ({error}); was it written by another version of emalab?"
        ) from error
