"""What a run leaves in its folder, and runs that end before they are finished."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tiny import short_train
from torch import Tensor

from emalab.checkpoints import load_training_state
from emalab.recipes import Recipe
from emalab.runlog import read_log
from emalab.trainer import Trainer


def final_state(folder: Path) -> dict[str, Tensor]:
    """Everything in last.pt that decides how training goes on: weights, bases, statistics, optimizer."""
    _, state = load_training_state(folder / "last.pt")
    moments = {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entry in state["optimizer"]["state"].items()
        for name, value in entry.items()
    }
    return {**state["model"], **moments, "iteration": torch.tensor(state["iteration"])}


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    first, second = final_state(one), final_state(other)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def losses(folder: Path) -> dict[float, float]:
    return {line["iteration"]: line["loss"] for line in read_log(folder) if "loss" in line}


def train_to_first_checkpoint(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends as soon as its first checkpoint is saved."""
    save = Trainer.save
    with monkeypatch.context() as stopped:
        stopped.setattr(Trainer, "save", lambda trainer, path: (save(trainer, path), sys.exit("stopped")))
        with pytest.raises(SystemExit, match="stopped"):
            short_train(recipe, folder)
