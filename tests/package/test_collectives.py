"""Sums over processes, in eager and in compiled code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import group_of, run_ranks
from tiny import tiny_recipe

from emalab.bases import mean_over_images
from emalab.collectives import several_processes, sum_over_processes
from emalab.execution import Execution, TrainingStep


def of_rank(rank: int) -> torch.Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def of_two_processes(rank: int, meeting: Path) -> None:
    weights = [of_rank(10), of_rank(11)]  # by which each process's loss weights the sum
    bases = torch.cat([of_rank(seed)[None] for seed in range(5)])
    expected = mean_over_images(bases)
    in_one_graph: Any = partial(torch.compile, backend="aot_eager", fullgraph=True)
    with group_of(2, rank, meeting):
        assert several_processes()
        for function in (sum_over_processes, in_one_graph(sum_over_processes)):
            values = of_rank(rank).requires_grad_()
            total = function(values.T)  # not contiguous
            torch.testing.assert_close(total.T, of_rank(0) + of_rank(1), rtol=0, atol=0)  # one addition, in any order
            (total.T * weights[rank]).sum().backward()
            torch.testing.assert_close(values.grad, weights[0] + weights[1], rtol=0, atol=0)
        mine = bases[:2] if rank == 0 else bases[2:]  # batches of different sizes
        # Four additions of sums below 25 round by at most 25 · 2⁻⁵³ each, before a division by five.
        torch.testing.assert_close(in_one_graph(mean_over_images)(mine), expected, rtol=0, atol=5e-15)


def test_sums_gradients_and_bases_of_two_processes(tmp_path: Path) -> None:
    """In eager and in compiled code; all in one start of the processes, which takes longest."""
    run_ranks(2, of_two_processes, tmp_path / "meeting")


def test_alone() -> None:
    assert not several_processes()


@pytest.mark.parametrize(("world_size", "parts", "recorded"), [(2, 1, True), (2, 2, False), (1, 1, False)])
def test_what_is_compiled_on_several_gpus(
    world_size: int, parts: int, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step and not its wrapper, and recorded as a CUDA graph unless gradients of micro-batches are added up."""
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda target, **_: compiled.append(target) or target)
    fabric: Any = SimpleNamespace(world_size=world_size, device=torch.device("cuda"), setup=lambda *both: both)
    recipe = tiny_recipe(execution="compile")
    recipe = replace(recipe, optim=replace(recipe.optim, accumulate_grad_batches=parts))
    step = TrainingStep(torch.nn.Identity(), None, 0.0)  # type: ignore[arg-type]
    execution = Execution(fabric, recipe, step, None)  # type: ignore[arg-type]
    assert (compiled == [step]) == (world_size == 1)
    assert ("forward" in vars(step)) == (world_size > 1)
    assert execution._to_record is recorded
