"""The words that settings take. Recipes and help need the words alone, and must not wait for torch."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AttentionPath",
    "Backend",
    "EMSettings",
    "Grad",
    "MaintenanceName",
    "Method",
    "NonLocalMode",
    "Norm",
    "Renormalize",
    "SettingError",
    "check_choice",
    "suggestion",
]

Norm = Literal["l2", "layer", "none"]
Grad = Literal["stop", "last", "unroll"]
Backend = Literal["auto", "torch", "triton"]
MaintenanceName = Literal["moving_average", "frozen", "learned", "per_image"]
Renormalize = Literal["none", "batch_mean", "after_mixing"]
NonLocalMode = Literal["gaussian", "embedded_gaussian", "dot_product"]
AttentionPath = Literal["sdpa", "explicit"]
Method = Literal["em-torch", "em-compiled", "em-triton", "non-local-explicit", "non-local-sdpa"]
"""What `emalab bench` compares."""


class SettingError(ValueError):
    """A setting outside its range; the message names it, as in optim.lr, and its value."""


class EMSettings(NamedTuple):
    """How `emalab.em.em_attention` computes, as one value; all fields but ``relu`` are its arguments."""

    num_iters: int = 3
    scale: float | Tensor = 1.0
    norm: Norm = "l2"
    grad: Grad = "stop"
    eps: float = 1e-6
    clamp: bool = False
    backend: Backend = "auto"
    relu: bool = False
    """Apply ReLU to the reconstruction; the kernel does so before it writes."""

    def check(self) -> None:
        """Raise `ValueError` for a setting that there is not."""
        if self.num_iters < 1:
            raise ValueError(f"num_iters must be at least 1, got {self.num_iters}")
        check_choice("norm", self.norm, Norm)
        check_choice("grad", self.grad, Grad)
        check_choice("backend", self.backend, Backend)


def check_choice(name: str, value: object, words: Any) -> None:
    """Raise `ValueError` where ``value``, of the argument called ``name``, is none of the words of a `Literal` type."""
    known = words.__args__  # torch 2.6 compiles and exports this, and not `typing.get_args`
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about a name that there is not: the nearest one, and all that there are."""
    known = list(known)
    nearest = get_close_matches(wrong, known, n=1, cutoff=0.4)
    return (f"did you mean {nearest[0]!r}? There" if nearest else "there") + f" are: {', '.join(known)}."
