"""What the bases become: which of them differ, how many are in use, what they rebuild, and what they follow.

Most functions take tensors and know nothing of networks. `look_inside` fetches the tensors of an image from a trained
network, and `BasesHistory` those of a unit while it trains. Axes are named as in `emalab.em`; entropies are in nats.
"""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from emalab.em import EMOutput
from emalab.modules import EMAU
from emalab.segmenter import Segmenter, refuse_unnormalized

__all__ = [
    "BasesHistory",
    "Inside",
    "attention_of_position",
    "contingency",
    "cosines",
    "distinct_bases",
    "effective_rank",
    "entropy",
    "error_up_to_scale",
    "labels_at_positions",
    "look_inside",
    "merge",
    "mutual_information",
    "outward",
    "perplexity",
    "purity",
    "rank_errors",
    "shift",
]


def entropy(weights: Tensor) -> Tensor:
    """Shannon's entropy of the distribution that ``weights`` (..., k) are proportional to: (...), in nats.

    Raises:
        ValueError: a weight below zero, or weights that sum to zero: they are proportional to no distribution.
    """
    total = weights.sum(dim=-1, keepdim=True)
    if not ((weights >= 0).all() and (total > 0).all()):
        raise ValueError("weights must be zero or more, and not all zero, to be proportional to a distribution")
    return torch.special.entr(weights / total).sum(dim=-1)


def perplexity(weights: Tensor) -> Tensor:
    """How many equal parts have the entropy of ``weights``: (..., k) → (...), exp of `entropy`, in [1, k].

    Of the mean responsibilities of an image it is the effective number of bases in use. Copies count in full: a base
    and its twin are two. `merge` them first to count what differs. Errors as in `entropy`.
    """
    return entropy(weights).exp()


def effective_rank(x: Tensor) -> Tensor:
    """`perplexity` of the singular values of ``x`` (..., n, c): (...). Roy and Vetterli, EUSIPCO 2007.

    Raises:
        ValueError: a matrix of zeros.
    """
    return perplexity(torch.linalg.svdvals(x))


def cosines(bases: Tensor) -> Tensor:
    """Cosine of every two bases: (..., k, c) → (..., k, k). A base of zeros has cosine 0 with all."""
    directions = F.normalize(bases, dim=-1)
    return directions @ directions.mT


def distinct_bases(bases: Tensor, threshold: float = 0.95) -> Tensor:
    """Which bases are the same: groups within which any two have a cosine of ``threshold`` or more.

    Groups are formed by complete linkage: the two whose least similar members are most similar unite first. (Single
    linkage would call two bases the same because a chain of others lies between them.)

    Args:
        bases: (k, c).
        threshold: in (-1, 1].

    Returns:
        The group of each base, (k,), on the CPU: 0 for the largest, and so on; of equally large ones, the one with the
        first base comes first. ``max() + 1`` is the number of distinct bases.

    Raises:
        ValueError: bases of another shape or not finite, or a threshold out of range.
    """
    if bases.ndim != 2 or len(bases) == 0:
        raise ValueError(f"distinct_bases expects bases (k, c), at least one; got {tuple(bases.shape)}")
    if not bases.isfinite().all():
        raise ValueError("distinct_bases got bases that are not finite")
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold is a cosine above -1 and up to 1; got {threshold}")
    if len(bases) == 1:
        return torch.zeros(1, dtype=torch.int64)
    from scipy.cluster.hierarchy import fcluster, linkage  # scipy is needed here alone, and slow to import
    from scipy.spatial.distance import squareform

    distances = (1 - cosines(bases.detach().cpu().double())).clamp(min=0)
    tree = linkage(squareform(distances.numpy(), checks=False), method="complete")
    rounding = 1e-12
    found = torch.from_numpy(fcluster(tree, 1 - threshold + rounding, criterion="distance")).long() - 1
    sizes = found.bincount().tolist()
    first = {group: index for index, group in reversed(list(enumerate(found.tolist())))}
    order = sorted(first, key=lambda group: (-sizes[group], first[group]))
    return torch.tensor([order.index(group) for group in found.tolist()])


def merge(responsibilities: Tensor, groups: Tensor) -> Tensor:
    """Add up the responsibilities (..., k) of the bases of each group, as from `distinct_bases`: (..., groups)."""
    membership = F.one_hot(groups.to(responsibilities.device)).to(responsibilities.dtype)
    return responsibilities @ membership


def rank_errors(x: Tensor) -> Tensor:
    """Relative error of the best approximation of each rank r = 0, 1, … of ``x`` (n, c): (min(n, c) + 1,).

    ‖x − best‖ / ‖x‖ in the Frobenius norm, by the theorem of Eckart and Young. No reconstruction from K bases has less
    than entry K.
    """
    energy = torch.linalg.svdvals(x).square()
    left = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return (left / left[0]).sqrt()


def error_up_to_scale(x: Tensor, approximation: Tensor) -> Tensor:
    """min over a of ‖x − a · approximation‖ / ‖x‖, for tensors of one shape: a scalar in [0, 1].

    The bases of EM have unit length whatever the features have, so that a reconstruction is right up to scale at best.
    """
    length = approximation.square().sum()
    factor = (x * approximation).sum() / length if length > 0 else length
    return (x - factor * approximation).norm() / x.norm()


def contingency(assigned: Tensor, labels: Tensor, num_groups: int, num_classes: int, ignore_index: int = 255) -> Tensor:
    """How many positions each group shares with each class: (n,), (n,) → float64 (groups, classes).

    Positions with the ignored label do not count.

    Raises:
        ValueError: labels for another number of positions, or a group or class out of range.
    """
    if assigned.shape != labels.shape:
        raise ValueError(f"{tuple(assigned.shape)} positions are assigned, and {tuple(labels.shape)} labeled")
    valid = labels != ignore_index
    rows, columns = assigned[valid].long(), labels[valid].long()
    for name, values, count in (("group", rows, num_groups), ("class", columns, num_classes)):
        if values.numel() and not 0 <= values.min() <= values.max() < count:
            raise ValueError(f"there is a {name} outside of 0 … {count - 1}: {values.min()} … {values.max()}")
    counts = torch.bincount(rows * num_classes + columns, minlength=num_groups * num_classes)
    return rearrange(counts.double(), "(g c) -> g c", g=num_groups)


def mutual_information(table: Tensor) -> float:
    """What the rows of a `contingency` table tell about its columns, in nats: from 0 to the smaller entropy of the two.

    Estimated from counts it is too high, by about (rows − 1)(columns − 1) / 2n; compare with labels that mean nothing
    (`shift`). Errors as in `entropy`.
    """
    rows, columns = table.sum(dim=1), table.sum(dim=0)
    return (entropy(rows) + entropy(columns) - entropy(table.flatten())).item()


def purity(table: Tensor) -> float:
    """Share of positions that get their class if every group is named after its most frequent one."""
    return (table.amax(dim=1).sum() / table.sum()).item()


def shift(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Labels (h, w) moved by a random number of rows and columns, around the edges: what a chance agreement looks like.

    Shapes and areas stay, only their place changes. (To permute single positions would be too easy a baseline: nearby
    labels agree, and so do nearby responsibilities, whatever they follow.)
    """
    offsets = [int(torch.randint(side, (1,), generator=generator)) for side in labels.shape]
    return labels.roll(offsets, dims=(0, 1))


def labels_at_positions(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) of an image at the positions of its feature map: (h, w), each that of the pixel in the middle."""
    resized = F.interpolate(rearrange(labels.double(), "h w -> 1 1 h w"), size, mode="nearest-exact")
    return rearrange(resized, "1 1 h w -> h w").to(labels.dtype)


def outward(foreground: Tensor) -> Tensor:
    """Which way is out: minus the gradient of a mask (h, w), bool, by central differences: (h, w, 2), right and down.

    Zero where all four neighbors are alike; beyond the border of the image lies more of the same.
    """
    padded = F.pad(rearrange(foreground.float(), "h w -> 1 1 h w"), (1, 1, 1, 1), mode="replicate")[0, 0]
    right = (padded[1:-1, :-2] - padded[1:-1, 2:]) / 2
    down = (padded[:-2, 1:-1] - padded[2:, 1:-1]) / 2
    return torch.stack([right, down], dim=-1)


class Inside(NamedTuple):
    """What `look_inside` finds."""

    x: Tensor  # (b, n, c), the features that enter EM; positions n run row by row
    attended: EMOutput  # reconstruction (b, n, c), responsibilities (b, n, k), bases μ⁽ᵀ⁾ (b, k, c)
    logits: Tensor  # (b, classes, h, w), coarse: one for each position
    size: tuple[int, int]  # h, w with h · w = n


@torch.inference_mode()
def look_inside(model: Segmenter, images: Tensor) -> Inside:
    """Run a network with an `EMAU` on images (b, i, H, W), as in `Segmenter`, and keep what the unit sees and makes.

    Raises:
        ValueError: a network without EM attention, or one in training mode, whose bases every look would move; or
            images that are not normalized, as in `Segmenter.forward`.
    """
    unit = _unit(model.context)
    if images.is_floating_point():
        refuse_unnormalized(images)
    if model.training:
        raise ValueError("look_inside would move the bases of a network in training mode; call model.eval() first")
    seen: list[Tensor] = []
    hook = unit.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        logits = model.coarse_logits(images)
    finally:
        hook.remove()
    (features,) = seen
    x = rearrange(unit.conv_in(features), "b c h w -> b (h w) c")
    return Inside(x, unit.attend(features), logits, (features.shape[-2], features.shape[-1]))


def attention_of_position(responsibilities: Tensor, position: int) -> Tensor:
    """How much each position contributes to what one position receives: (n, k) → (n,), summing to 1.

    The reconstruction of position p mixes the bases with its responsibilities, and each base is a mean of all features
    with the responsibilities of that base: weight_n = Σ_k z_pk z_nk / Σ_m z_mk. (The unit normalizes the bases in
    between, which changes the length of what is mixed and not where it comes from.)

    Raises:
        ValueError: a position outside of 0 … n − 1.
    """
    if not 0 <= position < len(responsibilities):
        raise ValueError(f"there is no position {position}; positions are 0 to {len(responsibilities) - 1}")
    shares = responsibilities / responsibilities.sum(dim=0).clamp(min=torch.finfo(responsibilities.dtype).tiny)
    weights = shares @ responsibilities[position]
    return weights / weights.sum()


class BasesHistory:
    """Writes down the bases of a unit while it trains, after every forward pass in training mode:

        with BasesHistory(trainer.model.context) as history:
            trainer.fit()
        history.bases  # (steps + 1, k, c), on the CPU; the first are those before training

    A step of 64 × 512 bases takes 128 KiB. Learned bases, which the optimizer moves later, are written down as they
    were in the pass.

    Args:
        unit: an `EMAU`.
        every: keep each ``every``-th pass alone.

    Raises:
        ValueError: a module that is no `EMAU`, or ``every`` below 1.
    """

    def __init__(self, unit: nn.Module, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1 pass")
        self.unit, self.every = _unit(unit), every
        self.passes = 0
        self._kept: list[Tensor] = []

    def __enter__(self) -> BasesHistory:
        self._keep()
        self._hook = self.unit.register_forward_hook(self._after_pass)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hook.remove()

    @property
    def bases(self) -> Tensor:
        """What was written down so far, (kept, k, c)."""
        return torch.stack(self._kept)

    def _after_pass(self, unit: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if unit.training:
            self.passes += 1
            if self.passes % self.every == 0:
                self._keep()

    def _keep(self) -> None:
        self._kept.append(self.unit.bases.detach().cpu().clone())


def _unit(module: nn.Module) -> EMAU:
    if not isinstance(module, EMAU):
        raise ValueError(f"bases are found in an EMAU; this network's context is {type(module).__name__}")
    return module
