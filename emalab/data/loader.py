"""The order of training data as a pure function of the iteration, and the loader that follows it."""

import gc
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from emalab.data.dataset import LabeledImages
from emalab.data.errors import DataError


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Which sample, and the seed of its augmentation."""

    index: int
    seed: int


class IterationBatches(Sampler[list[SampleKey]]):
    """The batches of a training run, each a pure function of (seed, iteration).

    The samples stream in permutations of the data set, a new one for every epoch, and a global batch is the next
    `batch_size × world_size` of them, across the border of two epochs where it falls there. Rank r takes the r-th
    part of the global batch. Augmentation seeds belong to (seed, iteration, position in the global batch). So a
    run that resumes at iteration k, another number of workers, or other ranks with the same global batch see the
    same data. Every rank has equally many batches, all of one size, however many samples there are: no rank ever waits
    for the gradients of one that has finished.

    Args:
        num_samples: size of the data set.
        batch_size: samples for each rank.
        num_iterations: length of the whole run.
        seed: of the order and of the augmentation.
        start: first iteration, where a run resumes.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        num_iterations: int,
        *,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in {"num_samples": num_samples, "batch_size": batch_size, "world_size": world_size}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 <= start <= num_iterations:
            raise ValueError(f"start is {start}; it must be in 0 … num_iterations = {num_iterations}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must be in 0 … world_size − 1 = {world_size - 1}")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_iterations = num_iterations
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.num_iterations - self.start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return (self.batch(iteration) for iteration in range(self.start, self.num_iterations))

    def batch(self, iteration: int) -> list[SampleKey]:
        """This rank's part of the global batch of `iteration`, `batch_size` keys."""
        size = self.batch_size * self.world_size
        seeds = augmentation_seeds(self.seed, iteration, size)
        mine = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [SampleKey(self._sample(iteration * size + position), seeds[position]) for position in mine]

    def _sample(self, position: int) -> int:
        """The sample at a position in the stream of all epochs."""
        epoch, offset = divmod(position, self.num_samples)
        return int(epoch_permutation(self.seed, epoch, self.num_samples)[offset])


# Spawn keys keep the two families of random numbers apart that one seed gives.
_ORDER, _AUGMENTATION = 0, 1


@lru_cache(maxsize=2)  # a batch can lie in two epochs
def epoch_permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of the samples in an epoch, (num_samples,)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_ORDER, epoch))
    return np.random.default_rng(sequence).permutation(num_samples)


def augmentation_seeds(seed: int, iteration: int, size: int) -> list[int]:
    """Seeds for the samples of a global batch, 63 bits each."""
    sequence = np.random.SeedSequence(seed, spawn_key=(_AUGMENTATION, iteration))
    return [int(word) >> 1 for word in sequence.generate_state(size, np.uint64)]


class AugmentedDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples by `SampleKey`: transformed under the key's seed, whichever process asks.

    Args:
        dataset: the samples.
        transform: `Sample` -> `Sample`; draws from torch's global generator, which is left as it was found.
    """

    def __init__(self, dataset: LabeledImages, transform: nn.Module) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        """Image uint8 (c, h, w) and mask uint8 or int32 (h, w), as plain tensors."""
        sample = self.dataset[key.index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.seed)  # torch.manual_seed would reseed the GPU's dropout too
            sample = self.transform(sample)
        return sample.image.as_subclass(Tensor), sample.mask.as_subclass(Tensor)


def num_cores() -> int:
    """Cores that this process may use, which a container or a scheduler can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(count: int) -> dict[str, Any]:
    """Arguments of `DataLoader` for so many processes that read.

    On Linux they are forked, whatever Python's or the parent's own way: others would have each of them import torch
    and unpack a copy of the dataset, which takes a minute for thousands of decoded images.
    """
    fork = count > 0 and sys.platform == "linux"
    return {
        "num_workers": count,
        "multiprocessing_context": "fork" if fork else None,
        "worker_init_fn": _keep_inherited_objects,
    }


def _keep_inherited_objects(worker: int) -> None:
    """Never collect garbage that came from the parent: to free a CUDA tensor in a forked process aborts it."""
    gc.freeze()


@dataclass(frozen=True)
class _Failure:
    """A `DataError` on its way from a worker: torch would add the worker's traceback to its message."""

    error: DataError


class _Caught(Dataset[Any]):
    """The samples of ``dataset``, and for one that cannot be read its `_Failure`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except DataError as error:
            return _Failure(error)


def _collate(samples: list[Any]) -> Any:
    return next((sample for sample in samples if isinstance(sample, _Failure)), None) or default_collate(samples)


class ReadingLoader(DataLoader[Any]):
    """A `DataLoader` whose workers report an unreadable file as one without workers does: by its `DataError` alone.

    Args:
        dataset: map-style.
        num_workers: processes that read, as `workers` starts them; 0 reads in this process.
        options: further arguments of `DataLoader`, but for ``collate_fn``.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int = 0, **options: Any) -> None:
        if options.get("batch_size", 1) is not None:
            options["collate_fn"] = _collate
        super().__init__(_Caught(dataset), **options, **workers(num_workers))

    def __iter__(self) -> Any:
        """Batches, or samples with ``batch_size=None``.

        Raises:
            DataError: the first file that cannot be read.
            ChildProcessError: a worker ended before its time.
        """
        try:
            for batch in super().__iter__():
                if isinstance(batch, _Failure):
                    raise batch.error
                yield batch
        except RuntimeError as error:
            raise (worker_ended(error) or error) from error.__cause__


def worker_ended(error: RuntimeError) -> ChildProcessError | None:
    """In one line, what torch raises for a worker that was killed or left; None for another error.

    Torch's handler of signals raises it wherever the main process is at that moment, also outside of the loader.
    """
    if not re.match(r"DataLoader worker \(pid", str(error)):
        return None
    return ChildProcessError(
        f"a process that reads images ended before its time ({error}); where memory is short, take fewer of them: "
        "--num-workers, 0 for none"
    )


def training_loader(
    dataset: LabeledImages,
    transform: nn.Module,
    *,
    batch_size: int,
    num_iterations: int,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> ReadingLoader:
    """Batches of a training run: images uint8 (b, c, h, w) and labels uint8 or int32 (b, h, w), one pair each.

    The arguments are those of `AugmentedDataset` and `IterationBatches`; `num_workers` and `pin_memory` those of
    `torch.utils.data.DataLoader`. Neither changes the data. Torch runs one thread in each worker, so as many
    workers as there are cores for this rank do not slow each other down.

    Raises:
        DataError: while iterating, from the sample's files; the message names the file.
    """
    batches = IterationBatches(
        len(dataset), batch_size, num_iterations, seed=seed, start=start, rank=rank, world_size=world_size
    )
    return ReadingLoader(
        AugmentedDataset(dataset, transform), num_workers, batch_sampler=batches, pin_memory=pin_memory
    )
