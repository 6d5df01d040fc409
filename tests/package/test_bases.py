"""Bases maintenance: each strategy by its definition, parity with recorded training steps, agreement over ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import group_of, run_ranks
from torch import Tensor

from emalab.bases import (
    Frozen,
    Learned,
    MovingAverage,
    PerImage,
    initial_bases,
    make_maintenance,
    mean_over_images,
)
from emalab.em import em_attention, normalize_bases
from emalab.modules import EMAU

MOMENTUM = np.load(Path(__file__).parents[1] / "reference" / "bases_momentum.npz")

Compare = Callable[..., None]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_initial_bases_are_directions() -> None:
    bases = initial_bases(1000, 8)
    torch.testing.assert_close(bases.norm(dim=-1), torch.ones(1000), rtol=0, atol=1e-5)
    assert bases.mean(dim=0).norm() < 0.2  # no direction preferred: about 1/√1000


class TestStrategies:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 5))
    def test_moving_average(self, seed: int, momentum: float, images: int) -> None:
        old, batch = random(4, 6, seed=seed), random(images, 4, 6, seed=seed + 1)
        mean = sum(batch) / images
        updated = {
            renormalize: MovingAverage(momentum, renormalize).update(old, batch)
            for renormalize in ("none", "batch_mean", "after_mixing")
        }
        plain = momentum * old + (1 - momentum) * mean
        torch.testing.assert_close(updated["none"], plain)
        unit_mean = mean / mean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(updated["batch_mean"], momentum * old + (1 - momentum) * unit_mean)
        torch.testing.assert_close(updated["after_mixing"], plain / (plain.norm(dim=-1, keepdim=True) + 1e-6))

    def test_momentum_weights_the_old_bases(self) -> None:
        old, batch = random(4, 6), random(2, 4, 6, seed=1)
        assert torch.equal(MovingAverage(momentum=1.0).update(old, batch), old)

    def test_per_image_starts_at_evenly_spaced_positions(self) -> None:
        x = random(2, 9, 4)
        start = PerImage().start(torch.zeros(3, 4), x)
        torch.testing.assert_close(start, normalize_bases(x[:, [0, 4, 8]]))
        assert PerImage().start(torch.zeros(20, 4), x).shape == (2, 20, 4)  # more bases than positions

    @pytest.mark.parametrize("strategy", [Frozen(), Learned(), PerImage()])
    def test_no_update(self, strategy: Frozen | Learned | PerImage) -> None:
        assert strategy.update(random(4, 6), random(2, 4, 6)) is None

    @pytest.mark.parametrize("strategy", [Frozen(), Learned(), MovingAverage()])
    def test_starts_from_the_stored_bases(self, strategy: Frozen | Learned | MovingAverage) -> None:
        bases = random(4, 6)
        assert strategy.start(bases, random(2, 9, 6)) is bases

    def test_names(self) -> None:
        assert make_maintenance("moving_average", momentum=0.5, renormalize="after_mixing") == MovingAverage(
            0.5, "after_mixing"
        )
        for name, strategy in {"frozen": Frozen, "learned": Learned, "per_image": PerImage}.items():
            assert type(make_maintenance(name)) is strategy

    def test_errors_name_the_value(self) -> None:
        with pytest.raises(ValueError, match=r"maintenance must be one of moving_average.*got 'ema'"):
            make_maintenance("ema")
        with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
            MovingAverage(momentum=1.5)
        with pytest.raises(ValueError, match=r"renormalize must be one of none.*got 'l2'"):
            MovingAverage(renormalize="l2")  # type: ignore[arg-type]

    def test_half_precision_bases_are_averaged_in_float32(self) -> None:
        batch = torch.full((300, 1, 1), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum would stall at 256
        assert mean_over_images(batch).item() == 1.0
        assert mean_over_images(batch).dtype == torch.float32


class TestNothingFinite:
    """One broken image must not spoil the bases for good."""

    def test_images_that_are_not_finite_do_not_count(self) -> None:
        stored, batch = torch.zeros(2, 3), torch.ones(3, 2, 3)
        batch[1, 0, 0] = torch.nan
        batch[2] = torch.inf
        torch.testing.assert_close(MovingAverage(0.5).update(stored, batch), torch.full((2, 3), 0.5))

    @pytest.mark.parametrize("batch", [torch.full((2, 2, 3), torch.nan), torch.empty(0, 2, 3)], ids=["nan", "empty"])
    def test_a_batch_of_none_changes_nothing(self, batch: Tensor) -> None:
        stored = torch.rand(2, 3)
        assert torch.equal(MovingAverage(0.5).update(stored, batch), stored)


class TestParity:
    """Five training steps recorded from two released implementations; see reference/README.md."""

    def replay(self, maintenance: MovingAverage, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Per-image bases and stored bases after each step, in the layout of the recording."""
        bases = rearrange(torch.from_numpy(MOMENTUM["mu0"]), "1 c k -> k c")
        steps = []
        for batch in torch.from_numpy(MOMENTUM["x"]):
            batch_bases = em_attention(rearrange(batch, "b c h w -> b (h w) c"), bases, **options).bases
            bases = maintenance.update(bases, batch_bases)
            steps.append((rearrange(batch_bases, "b k c -> b c k"), rearrange(bases, "k c -> 1 c k")))
        of_images, stored = (torch.stack(column).numpy() for column in zip(*steps, strict=True))
        return of_images, stored

    def test_official(self, compare: Compare) -> None:
        of_images, stored = self.replay(MovingAverage(0.9, "none"))
        compare("bases of five batches: per image", of_images, MOMENTUM["official/mu_batch"])
        compare("bases of five batches: stored", stored, MOMENTUM["official/buffer"])

    def test_mmsegmentation(self, compare: Compare) -> None:
        _, stored = self.replay(MovingAverage(0.9, "batch_mean"), eps=1e-12, clamp=True)
        compare("bases of five batches: stored by mmsegmentation", stored, MOMENTUM["mmseg/buffer"])
        _, other = self.replay(MovingAverage(0.9, "none"), eps=1e-12, clamp=True)
        assert np.abs(other - MOMENTUM["mmseg/buffer"]).max() > 1e-2


RANKS = 2
STEPS = 3


def train_unit(batches: list[torch.Tensor]) -> torch.Tensor:
    """Stored bases of a unit, the same on every call, after one training forward for each batch."""
    torch.manual_seed(0)
    unit = EMAU(8, num_bases=5).double().train()
    for batch in batches:
        unit(batch)
    return unit.bases


def batches_of(rank: int) -> list[torch.Tensor]:
    """Batches of another size on each rank and step."""
    return [random(1 + rank + step, 8, 3, 4, seed=10 * step + rank) for step in range(STEPS)]


def rank_main(rank: int, folder: str) -> None:
    with group_of(RANKS, rank, Path(folder) / "rendezvous"):
        torch.save(train_unit(batches_of(rank)), f"{folder}/{rank}.pt")


def test_ranks_agree_and_equal_one_process(tmp_path: Path) -> None:
    run_ranks(RANKS, rank_main, str(tmp_path))
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    assert torch.equal(*of_ranks)
    joined = [torch.cat(parts) for parts in zip(*map(batches_of, range(RANKS)), strict=True)]
    torch.testing.assert_close(of_ranks[0], train_unit(joined), rtol=0, atol=1e-12)
    alone = train_unit(batches_of(0))
    assert not torch.allclose(of_ranks[0], alone, atol=1e-3)  # the ranks did exchange something
