"""What the trainer refuses before it starts, and how a diverging run ends."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from tiny import CPU, scenes, short_train, tiny_recipe
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from emalab import results
from emalab.checkpoints import load_training_state, named_tensors
from emalab.cli import main
from emalab.data import Sample
from emalab.data.shapes import PooledScenes, ShapesDataset
from emalab.recipes import EvalConfig
from emalab.results import read_record
from emalab.trainer import Trainer, TrainingDivergedError, TrainResult, train


class TestErrors:
    def test_folder_of_another_run(self, finished: tuple[Path, TrainResult]) -> None:
        with pytest.raises(FileExistsError, match=r"holds a run already; go on with it \(--resume\), or"):
            short_train(tiny_recipe(), finished[0])

    def test_data_with_another_number_of_classes(self, tmp_path: Path) -> None:
        recipe = tiny_recipe()
        with pytest.raises(ValueError, match=r"predicts 3 classes, shapes-pooled has 5; set model\.num_classes"):
            short_train(replace(recipe, model=replace(recipe.model, num_classes=3)), tmp_path)
        assert not any(tmp_path.iterdir())

    def test_compilation_without_a_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(ValueError, match=r"there is no no-such-compiler on PATH; .*--execution eager"):
            short_train(tiny_recipe(execution="compile"), tmp_path)
        assert not any(tmp_path.iterdir())

    def test_evaluation_data_that_do_not_fit_are_noticed_before_training(self, tmp_path: Path) -> None:
        other = scenes()
        other.spec = replace(other.spec, classes=("a", "b"), palette=((0, 0, 0),) * 2)
        with pytest.raises(ValueError, match="predicts 5 classes, shapes-pooled has 2"):
            train(tiny_recipe(), tmp_path / "wrong", CPU, eval_data=other)
        empty = scenes()
        empty.length = 0
        with pytest.raises(ValueError, match="the split of shapes-pooled has no images"):
            train(tiny_recipe(), tmp_path / "empty", CPU, eval_data=empty)

    def test_batch_that_ranks_cannot_share(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Fabric, "world_size", 3)
        with pytest.raises(ValueError, match=r"optim\.batch_size 4 cannot be shared equally by 3 processes"):
            short_train(tiny_recipe(), tmp_path)

    @pytest.mark.parametrize("name", ["log_every", "checkpoint_every", "devices", "num_nodes"])
    def test_intervals_and_devices_of_nothing(self, name: str) -> None:
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
                replace(CPU, **{name: value})

    def test_a_loss_that_is_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message says where it happened, however rarely the loss is logged; what was saved before is kept."""
        step = Trainer.step
        monkeypatch.setattr(
            Trainer, "step", lambda run, *batch: step(run, *batch) * (math.nan if run.iteration == 5 else 1)
        )
        with pytest.raises(
            TrainingDivergedError, match=r"loss became nan by iteration 8.*lower optim\.lr.*last\.pt holds"
        ):
            short_train(tiny_recipe(), tmp_path, log_every=1000, checkpoint_every=4)
        assert load_training_state(tmp_path / "last.pt")[1]["iteration"] == 4

    @pytest.mark.parametrize(
        ("spoil", "named"),
        [
            (lambda run: run.model.classifier[2].weight, "classifier.2.weight"),
            (lambda run: run.model.get_buffer("reduction.1.running_var"), "reduction.1.running_var"),
            (lambda run: run.model.context.bases, "context.bases"),
            (lambda run: next(iter(run.optimizer.state.values()))["exp_avg"], r"optimizer\.state\.0\.exp_avg"),
        ],
        ids=["weight", "statistic", "bases", "moment"],
    )
    @pytest.mark.parametrize("iteration", [6, 8], ids=["before a checkpoint", "at the end"])
    def test_what_overflows_while_the_loss_is_finite(
        self,
        spoil: Callable[[Trainer], Tensor],
        named: str,
        iteration: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Neither last.pt nor best.pt ever holds it, and the run fails."""
        step = Trainer.step

        def overflow(run: Trainer, *batch: Tensor) -> Tensor:
            loss = step(run, *batch)
            if run.iteration == iteration:
                with torch.no_grad():
                    spoil(run)[0] = math.inf
            return torch.ones_like(loss)

        monkeypatch.setattr(Trainer, "step", overflow)
        recipe = replace(tiny_recipe(), evaluation=EvalConfig(every=2))
        with pytest.raises(TrainingDivergedError, match=rf"\d+ of the \d+ values of .*{named} are NaN or inf"):
            short_train(recipe, tmp_path, checkpoint_every=2)
        for name in ("last.pt", "best.pt"):
            _, state = load_training_state(tmp_path / name)
            assert state["iteration"] < iteration
            assert all(tensor.isfinite().all() for _, tensor in named_tensors(state))
        assert not (tmp_path / "record.json").exists()

    def test_nothing_is_looked_up_after_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Versions, commit and device are asked for before the first step; TensorBoard may fail at any time."""
        trainer = Trainer(tiny_recipe(), tmp_path, CPU, eval_data=scenes())

        def gone(*_: Any, **__: Any) -> Any:
            raise RuntimeError("no longer there")

        for owner, name in (
            (importlib.metadata, "version"),
            (results, "version"),
            (results, "git_commit"),
            (subprocess, "run"),
            (platform, "processor"),
            (platform, "machine"),
            (SummaryWriter, "add_scalar"),
            (SummaryWriter, "close"),
        ):
            monkeypatch.setattr(owner, name, gone)
        with pytest.warns(UserWarning, match="TensorBoard gets no more of this run"):
            result = trainer.fit()
        written = read_record(tmp_path / "record.json")
        assert {key: written[key] for key in result.record} == json.loads(json.dumps(result.record))
        assert result.record["commit"] == trainer.origin["commit"]

    def test_a_recipe_that_no_checkpoint_can_hold(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            short_train(tiny_recipe(init_from=tmp_path / "a.pt"), tmp_path / "run")  # a path where a text belongs
        assert not (tmp_path / "run").exists()

    def test_a_split_without_a_label_is_noticed_before_training(self, tmp_path: Path) -> None:
        class Unlabeled(ShapesDataset):
            def __getitem__(self, index: int) -> Sample:
                sample = super().__getitem__(index)
                return sample._replace(mask=torch.full_like(sample.mask, 255))

        with pytest.raises(ValueError, match="every pixel of a split of shapes-pooled is ignored"):
            train(tiny_recipe(), tmp_path / "run", CPU, eval_data=Unlabeled(PooledScenes(size=64), "val", 3))
        assert not (tmp_path / "run").exists()

    def test_divergence_on_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = "--optim.optimizer sgd --optim.lr 1e38 --optim.warmup 0 --optim.iterations 2 --optim.batch-size 2"
        with pytest.raises(SystemExit) as stopped:
            main(
                [
                    "train",
                    "shapes-tiny",
                    *flags.split(),
                    "--accelerator",
                    "cpu",
                    "--no-progress",
                    "--out",
                    str(tmp_path),
                ]
            )
        assert stopped.value.code == 1
        message = capsys.readouterr().err
        assert re.match(r"emalab: error: (the loss became (nan|inf)|the network diverged: .*) by iteration", message)
        assert message.count("\n") == 1
        assert not list(tmp_path.glob("*.pt"))
