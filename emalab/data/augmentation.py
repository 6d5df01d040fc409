"""Augmentations of your own, after those of `TrainTransform`: a function of an image, its labels and a generator."""

from __future__ import annotations

import pickle
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor, nn

from emalab.data.dataset import Sample
from emalab.data.errors import DataError
from emalab.data.spec import DatasetSpec
from emalab.data.tensors import as_image, as_mask
from emalab.own_code import find_own, place_in_words

__all__ = ["Augment", "OwnAugmentation", "augment_name", "find_augment"]

Augment = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
"""(image uint8 (c, h, w), labels (h, w), generator) → both, in the same shapes and types."""


class OwnAugmentation(nn.Module):
    """Applies a function of your own to a `Sample` and checks its result.

    The function may draw from its generator or from the global ones of torch, numpy and Python. All of them are seeded
    from torch's global generator, which a sample's seed determines. Seed any other source of random numbers with
    ``generator.initial_seed()``.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from torchvision.transforms import v2
        >>> padding = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
        >>> change = v2.Compose([v2.RandomPerspective(0.3, fill=padding), v2.GaussianBlur(3)])
        >>> def augment(image, mask, generator):
        ...     return change(tv_tensors.Image(image), tv_tensors.Mask(mask))
        >>> from emalab import load_dataset
        >>> scenes = load_dataset("shapes-pooled", "train")
        >>> changed = OwnAugmentation(augment, scenes.spec)(scenes[0])
        >>> changed.image.shape == scenes[0].image.shape
        True

    Args:
        function: see `Augment`; it gets plain tensors that it may change.
        spec: of the data set, for its labels.
        name: in messages; by default the name of the function.
    """

    def __init__(self, function: Augment, spec: DatasetSpec, name: str = "") -> None:
        super().__init__()
        self.function, self.spec, self.name = function, spec, name or augment_name(function)

    def forward(self, sample: Sample) -> Sample:
        """The sample with another image and labels, of the same sizes and types.

        Raises:
            DataError: the function failed, or what it returned cannot be trained on. The message names it.
        """
        image, mask = sample.image.as_subclass(Tensor), sample.mask.as_subclass(Tensor)
        seed = int(torch.randint(2**63 - 1, ()))
        try:
            with _seeded(seed):
                changed = self.function(image.clone(), mask.clone(), Generator().manual_seed(seed))
        except (Exception, SystemExit) as error:
            where = place_in_words(traceback.extract_tb(error.__traceback__)[1:2])
            raise self._error(sample, f"failed with {type(error).__name__}: {error}{where}") from error
        if problem := self._problem(changed, image, mask):
            raise self._error(sample, problem)
        return Sample(as_image(changed[0].as_subclass(Tensor)), as_mask(changed[1].as_subclass(Tensor)), sample.name)

    def _problem(self, changed: object, image: Tensor, mask: Tensor) -> str:
        """Describe what is wrong with the result of the function; empty if nothing is."""
        if not (isinstance(changed, tuple | list) and len(changed) == 2):
            return f"returned {_kind(changed)}; return the image and the labels, as a pair"
        for what, given, found in (("image", image, changed[0]), ("labels", mask, changed[1])):
            if not isinstance(found, Tensor):
                return f"returned {_kind(found)} for the {what}; return a tensor"
            if found.layout != torch.strided:
                return f"returned {what} as a tensor of the layout {found.layout}; return it dense (.to_dense())"
            if found.dtype != given.dtype or found.shape != given.shape or found.device != given.device:
                return f"returned {what} {_tensor(found)}; they must stay {_tensor(given)}"
        labels, ignored = changed[1].as_subclass(Tensor), self.spec.ignore_index
        known = ((labels >= 0) & (labels < self.spec.num_classes)) | (labels == ignored)
        if not known.all():
            unknown = int(labels[~known][0])
            return (
                f"returned the label {unknown}; labels are 0 to {self.spec.num_classes - 1}, and {ignored} for "
                "ignored pixels; interpolate labels by nearest only"
            )
        return ""

    def _error(self, sample: Sample, problem: str) -> DataError:
        return DataError(f"the augmentation {self.name} {problem}; the sample was {sample.name}")

    def __getstate__(self) -> dict[str, object]:
        """What goes to workers that are not forked."""
        try:
            pickle.dumps(self.function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"the augmentation {self.name} cannot be sent to the worker processes ({error}); define it in a "
                "module, outside of other functions, or set num_workers to 0"
            ) from error
        return self.__dict__


def find_augment(name: str) -> Augment:
    """The function that "module:function" names.

    Raises:
        ValueError: the module cannot be imported, or has no such function.
    """
    found = find_own("data.augment", name)
    if not callable(found):
        where, _, attribute = name.partition(":")
        raise ValueError(
            f"data.augment {name!r}: {where} has no function {attribute}; pass a function of a script or a notebook "
            "as train(..., augment=...)"
        )
    function: Augment = found
    return function


def augment_name(function: Augment) -> str:
    """How records call a function: "module:function", by which `find_augment` finds those of modules."""
    if name := getattr(function, "__qualname__", ""):
        return f"{function.__module__}:{name}"
    return f"{type(function).__module__}:<{type(function).__qualname__}>"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global generators start from ``seed``, and are restored afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what libraries draw from
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _kind(value: object) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"a {type(value).__name__}"


def _tensor(tensor: Tensor) -> str:
    size = " × ".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} of {size}" + (f" on {tensor.device}" if tensor.is_cuda else "")
