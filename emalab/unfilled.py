"""A network for the weights of a file: built without memory or random numbers, and then given the file's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from emalab.modules import Normalize

__all__ = ["fill", "unfilled"]


class _WithoutInitialization(TorchFunctionMode):
    """Initialization does nothing. On the meta device it would import what compiles, which takes longer than torch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or hand back the tensor that it would fill."""
        if getattr(func, "__module__", "") == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks that are built inside have shapes and no values, as on torch's meta device."""
    with torch.device("meta"), _WithoutInitialization():
        yield


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Give an `unfilled` network the tensors of ``state``, in its own precision, without a copy of those that have it.

    Returns:
        Whether it has all its values. A buffer that no state dict holds is left out, unless it is that of `Normalize`.
    """
    wanted = model.state_dict()
    model.load_state_dict({key: value.to(wanted[key].dtype) for key, value in state.items()}, assign=True)
    for module in model.modules():
        if isinstance(module, Normalize):
            module.reset_parameters()
    return not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
