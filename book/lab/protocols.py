"""How a network is scored, step by step and by hand: counting, views, windows, positions of logits, memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.special import stdtrit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emalab import Segmenter
from emalab.data import LabeledImages

__all__ = [
    "PeakMemory",
    "center_error",
    "count",
    "displacement",
    "foreground",
    "half_width",
    "iou",
    "miou",
    "redraw",
    "stacked",
    "starts",
]

Labeler = Callable[[Tensor], Tensor]


def stacked(dataset: LabeledImages) -> tuple[Tensor, Tensor]:
    """All images (n, 3, h, w) and masks (n, h, w) of a data set whose images have one size."""
    samples = [dataset[index] for index in range(len(dataset))]
    images = torch.stack([sample.image.as_subclass(Tensor) for sample in samples])
    return images, torch.stack([s.mask.as_subclass(Tensor) for s in samples]).long()


@torch.inference_mode()
def count(
    labels_of: Labeler, images: Tensor, masks: Tensor, classes: int = 5
) -> Tensor:
    """A confusion matrix for each image (n, classes, classes), rows are labels; 25 images are labeled at a time."""
    counts = []
    for some, theirs in zip(images.split(25), masks.split(25), strict=True):
        for labels, mask in zip(labels_of(some).long(), theirs, strict=True):
            valid = mask != 255
            pairs = classes * mask[valid] + labels[valid]
            counts.append(torch.bincount(pairs, minlength=classes**2))
    return rearrange(torch.stack(counts), "n (i j) -> n i j", i=classes).double()


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union (..., classes) of matrices (..., classes, classes); NaN for a class in neither part."""
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    return hits / (confusion.sum(-1) + confusion.sum(-2) - hits)


def miou(confusion: Tensor) -> Tensor:
    """Mean IoU in percent; a class in neither labels nor predictions is left out."""
    return 100 * iou(confusion).nanmean(-1)


def redraw(images: int, rounds: int, size: int | None = None, seed: int = 0) -> Tensor:
    """The bootstrap: how often each of `images` is in each of `rounds` splits, drawn with replacement (rounds, images).

    A split has `size` images, as many as there are if none.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(images, (rounds, size or images), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.double)
    empty = torch.zeros(rounds, images, dtype=torch.double)
    return empty.scatter_add_(1, drawn, ones)


def half_width(values: np.ndarray) -> float:
    """Half the width of Student's 95 % interval for the mean of independent values."""
    quantile = float(stdtrit(len(values) - 1, 0.975))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin on an axis of `side` pixels; the last one ends with the image."""
    step = max(round(window * (1 - overlap)), 1)
    number = math.ceil((side - window) / step) + 1
    return [min(index * step, side - window) for index in range(number)]


# ---- Where logits are ----


def center_error(side: int, stride: int) -> float:
    """Where logits are drawn minus where they are centered, in pixels, mean over an axis of `side` pixels.

    For convolutions of stride 2 that pad one pixel more on the right if the size is even, and enlarging without
    aligned corners: those of the network that comes with the package.
    """
    left, offset = side, 0
    for level in range(int(math.log2(stride))):
        offset += 2**level * (left % 2 == 0)
        left = -(-left // 2)
    positions = np.arange(left)
    drawn = (positions + 0.5) * side / left - 0.5
    return float(np.mean(drawn - (stride * positions + offset)))


@torch.inference_mode()
def foreground(
    network: Segmenter, photos: list[Tensor], extra: int = 0
) -> list[Tensor]:
    """Probability of anything but class 0 (h, w) for photographs (1, 3, h, w), with that much extra padding."""
    maps = []
    for photo in photos:
        height, width = photo.shape[-2:]
        x = F.pad(network.normalize(photo), (0, extra, 0, extra))
        maps.append(1 - network(x).softmax(1)[0, 0, :height, :width])
    return maps


def displacement(maps: list[Tensor], reference: list[Tensor], reach: int = 16) -> float:
    """How far maps lie to the lower right of the reference, in pixels, to fractions: the least square difference."""
    moves, errors = range(-reach, reach + 1), []
    inside = slice(reach, -reach)
    for move in moves:
        pairs = zip(reference, maps, strict=True)
        moved = [(a, b.roll((-move, -move), (0, 1))) for a, b in pairs]
        errors.append(
            sum((b - a)[inside, inside].square().sum().item() for a, b in moved)
        )
    best = min(max(int(np.argmin(errors)), 1), len(moves) - 2)
    below, least, above = errors[best - 1 : best + 2]
    return moves[best] + 0.5 * (below - above) / (below - 2 * least + above)


# ---- Memory ----


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensors alive at one time, of those made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
