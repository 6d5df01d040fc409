"""A part of a split held out from another: what learning rates are chosen on, when val and test must stay unseen.

``trainaug/held-out`` is every tenth image of trainaug, from the first on; ``trainaug/kept`` is the rest. Both follow
from the order of the split's list alone, so that two machines with the same release hold out the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emalab.data.dataset import LabeledImages, Sample
from emalab.data.errors import DataError

if TYPE_CHECKING:
    from torchvision import tv_tensors

__all__ = ["HELD_OUT_EVERY", "Subset", "part_of", "split_and_part"]

HELD_OUT_EVERY = 10
_PARTS = ("kept", "held-out")


class Subset(LabeledImages):
    """Some samples of a data set, by their indices.

    Args:
        dataset: where they come from.
        indices: which of its samples, in order.
    """

    def __init__(self, dataset: LabeledImages, indices: Sequence[int]) -> None:
        self.spec, self.dataset, self._indices = dataset.spec, dataset, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self._indices[index]]

    def image(self, index: int) -> tuple[tv_tensors.Image, str]:
        """Image and name of a sample, without its labels."""
        return self.dataset.image(self._indices[index])

    def sample_names(self) -> Sequence[str] | None:
        """The names of the samples, in order."""
        names = self.dataset.sample_names()
        return None if names is None else [names[i] for i in self._indices]

    def mask(self, index: int) -> tv_tensors.Mask:
        """Labels of a sample, without its image."""
        return self.dataset.mask(self._indices[index])


def split_and_part(split: str) -> tuple[str, str]:
    """The split and the part that a name such as ``trainaug/kept`` consists of; the part is empty for a whole split.

    Raises:
        DataError: the part is neither ``kept`` nor ``held-out``.
    """
    name, slash, part = split.partition("/")
    if slash and part not in _PARTS:
        raise DataError(f"a split has no part {part!r}; there are {name}/kept and {name}/held-out")
    return name, part


def part_of(dataset: LabeledImages, part: str) -> LabeledImages:
    """``dataset`` itself, or the part of it that `split_and_part` found in the name of its split."""
    if not part:
        return dataset
    held_out = part == "held-out"
    return Subset(dataset, [i for i in range(len(dataset)) if (i % HELD_OUT_EVERY == 0) == held_out])
