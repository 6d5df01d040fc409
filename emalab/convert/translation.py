"""What every conversion needs: a table of names, a strict look at both sides, and a file with one state dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from emalab.checkpoints import CheckpointError, read_tensors, require_finite
from emalab.data import get_spec
from emalab.recipes import Recipe
from emalab.segmenter import Segmenter

__all__ = ["Translation", "count_blocks", "read_state_dict", "recipe_for"]

_WRAPPER = "module."


@dataclass(frozen=True)
class Translation:
    """Names of another implementation in ours, and errors that speak in theirs.

    Args:
        source: whose names they are, for messages: "not a network of SOURCE: …".
        names: beginnings of their keys, and of ours.
    """

    source: str
    names: Mapping[str, str]

    def ours(self, key: str) -> str:
        """Our name of their tensor ``key``."""
        return next(ours + key.removeprefix(theirs) for theirs, ours in self.names.items() if key.startswith(theirs))

    def theirs(self, key: str) -> str:
        """Their name of our tensor ``key``."""
        return next(theirs + key.removeprefix(ours) for theirs, ours in self.names.items() if key.startswith(ours))

    def require(self, state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
        """Raise `CheckpointError` naming those of ``keys`` that ``state`` lacks."""
        self._refuse("without", [key for key in keys if key not in state])

    def unwrap(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` without the ``module.`` that parallel training puts in front of every key, or of none.

        Raises:
            CheckpointError: keys with and without it; the message names those that collide, or are fewer.
        """
        wrapped = [key for key in state if key.startswith(_WRAPPER)]
        bare = [key for key in state if not key.startswith(_WRAPPER)]
        self._refuse(
            f"two tensors, with and without {_WRAPPER} in front, are called",
            [key for key in bare if _WRAPPER + key in state],
        )
        if wrapped and bare:
            few, many = ("with", "without") if len(wrapped) < len(bare) else ("without", "with")
            self._refuse(f"most keys are {many} {_WRAPPER} in front, but {few} it are", min(wrapped, bare, key=len))
        return {key.removeprefix(_WRAPPER): value for key, value in state.items()}

    def rows(self, state: Mapping[str, Tensor], key: str) -> int:
        """Output channels of the convolution ``key`` (o, i, h, w); `CheckpointError` if it is no such tensor."""
        weight = state[key]
        if weight.ndim != 4 or not weight.is_floating_point():
            raise CheckpointError(
                f"not a network of {self.source}: {key} is {tuple(weight.shape)}, {weight.dtype}, and not the real "
                "numbers (o, i, h, w) of a convolution"
            )
        return len(weight)

    def check_bases(self, state: Mapping[str, Tensor], key: str) -> int:
        """How many bases the tensor ``key`` (1, c, k) holds; `CheckpointError` if it has another shape."""
        bases = state[key]
        if bases.ndim != 3 or len(bases) != 1:
            raise CheckpointError(f"not a network of {self.source}: {key} is {tuple(bases.shape)} and not (1, c, k)")
        return bases.shape[2]

    def fill(self, model: Segmenter, state: Mapping[str, Tensor]) -> Segmenter:
        """``model`` with the tensors of ``state``, in evaluation mode.

        Raises:
            CheckpointError: a tensor that is missing, left over, of another shape or with NaN or infinite values; the
                message names it.
        """
        wanted = {self.theirs(key): value for key, value in model.state_dict().items()}
        # Batch counters decide nothing, and some versions of synchronized batch norm keep none.
        self.require(state, (key for key in wanted if not key.endswith("num_batches_tracked")))
        self._refuse("with unknown", [key for key in state if key not in wanted])
        ours = {self.ours(key): value for key, value in state.items()}
        ours["context.bases"] = rearrange(ours["context.bases"], "1 c k -> k c")
        for key, value in model.state_dict().items():
            if key in ours and ours[key].shape != value.shape:
                raise CheckpointError(
                    f"not a network of {self.source}: {self.theirs(key)} is {tuple(ours[key].shape)} where the other "
                    f"tensors ask for {tuple(value.shape)}"
                )
        require_finite(state, f"not a usable network of {self.source}")
        model.load_state_dict(ours, strict=False)
        return model.eval()

    def _refuse(self, how: str, keys: Sequence[str]) -> None:
        if keys:
            raise CheckpointError(
                f"not a network of {self.source}: {how} {', '.join(keys[:3])}"
                + (f" and {len(keys) - 3} more tensors" if len(keys) > 3 else "")
            )


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks of the stage whose keys begin with ``prefix``; at least one, to be reported as missing."""
    return max(len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}), 1)


def read_state_dict(path: Path, source: str, entry: str) -> dict[str, Tensor]:
    """The one state dict in a ``.pth`` file: bare, or beside an optimizer's state and other things.

    Args:
        path: the file.
        source: whose it is, for messages.
        entry: what the state dict is usually called there, for messages.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a damaged file, one with code in it, or none with a single state dict.
    """
    content = read_tensors(path, entry)
    candidates = [content, *content.values()] if isinstance(content, dict) else []
    states = [candidate for candidate in candidates if _is_state_dict(candidate)]
    if len(states) != 1:
        raise CheckpointError(f"{path} holds {len(states) or 'no'} state dicts; a checkpoint of {source} holds one")
    return states[0]


def recipe_for(model: Segmenter, data: str, base: Recipe, name: str, summary: str) -> Recipe:
    """``base`` with the network of ``model``, on the data set ``data``.

    Raises:
        ValueError: no such data set, or one with another number of classes.
    """
    spec = get_spec(data)
    if model.config.num_classes != spec.num_classes:
        raise ValueError(
            f"the network predicts {model.config.num_classes} classes, {data} has {spec.num_classes}; "
            "name the data set that it was trained on"
        )
    data_config = replace(base.data, name=data)
    # Notes and published scores of the base do not hold for this network.
    return replace(
        base, name=name, summary=summary, data=data_config, model=model.config, notes="", published=(), init_from=None
    )


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
