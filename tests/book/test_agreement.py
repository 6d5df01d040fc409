"""The script that measures what agreement on the bases is worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiments import agreement as measure_agreement
from tiny import tiny_recipe

from emalab.bases import MovingAverage
from emalab.studies.training import Datasets
from emalab.trainer import RunOptions, train


def test_only_the_first_share_is_heard() -> None:
    bases, batch = torch.randn(4, 8), torch.randn(6, 4, 8)
    for ranks in (1, 2, 3, 6):
        ours = measure_agreement.FirstShare(0.7, ranks=ranks).update(bases, batch)
        torch.testing.assert_close(ours, MovingAverage(0.7).update(bases, batch[: 6 // ranks]))


def test_shares_are_even() -> None:
    with pytest.raises(ValueError, match="4 ranks cannot share a batch of 6 images evenly"):
        measure_agreement.FirstShare(ranks=4).update(torch.randn(4, 8), torch.randn(6, 4, 8))


def test_one_rank_trains_like_the_trainer(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    result = train(recipe, tmp_path / "run", RunOptions(accelerator="cpu", progress=False))
    options = RunOptions(accelerator="cpu", progress=False)
    momentum = MovingAverage(recipe.model.ema.momentum)
    score = measure_agreement.score(recipe, momentum, options, Datasets(None))
    assert score == 100 * result.scores["single scale"].miou
