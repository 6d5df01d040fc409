"""What the chapters on evaluation and training measure with: counts, positions, memory, comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab import benchmarks, protocols
from torch import Tensor

from emalab import get_recipe
from emalab.data import get_spec
from emalab.metrics import SegmentationMetric


def test_counts_and_scores_are_those_of_the_package() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, masks = torch.randint(0, 5, (2, 30, 8, 9), generator=generator)
    masks[:, 0] = 255
    counts = protocols.count(lambda x: x, labels, masks)
    metric = SegmentationMetric(get_spec("shapes-pooled"))
    metric.update(labels, masks)
    assert counts.shape == (30, 5, 5)
    assert torch.equal(counts.sum(0).long(), metric.confusion())
    assert protocols.miou(counts.sum(0)).item() == pytest.approx(100 * metric.compute().miou)


def test_a_class_that_is_nowhere_is_left_out() -> None:
    counts = torch.zeros(3, 3)
    counts[0, 0], counts[0, 1] = 3, 1  # class 1 is invented, class 2 is nowhere
    assert protocols.iou(counts).isnan().tolist() == [False, False, True]
    assert protocols.miou(counts).item() == pytest.approx(100 * (3 / 4 + 0) / 2)


@pytest.mark.parametrize(("side", "window"), [(129, 49), (65, 65), (97, 33), (100, 33)])
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 2 / 3])
def test_windows_cover_the_axis(side: int, window: int, overlap: float) -> None:
    begins = protocols.starts(side, window, overlap)
    covered = np.zeros(side, bool)
    for begin in begins:
        covered[begin : begin + window] = True
    assert covered.all()
    assert begins[-1] + window == side


def test_a_displacement_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = [torch.rand(64, 80, generator=generator) for _ in range(2)]
    for move in (-5, 0, 7):
        moved = [x.roll((move, move), (0, 1)) for x in reference]
        assert protocols.displacement(moved, reference) == pytest.approx(move, abs=0.1)


def test_logits_of_the_shipped_network_are_drawn_too_far_up_and_left() -> None:
    assert protocols.center_error(320, 16) == -7.5  # drawn at 16 i + 7.5, centered at 16 i + 15
    assert protocols.center_error(321, 16) > protocols.center_error(320, 16)


def test_the_peak_counts_what_is_alive_together() -> None:
    with protocols.PeakMemory() as one_after_the_other:
        for _ in range(3):
            torch.zeros(1000, dtype=torch.uint8)
    with protocols.PeakMemory() as together:
        kept = [torch.zeros(1000, dtype=torch.uint8) for _ in range(3)]
    assert (one_after_the_other.peak, together.peak, len(kept)) == (1000, 3000, 3)


def test_a_redrawn_split_has_its_size() -> None:
    assert (protocols.redraw(40, rounds=7).sum(1) == 40).all()
    weights = protocols.redraw(40, rounds=2000, size=10)
    assert (weights.sum(1) == 10).all()
    assert weights.mean().item() == 10 / 40
    assert weights.mean(0).min() > 0.15  # every image is drawn: 0.25 on average, with a deviation of 0.011


def test_the_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert protocols.half_width(values) == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)


def test_differences_are_named_by_their_paths() -> None:
    recipe = get_recipe("voc-r101")
    other = replace(recipe, name="mine", seed=1, optim=replace(recipe.optim, lr=0.1))
    assert benchmarks.differences(other, recipe) == {"seed": (1, 0), "optim.lr": (0.1, recipe.optim.lr)}


def test_only_a_whole_full_run_is_compared(tmp_path: Path) -> None:
    (benchmark,) = benchmarks.choose([get_recipe("coco-stuff-10k-r101")], None, tmp_path).values()
    assert not benchmark.full
    assert not benchmark.whole
    (row,) = benchmark.compared({"single scale": 0.4})
    assert row == {"recipe": "coco-stuff-10k-r101", "protocol": "on 10k test", "published": 39.9}


def test_confusions_count_each_image_by_itself(tmp_path: Path) -> None:
    (benchmark,) = benchmarks.choose([get_recipe("voc-r101")], None, tmp_path).values()

    def background(image: Tensor) -> Tensor:
        return torch.zeros(image.shape[-2:], dtype=torch.long)

    counts = list(benchmarks.confusions(benchmark.eval_data, background))
    for matrix, sample in zip(counts, benchmark.eval_data, strict=True):
        labeled = sample.mask.as_subclass(Tensor)
        assert matrix[:, 0].tolist() == [int((labeled == k).sum()) for k in range(21)]
        assert matrix.sum() == (labeled != 255).sum()
    shares = benchmarks.pixel_shares(benchmark.eval_data)
    assert shares == pytest.approx((sum(counts).sum(1) / sum(counts).sum()).numpy())  # type: ignore[union-attr]
