"""Sums over the processes of a training, as an operator that torch.compile takes for one opaque step.

`torch.distributed.all_reduce` itself becomes a functional collective there. A CUDA graph of a compiled step with such
collectives computed wrong gradients on two GPUs (torch 2.11).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["several_processes", "sum_over_processes"]


def several_processes() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# Declared by its schema: `torch.library.custom_op` takes `import emalab` too long.
torch.library.define("emalab::sum_over_processes", "(Tensor x) -> Tensor")
sum_over_processes = torch.ops.emalab.sum_over_processes.default
"""Sum of the tensors ``x`` of all processes, which have one shape. Gradients are summed too, because the loss of every
process depends on the sum."""


@torch.library.impl("emalab::sum_over_processes", "default")
def _sum(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.library.register_fake("emalab::sum_over_processes")
def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: Any, gradient: Tensor) -> Tensor:
    total: Tensor = sum_over_processes(gradient)
    return total


torch.library.register_autograd("emalab::sum_over_processes", _backward)
