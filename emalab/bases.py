"""How the initial bases μ⁽⁰⁾ live between batches: one small strategy per answer of the paper's ablation.

A strategy holds no tensor. `EMAU` owns ``bases`` (k, c); the strategy says where each batch starts, what remains of
the batch afterwards, and whether back-propagation may change the bases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from emalab.choices import MaintenanceName, Renormalize, check_choice
from emalab.collectives import several_processes, sum_over_processes
from emalab.em import normalize_bases

__all__ = [
    "Frozen",
    "Learned",
    "Maintenance",
    "MovingAverage",
    "PerImage",
    "initial_bases",
    "make_maintenance",
    "mean_over_images",
]


def initial_bases(num_bases: int, channels: int) -> Tensor:
    """Random directions, uniform on the unit sphere: (k, c), each base of L2 norm 1."""
    bases = torch.empty(num_bases, channels).normal_()
    return bases if bases.is_meta else normalize_bases(bases)


def mean_over_images(bases: Tensor) -> Tensor:
    """Mean over the images of a batch, and over every rank's batch: (b, k, c) → (k, c), identical on all ranks.

    Images whose bases are not finite do not count, and the mean of none is NaN. Sums and image counts travel together
    in one all-reduce, so ranks may hold batches of different sizes.
    """
    bases = bases.float() if bases.dtype.itemsize < 4 else bases
    finite = reduce(bases.isfinite(), "b k c -> b", "all")
    total = reduce(torch.where(rearrange(finite, "b -> b 1 1"), bases, 0.0), "b k c -> k c", "sum")
    count = finite.sum(dtype=total.dtype)[None]
    if several_processes():
        packed = sum_over_processes(torch.cat([total.flatten(), count]))
        total, count = packed[:-1].view_as(total), packed[-1:]
    return total / count


class Maintenance:
    """Base strategy: every batch starts from the stored bases, which never change."""

    learnable = False  # whether the optimizer owns the bases

    def start(self, bases: Tensor, x: Tensor) -> Tensor:
        """Bases that EM starts from: stored (k, c), features (b, n, c) → (k, c) or (b, k, c)."""
        return bases

    def update(self, bases: Tensor, batch_bases: Tensor) -> Tensor | None:
        """Bases to store after a training batch: (k, c), (b, k, c) → (k, c), or None to keep what is stored."""
        return None


class Frozen(Maintenance):
    """The random initial bases, never updated ("no maintenance" in the paper's ablation)."""


class Learned(Maintenance):
    """Bases are a parameter, trained by back-propagation through the EM iterations (needs ``grad="unroll"``)."""

    learnable = True


class PerImage(Maintenance):
    """Every image starts from its own features at ``k`` evenly spaced positions; nothing is shared between images."""

    def start(self, bases: Tensor, x: Tensor) -> Tensor:
        """Normalized features at evenly spaced positions: (b, k, c). Positions repeat when there are fewer than k."""
        num_bases, num_positions = len(bases), x.shape[1]
        spacing = torch.linspace(0, num_positions - 1, num_bases, device=x.device).round().long()
        return normalize_bases(x[:, spacing])


@dataclass(frozen=True)
class MovingAverage(Maintenance):
    """μ⁽⁰⁾ ← α μ⁽⁰⁾ + (1 − α) · batch mean of μ⁽ᵀ⁾, with α = ``momentum`` weighting the OLD bases (paper, §3.3).

    ``renormalize`` settles what the paper leaves open: ``"none"`` mixes the raw mean, whose norm is below 1 (the
    authors' code); ``"batch_mean"`` brings the mean to unit norm before mixing (mmsegmentation); ``"after_mixing"``
    brings the result to unit norm.
    """

    momentum: float = 0.9
    renormalize: Renormalize = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum weights the old bases and must lie in [0, 1], got {self.momentum}")
        check_choice("renormalize", self.renormalize, Renormalize)

    def update(self, bases: Tensor, batch_bases: Tensor) -> Tensor:
        """The mixed bases (k, c), identical on every rank."""
        mean = mean_over_images(batch_bases).to(bases.dtype)
        if self.renormalize == "batch_mean":
            mean = F.normalize(mean, dim=-1)
        mixed = self.momentum * bases + (1 - self.momentum) * mean
        mixed = normalize_bases(mixed) if self.renormalize == "after_mixing" else mixed
        return torch.where(mixed.isfinite().all(), mixed, bases)  # a batch of nothing finite changes nothing


def make_maintenance(name: str, *, momentum: float = 0.9, renormalize: Renormalize = "none") -> Maintenance:
    """The strategy called ``name``; ``momentum`` and ``renormalize`` matter to ``"moving_average"`` alone.

    Raises:
        ValueError: no strategy of that name, or an argument out of range.
    """
    strategies: dict[str, Callable[[], Maintenance]] = {
        "moving_average": lambda: MovingAverage(momentum, renormalize),
        "frozen": Frozen,
        "learned": Learned,
        "per_image": PerImage,
    }
    check_choice("maintenance", name, MaintenanceName)
    return strategies[name]()
