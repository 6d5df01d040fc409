"""A split held decoded in memory, for those who train on it again and again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from emalab.data.dataset import LabeledImages, Sample
from emalab.data.tensors import as_image, as_mask


class InMemory(LabeledImages):
    """The samples of ``dataset``, each decoded once: when it is first asked for, or all of them by `fill`.

    Processes that are forked after `fill` share its memory. A sample is a copy, which its reader may change.

    Args:
        dataset: what to hold, as it gives it.
    """

    def __init__(self, dataset: LabeledImages) -> None:
        self.spec = dataset.spec
        self._dataset = dataset
        self._samples: list[Sample | None] = [None] * len(dataset)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        image, mask, name = self._held(range(len(self))[index])
        return Sample(as_image(image.clone()), as_mask(mask.clone()), name)

    def sample_names(self) -> Sequence[str] | None:
        """The names of the samples, in order."""
        return self._dataset.sample_names()

    def fill(self, threads: int = 1) -> None:
        """Decode every sample that is not held yet; errors as on access to ``dataset``."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self._held, range(len(self))):
                pass

    def _held(self, index: int) -> Sample:
        sample = self._samples[index]
        if sample is None:
            sample = self._samples[index] = self._dataset[index]
        return sample
