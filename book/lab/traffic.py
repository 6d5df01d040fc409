"""Counting what a computation reads from the memory of a device and writes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["BASES", "Memory", "Move", "large_bytes", "traffic"]

BASES = "bases and sums"  # small, and mostly served by a cache


class Move(NamedTuple):
    """One tensor that an operation reads or writes."""

    operation: str
    way: str  # "read" or "written"
    kind: str
    size: int  # bytes


class _Traffic(TorchDispatchMode):
    """Notes every tensor that an operation reads or writes."""

    def __init__(self, kinds: Mapping[int, str]) -> None:
        super().__init__()
        self.kinds, self.moves = kinds, list[Move]()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            name = func.overloadpacket.__name__.strip("_").removeprefix("linalg_")
            for way, tensors in (("read", args), ("written", (result,))):
                for tensor in tensors:
                    if isinstance(tensor, Tensor):
                        kind = self.kinds.get(tensor[0].numel(), BASES)
                        size = min(tensor.nbytes, tensor.untyped_storage().nbytes())
                        self.moves.append(Move(name, way, kind, size))
        return result


def traffic(
    function: Callable[..., object],
    *shapes: tuple[int, ...],
    kinds: Mapping[int, str],
) -> list[Move]:
    """What a function moves if every operation reads its inputs from memory and writes its result there.

    Args:
        function: of bfloat16 tensors. It runs on the ``meta`` device, where tensors have shapes and no numbers.
        shapes: of its arguments, the images first.
        kinds: what a tensor is called, by its numbers for an image; all others are `BASES`.
    """
    tensors = [
        torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes
    ]
    with _Traffic(kinds) as seen:
        function(*tensors)
    return seen.moves


class Memory:
    """The memory of a device in a sketch of a kernel: counts what is loaded and stored."""

    def __init__(self) -> None:
        self.moves: list[Move] = []

    def load(self, kind: str, tensor: Tensor) -> Tensor:
        self.moves.append(Move("", "read", kind, tensor.nbytes))
        return tensor

    def store(self, kind: str, tensor: Tensor) -> Tensor:
        self.moves.append(Move("", "written", kind, tensor.nbytes))
        return tensor


def large_bytes(moves: Sequence[Move]) -> int:
    """Bytes moved, without those of bases and sums."""
    return sum(move.size for move in moves if move.kind != BASES)
