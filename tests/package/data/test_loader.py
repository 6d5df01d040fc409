import gc
import multiprocessing
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import make_camvid
from torch import nn
from torchvision import tv_tensors

from emalab.data import LabeledImages, Sample, load_dataset
from emalab.data.camvid import CAMVID
from emalab.data.errors import UnreadableFileError
from emalab.data.loader import AugmentedDataset, IterationBatches, ReadingLoader, SampleKey, training_loader
from emalab.data.transforms import TrainTransform

sizes = st.integers(1, 40)


class Numbered(LabeledImages):
    """Image i has the value i everywhere."""

    spec = CAMVID

    def __init__(self, size: int = 7) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 12, 12), index, dtype=torch.uint8)
        return Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0] % 11), f"{index}")


def batches(**changes) -> list[list[SampleKey]]:
    return list(IterationBatches(**({"num_samples": 7, "batch_size": 4, "num_iterations": 9} | changes)))


def load(**changes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    settings = {"batch_size": 4, "num_iterations": 6, "seed": 5} | changes
    return list(training_loader(Numbered(), TrainTransform((8, 9), photometric=0.3), **settings))


def assert_same(a, b) -> None:
    assert len(a) == len(b) > 0
    for (images, masks), (other_images, other_masks) in zip(a, b, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(masks, other_masks)


@given(num_samples=sizes, batch_size=sizes, seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(num_samples, batch_size, seed):
    iterations = -(-3 * num_samples // batch_size)
    stream = [key.index for batch in batches(**locals_of(num_samples, batch_size, iterations, seed)) for key in batch]
    for epoch in range(3):
        assert sorted(stream[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


def locals_of(num_samples: int, batch_size: int, num_iterations: int, seed: int) -> dict[str, int]:
    return {"num_samples": num_samples, "batch_size": batch_size, "num_iterations": num_iterations, "seed": seed}


@given(num_samples=sizes, batch_size=st.integers(1, 6), world_size=st.integers(1, 5), seed=st.integers(0, 99))
def test_global_batch_does_not_depend_on_world_size(num_samples, batch_size, world_size, seed):
    alone = batches(num_samples=num_samples, batch_size=batch_size * world_size, seed=seed)
    ranks = [
        batches(num_samples=num_samples, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)]
    assert together == alone
    assert {len(part) for parts in ranks for part in parts} == {batch_size}  # no rank ends before another


@given(start=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_resumed_run_continues_the_stream(start, seed):
    assert batches(seed=seed, start=start) == batches(seed=seed)[start:]
    assert len(IterationBatches(7, 4, 9, start=start)) == 9 - start


def test_epochs_seeds_and_augmentations_differ():
    run = batches(num_samples=50, batch_size=50, num_iterations=3)
    assert [key.index for key in run[0]] != [key.index for key in run[1]]
    assert [key.index for key in run[0]] != [key.index for key in batches(num_samples=50, batch_size=50, seed=1)[0]]
    assert max(Counter(key.seed for batch in run for key in batch).values()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 0},
        {"batch_size": 0},
        {"world_size": 0},
        {"start": 10},
        {"start": -1},
        {"rank": 2, "world_size": 2},
        {"seed": -1},
    ],
)
def test_bad_settings_are_named(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        batches(**changes)


def test_augmentation_leaves_the_generator_as_it_was():
    data = AugmentedDataset(Numbered(), TrainTransform((8, 8), photometric=0.5))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data[SampleKey(3, 17)]
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_depends_on_the_key_alone():
    data = AugmentedDataset(Numbered(), TrainTransform((8, 8), photometric=0.5))
    torch.manual_seed(0)
    first = data[SampleKey(3, 17)]
    torch.rand(5)
    assert_same([first], [data[SampleKey(3, 17)]])
    others = [data[SampleKey(3, seed)][1] for seed in range(5)]
    assert any(not torch.equal(first[1], other) for other in others)


def test_batch_kinds():
    images, masks = load(num_iterations=1)[0]
    assert (images.shape, images.dtype, type(images)) == ((4, 3, 8, 9), torch.uint8, torch.Tensor)
    assert (masks.shape, masks.dtype, type(masks)) == ((4, 8, 9), torch.uint8, torch.Tensor)


def test_workers_do_not_change_the_data():
    assert_same(load(num_workers=0), load(num_workers=2))


def test_resumption_does_not_change_the_data():
    assert_same(load(start=4, num_workers=1), load()[4:])


def test_ranks_share_the_global_batch():
    ranks = [load(batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    joined = [tuple(torch.cat(pair) for pair in zip(*parts, strict=True)) for parts in zip(*ranks, strict=True)]
    assert_same(joined, load())


@pytest.mark.parametrize("batch_size", [None, 3])
def test_an_error_in_a_worker_is_the_same_line_as_without_workers(tmp_path, batch_size):
    """For batches of training, and for the single samples that are scored."""
    data = load_dataset("camvid", "train", make_camvid(tmp_path))
    path = data.pairs[1].image
    path.write_bytes(path.read_bytes()[:-100])

    def message(num_workers: int) -> str:
        loader = ReadingLoader(data, num_workers, batch_size=batch_size)
        if batch_size:
            loader = training_loader(data, nn.Identity(), batch_size=3, num_iterations=1, num_workers=num_workers)
        with pytest.raises(UnreadableFileError) as caught:
            list(loader)
        return str(caught.value)

    assert message(1) == message(0)
    assert message(0).startswith(f"{path}: cannot be read")
    assert "\n" not in message(0)


class Collecting(Numbered):
    """Every access collects garbage."""

    def __getitem__(self, index: int) -> Sample:
        gc.collect()
        return super().__getitem__(index)


def test_workers_leave_their_parents_garbage_alone(tmp_path):
    """A CUDA tensor that is freed in a forked process would abort it."""

    class Cycle:
        def __init__(self, log: Path) -> None:
            self.log, self.itself = log, self

        def __del__(self) -> None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()}\n")

    gc.disable()
    try:
        Cycle(tmp_path / "log")
        list(training_loader(Collecting(), TrainTransform((8, 9)), batch_size=4, num_iterations=2, num_workers=1))
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "log").read_text().split() == [str(os.getpid())]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork safely")
def test_workers_are_forked_in_a_process_that_was_spawned():
    """Such a process spawns its own children by default, and each would get a copy of a dataset in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_ways) == ("spawn", "fork")


def _ways() -> tuple[str, str]:
    loader = training_loader(Numbered(), TrainTransform((8, 9)), batch_size=4, num_iterations=2, num_workers=1)
    return multiprocessing.get_start_method(), loader.multiprocessing_context.get_start_method()
