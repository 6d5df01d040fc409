"""What a network costs: multiply-adds, parameters and activation memory, by counting.

Nothing is computed: the network runs on tensors without data (torch's ``meta`` device), and each operation reports what
it would do. Conventions, which are those of the paper's table:

- A multiply-add is one operation; torch's `FlopCounterMode` calls it two. Convolutions and matrix products count, all
  else is free.
- Parameters are what training may keep: weights, biases, and the bases of EM attention; not batch norm's statistics.
- Activation memory is the number of values in the tensors that one forward pass makes. Views and operations in place
  make none, and nothing is said of how long each tensor lives. Non-local attention counts in its explicit form, with
  its N×N matrix before and after the softmax, which fused kernels never write.

The memory in the table is that of the authors' arrangement of EM: with N positions, C channels and K bases, it divides
the responsibilities (N, K) by their sums before each M-step, ours the bases (K, C) after it. With 3 (N K − K C) values
more, ours are the published 12.3 M and 22.1 M. The 66.0 M of DeepLabV3 arise if the backbone's 2048 channels count once
more for each of the five branches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from emalab.modules import EMAU
from emalab.segmenter import Segmenter, SegmenterConfig

__all__ = ["Cost", "network_cost"]


@dataclass(frozen=True)
class Cost:
    """What a network, or a part of it, costs for one image."""

    multiply_adds: int
    """Products that are added up, in convolutions and matrix products."""
    parameters: int
    """Numbers that training keeps."""
    activations: int
    """Values in the tensors that a forward pass makes."""
    parts: Mapping[str, Cost] = field(default_factory=dict)
    """The same of its parts; what no part accounts for is the enlargement to the image."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.parameters + other.parameters,
            self.activations + other.activations,
        )


def network_cost(config: SegmenterConfig, image_size: int | Sequence[int] = 513) -> Cost:
    """The cost of the network that ``config`` describes, for one image, in evaluation mode.

    ``parts`` has an entry for each part of the `Segmenter` that does something: ``backbone``, ``reduction``,
    ``context``, ``bottleneck`` and ``classifier``. The paper's table says what a method adds to the backbone, and
    counts ``reduction + context``: EMANet (512) adds 43.1 G multiply-adds and 10.0 M parameters to the 190.6 G and
    42.6 M of ResNet-101, at 513×513 and stride 8. An auxiliary head, which works in training alone, is left out.

    Args:
        config: the architecture; weights are neither needed nor read.
        image_size: height and width in pixels, or one number for both.

    Raises:
        ValueError: an image without pixels, or a setting that no network can have.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"an image has at least one pixel; got {height}×{width}")
    with torch.device("meta"):
        model = Segmenter(replace(config, backbone_weights=None, auxiliary_channels=0)).eval()
        image = torch.empty(1, config.in_channels, height, width)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _AllocationCounter() as allocations:
        model(image)

    def cost(name: str, module: nn.Module) -> Cost:
        operations = sum(flops.get_flop_counts().get(name, {}).values())
        return Cost(operations // 2, _count_parameters(module), allocations.of_module[name])

    root = type(model).__name__
    parts = {name: cost(f"{root}.{name}", module) for name, module in model.named_children()}
    return replace(cost(root, model), parts={name: part for name, part in parts.items() if part.activations})


def _count_parameters(module: nn.Module) -> int:
    weights = sum(parameter.numel() for parameter in module.parameters())
    stored = (unit.bases for unit in module.modules() if isinstance(unit, EMAU))
    return weights + sum(bases.numel() for bases in stored if not isinstance(bases, nn.Parameter))


class _AllocationCounter(TorchDispatchMode):
    """Counts the values of new tensors, by the module that was running when an operation made them."""

    def __init__(self) -> None:
        super().__init__()
        self.of_module: Counter[str] = Counter()
        self.tracker = ModuleTracker()

    def __enter__(self) -> _AllocationCounter:
        self.tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        seen = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in seen:
                self.of_module.update({module: tensor.numel() for module in self.tracker.parents})
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
