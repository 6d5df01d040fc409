"""The trainer: a step by hand, runs that are killed and resumed, ranks that share a batch, what stays on the disk."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import processes
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from tiny import CPU, scenes, short_train, tiny_recipe
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from waiting import HANGS, wait_until

from emalab import checkpoints, results
from emalab.checkpoints import CheckpointError, load_training_state, named_tensors
from emalab.cli import main
from emalab.data import Sample
from emalab.data.shapes import PooledScenes, ShapesDataset
from emalab.evaluation import evaluate
from emalab.losses import SegmentationLoss
from emalab.optim import cross_entropy, poly_lr
from emalab.recipes import EvalConfig, LossConfig, Recipe, recipe_from_dict
from emalab.results import load_records, read_record
from emalab.resume import refuse_changes
from emalab.runlog import RunLog, read_log
from emalab.segmenter import Segmenter
from emalab.studies.training import score_further
from emalab.trainer import Trainer, TrainingDivergedError, TrainResult, train


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


def with_auxiliary_head(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, auxiliary_channels=8, concat_input=True))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """An uninterrupted run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, short_train(tiny_recipe(), folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that a test starts: sums in another order would be other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestStep:
    """One step against plain PyTorch."""

    def batch(self) -> tuple[Tensor, Tensor]:
        samples = [scenes(4, size=32)[index] for index in range(4)]
        return torch.stack([s.image for s in samples]), torch.stack([s.mask for s in samples])

    def stepped(self, recipe: Recipe, out: Path) -> tuple[Trainer, nn.Module, Tensor]:
        """The trainer after a step, the network before it, and the loss."""
        trainer, before = Trainer(recipe, out, CPU), Trainer(recipe, out, CPU).model
        trainer.model.train()
        return trainer, before.train(), trainer.step(*self.batch())

    @pytest.mark.parametrize("average", ["valid", "all"])
    def test_is_gradient_descent_on_the_mean_loss(self, average: str, tmp_path: Path) -> None:
        optim = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "weight_decay": 0.01, "head_lr_factor": 2.0}
        trainer, by_hand, loss = self.stepped(tiny_recipe(optim={**optim, "loss_average": average}), tmp_path)
        images, masks = self.batch()
        total, labeled = cross_entropy(by_hand(images), masks)
        assert labeled < masks.numel()
        expected = total / (labeled if average == "valid" else masks.numel())
        torch.testing.assert_close(loss, expected.detach())
        expected.backward()
        for (name, ours), theirs in zip(trainer.model.named_parameters(), by_hand.parameters(), strict=True):
            if theirs.grad is None:
                assert torch.equal(ours, theirs), name
                continue
            decay = 0.01 * theirs if theirs.ndim == 4 else 0
            lr = 0.1 if name.startswith("backbone") else 0.2
            torch.testing.assert_close(ours, theirs - lr * (theirs.grad + decay), msg=name)
        for key in ("context.bases", "reduction.1.running_mean"):
            torch.testing.assert_close(trainer.model.get_buffer(key), by_hand.get_buffer(key))

    def test_the_recipes_loss_is_minimized(self, tmp_path: Path) -> None:
        config = LossConfig(class_weights=(0.2, 1, 2, 1, 1), focal_gamma=2, hardest=0.5, dice_weight=0.5)
        optim = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "weight_decay": 0.0, "loss": config}
        trainer, by_hand, loss = self.stepped(tiny_recipe(optim=optim), tmp_path)
        images, masks = self.batch()
        total, divisor, per_image = SegmentationLoss(config)(by_hand(images), masks)
        expected = total / divisor + per_image
        torch.testing.assert_close(loss, expected.detach())
        expected.backward()
        before, ours = (model.get_parameter("classifier.2.bias") for model in (by_hand, trainer.model))
        torch.testing.assert_close(ours, before - 0.1 * before.grad)

    def test_auxiliary_loss_is_added_with_its_weight(self, tmp_path: Path) -> None:
        optim = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "weight_decay": 0.0, "auxiliary_weight": 0.25}
        trainer, by_hand, loss = self.stepped(with_auxiliary_head(tiny_recipe(optim=optim)), tmp_path)
        images, masks = self.batch()
        (total, labeled), (extra, _) = (cross_entropy(logits, masks) for logits in by_hand.training_logits(images))
        expected = (total + 0.25 * extra) / labeled
        torch.testing.assert_close(loss, expected.detach())
        expected.backward()
        for name in ("backbone.layers.0.weight", "auxiliary.0.0.weight", "auxiliary.2.bias", "classifier.2.weight"):
            before, ours = by_hand.get_parameter(name), trainer.model.get_parameter(name)
            assert before.grad.abs().max() > 0
            torch.testing.assert_close(ours, before - 0.1 * before.grad, msg=name)

    def test_clips_the_whole_gradient(self, tmp_path: Path) -> None:
        optim = {"optimizer": "sgd", "lr": 1.0, "warmup": 0, "weight_decay": 0.0, "clip_norm": 1e-3}
        trainer, before, _ = self.stepped(tiny_recipe(optim=optim), tmp_path)
        moved = [a - b for a, b in zip(trainer.model.parameters(), before.parameters(), strict=True)]
        assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(1e-3, rel=1e-2)

    def test_dropout_follows_from_seed_iteration_and_rank(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def generator_of(seed: int, iteration: int, rank: int) -> int:
            trainer = Trainer(tiny_recipe(seed=seed), tmp_path, CPU)
            trainer.iteration, seeds, backward = iteration, [], trainer._execution.backward
            with monkeypatch.context() as patched:
                patched.setattr(type(trainer.fabric), "global_rank", rank)
                patched.setattr(
                    trainer._execution,
                    "backward",
                    lambda *batch: seeds.append(torch.initial_seed()) or backward(*batch),
                )
                trainer.step(*self.batch())
            return seeds[0]

        places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        found = [generator_of(*place) for place in places]
        assert len(set(found)) == len(places)
        assert found == [generator_of(*place) for place in places]

    def test_frozen_batch_norm_keeps_its_statistics(self, tmp_path: Path) -> None:
        evaluation = replace(tiny_recipe().evaluation, every=1)  # after each of which the network trains again
        recipe = tiny_recipe(optim={"freeze_batch_norm": True, "iterations": 2}, evaluation=evaluation)
        result = short_train(recipe, tmp_path)
        for name, buffer in result.model.named_buffers():
            if name.endswith("running_var"):
                assert torch.equal(buffer, torch.ones_like(buffer))
        assert result.model.context.bases.norm(dim=1).max() < 1 - 1e-4  # the bases did move


class TestRun:
    def test_leaves_checkpoints_log_and_record(self, finished: tuple[Path, TrainResult]) -> None:
        folder, result = finished
        names = {path.name for path in folder.iterdir()}
        assert names == {"last.pt", "best.pt", "record.json", "log.jsonl", "tensorboard"}
        (record,) = load_records(folder, "record.json")
        assert recipe_from_dict(record["recipe"]) == tiny_recipe()
        assert record["scores"]["single scale"] == result.scores["single scale"].to_dict()
        assert record["scores"]["single scale"]["images"] == len(scenes())
        assert (record["devices"], record["seconds"].keys()) == (1, {"training", "evaluation"})
        trained = result.model.state_dict()
        assert not result.model.training
        for name in ("last.pt", "best.pt"):
            loaded = Segmenter.from_pretrained(folder / name).state_dict()
            assert all(torch.equal(value, loaded[key]) for key, value in trained.items())

    def test_log_has_loss_and_schedule(self, finished: tuple[Path, TrainResult]) -> None:
        folder, result = finished
        *lines, last = read_log(folder)
        optim = tiny_recipe().optim
        assert [line["iteration"] for line in lines] == list(range(1, optim.iterations + 1))
        assert [line["lr"] for line in lines] == [poly_lr(i, optim) for i in range(optim.iterations)]
        assert all(line["images_per_second"] > 0 for line in lines)
        assert last == {"iteration": optim.iterations, "single scale": result.scores["single scale"].miou}

    def test_seed_decides_everything(self, finished: tuple[Path, TrainResult], tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path / "same")
        assert_same(tmp_path / "same", finished[0])
        assert losses(tmp_path / "same") == losses(finished[0])
        short_train(tiny_recipe(seed=1), tmp_path / "other")
        assert losses(tmp_path / "other")[1] != losses(finished[0])[1]

    def test_workers_do_not_change_what_is_learned(self, finished: tuple[Path, TrainResult], tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path, num_workers=2)
        assert_same(tmp_path, finished[0])

    def test_evaluations_do_not_change_what_is_learned(
        self, finished: tuple[Path, TrainResult], tmp_path: Path
    ) -> None:
        recipe = tiny_recipe()
        short_train(replace(recipe, evaluation=replace(recipe.evaluation, every=3)), tmp_path)
        assert_same(tmp_path, finished[0])

    def test_what_diverged_is_not_scored(self, tmp_path: Path) -> None:
        trainer = Trainer(tiny_recipe(), tmp_path, CPU, eval_data=scenes())
        trainer.model.get_buffer("context.bases")[0, 0] = math.nan
        with pytest.raises(TrainingDivergedError, match=r"context\.bases"):
            trainer.evaluate()

    def test_what_is_saved_is_what_all_processes_have(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = Trainer(tiny_recipe(), tmp_path, CPU)
        monkeypatch.setattr("emalab.trainer.share_buffers", lambda model: model.context.bases.fill_(0.5))
        trainer.save(trainer.last)
        assert (load_training_state(trainer.last)[1]["model"]["context.bases"] == 0.5).all()

    def test_one_process_of_several_writes(
        self, finished: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = Trainer(tiny_recipe(optim={"iterations": 2}), tmp_path, CPU, eval_data=scenes())
        monkeypatch.setattr(type(trainer.fabric), "is_global_zero", False)
        trainer.fit()
        assert not list(tmp_path.rglob("*"))

    def test_best_is_the_best_evaluation(self, tmp_path: Path) -> None:
        recipe = tiny_recipe()
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, every=2, scales=(1.0, 1.5), flip=True))
        result = short_train(recipe, tmp_path)
        scores = {line["iteration"]: line["miou"] for line in read_log(tmp_path) if "miou" in line}
        assert list(scores) == [2, 4, 6]
        assert list(result.scores) == ["single scale", "multi-scale + flip"]
        scores[8] = result.scores["single scale"].miou
        _, state = load_training_state(tmp_path / "best.pt")
        assert state["best"] == max(scores.values())
        assert state["iteration"] == max(scores, key=scores.__getitem__)

    def test_a_resumed_run_remembers_the_best_score(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given, evaluate = iter([0.2, 0.6, 0.4, 0.1]), Trainer.evaluate
        monkeypatch.setattr(Trainer, "evaluate", lambda self: replace(evaluate(self), miou=next(given)))
        recipe = tiny_recipe(optim={"iterations": 4})
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, every=2))
        short_train(recipe, tmp_path)
        short_train(replace(recipe, optim=replace(recipe.optim, iterations=8)), tmp_path, resume=True)
        assert list(given) == []
        _, state = load_training_state(tmp_path / "best.pt")
        assert (state["iteration"], state["best"]) == (4, 0.6)

    def test_of_equal_scores_the_first_is_the_best(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given, evaluate = iter([0.3, 0.3]), Trainer.evaluate
        monkeypatch.setattr(Trainer, "evaluate", lambda self: replace(evaluate(self), miou=next(given)))
        recipe = tiny_recipe(optim={"iterations": 4})
        short_train(replace(recipe, evaluation=replace(recipe.evaluation, every=2)), tmp_path)
        assert load_training_state(tmp_path / "best.pt")[1]["iteration"] == 2

    def test_the_best_network_of_another_run_does_not_count(
        self, finished: tuple[Path, TrainResult], tmp_path: Path
    ) -> None:
        shutil.copytree(finished[0], tmp_path / "run")
        recipe, state = load_training_state(tmp_path / "run" / "best.pt")
        best = state["best"]
        checkpoints.save_training_state(tmp_path / "run" / "best.pt", recipe, {**state, "best": 2.0})
        assert Trainer(recipe, tmp_path / "run", replace(CPU, resume=True)).best == 2.0
        checkpoints.save_training_state(tmp_path / "run" / "best.pt", recipe, {**state, "best": 2.0, "run": "another"})
        assert Trainer(recipe, tmp_path / "run", replace(CPU, resume=True)).best <= best


class TestAverage:
    """The running average of the weights, ``optim.average``."""

    def floating(self, model: Segmenter) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}

    def test_is_the_average_of_what_training_passes_through(
        self, finished: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The plain mean at first, then exponential: with a decay of 0.75 from step 4 on."""
        passed, step = [], Trainer.step

        def noted(trainer: Trainer, *batch: Tensor) -> Tensor:
            loss = step(trainer, *batch)
            passed.append(self.floating(trainer.model))
            return loss

        monkeypatch.setattr(Trainer, "step", noted)
        result = short_train(tiny_recipe(optim={"average": 0.75}), tmp_path)
        without = finished[1].model.state_dict()
        assert all(torch.equal(value, without[key]) for key, value in passed[-1].items())  # training is the same
        for key, ours in self.floating(result.model).items():
            mean = torch.stack([weights[key] for weights in passed[:4]]).double().mean(0)
            for weights in passed[4:]:
                mean = 0.75 * mean + 0.25 * weights[key]
            torch.testing.assert_close(ours, mean.to(ours), msg=key)
        assert not torch.equal(result.model.context.bases, without["context.bases"])

    def test_is_what_is_scored_kept_and_released(self, tmp_path: Path) -> None:
        result = short_train(tiny_recipe(optim={"average": 0.9}), tmp_path)
        last = Segmenter.from_pretrained(tmp_path / "last.pt")
        best = Segmenter.from_pretrained(tmp_path / "best.pt")
        for loaded in (last, best):
            assert all(map(torch.equal, loaded.state_dict().values(), result.model.state_dict().values()))
        checkpoints.require_one_run(tmp_path / "last.pt", result.record)
        assert evaluate(last, scenes()) == result.scores["single scale"]

    def test_goes_on_where_it_stood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe, save = tiny_recipe(optim={"average": 0.9}), Trainer.save
        whole = short_train(recipe, tmp_path / "whole")
        with monkeypatch.context() as stopped:
            stopped.setattr(Trainer, "save", lambda trainer, path: (save(trainer, path), sys.exit("stopped")))
            with pytest.raises(SystemExit, match="stopped"):
                short_train(recipe, tmp_path / "stopped")
        resumed = short_train(recipe, tmp_path / "stopped", resume=True)
        assert_same(tmp_path / "stopped", tmp_path / "whole")
        assert resumed.record["weights"] == whole.record["weights"]
        states = [load_training_state(tmp_path / name / "last.pt")[1] for name in ("stopped", "whole")]
        assert states[0]["unaveraged"].keys() == states[0]["model"].keys()
        assert all(map(torch.equal, states[0]["unaveraged"].values(), states[1]["unaveraged"].values()))

    def test_is_scored_under_other_settings_in_a_study(self, tmp_path: Path) -> None:
        trainer = Trainer(tiny_recipe(optim={"average": 0.9}), tmp_path, CPU, eval_data=scenes())
        score = trainer.fit().scores["single scale"]
        found = score_further(trainer, {"T=2": {"model.ema.num_iters": 2}}, score)
        config = replace(trainer.recipe.model, ema=replace(trainer.recipe.model.ema, num_iters=2))
        assert found["T=2"] == evaluate(trainer.average.model.with_config(config), scenes())


def wait_before_step_50() -> None:
    """The training goes no further: however late a kill comes, it comes in time."""
    step = Trainer.step

    def held(trainer: Trainer, *batch: Tensor) -> Tensor:
        if trainer.iteration == 49:
            Event().wait()
        return step(trainer, *batch)

    Trainer.step = held


class TestResume:
    @pytest.mark.usefixtures("one_thread")
    def test_a_kill_changes_nothing(self, tmp_path: Path) -> None:
        """SIGKILL at a random moment, then ``--resume``: the same bits as a run that was left alone."""
        flags = "--optim.iterations 60 --optim.batch-size 4 --data.crop-size 32 32 --data.eval-split val/held-out"
        command = ["train", "shapes-tiny", *flags.split(), "--log-every", "1", "--checkpoint-every", "7"]
        command += ["--no-progress", "--accelerator", "cpu", "--data.photometric", "0.5", "--model.dropout", "0.2"]
        main([*command, "--out", str(tmp_path / "whole")])

        killed = tmp_path / "killed"
        moment = random.SystemRandom().randint(1, 40)
        with processes.command([*command, "--out", str(killed)], tmp_path / "errors", wait_before_step_50) as process:
            wait_until(lambda: len(losses_so_far(killed)) >= moment, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "record.json").exists()

        main([*command, "--out", str(killed), "--resume"])
        assert_same(killed, tmp_path / "whole")
        assert losses(killed) == losses(tmp_path / "whole"), f"killed at iteration {moment}"
        records = [load_records(tmp_path / name, "record.json")[0] for name in ("killed", "whole")]
        assert records[0]["scores"] == records[1]["scores"]

    def test_auxiliary_head_goes_on_where_it_stood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe, save = with_auxiliary_head(tiny_recipe()), Trainer.save
        whole = short_train(recipe, tmp_path / "whole")
        with monkeypatch.context() as stopped:
            stopped.setattr(Trainer, "save", lambda trainer, path: (save(trainer, path), sys.exit("stopped")))
            with pytest.raises(SystemExit, match="stopped"):
                short_train(recipe, tmp_path / "stopped")
        assert load_training_state(tmp_path / "stopped" / "last.pt")[1]["iteration"] == 4
        resumed = short_train(recipe, tmp_path / "stopped", resume=True)
        assert_same(tmp_path / "stopped", tmp_path / "whole")
        assert resumed.scores == whole.scores
        loaded = Segmenter.from_pretrained(tmp_path / "stopped" / "last.pt")
        assert torch.equal(loaded.auxiliary[2].weight, whole.model.auxiliary[2].weight)

    def test_a_full_disk_leaves_the_last_checkpoint(
        self, finished: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save, saved = torch.save, []

        def fail_at_the_second(content: dict[str, Any], path: Path) -> None:
            if saved:
                path.write_bytes(b"PK half a checkpoint")
                raise OSError(28, "No space left on device")
            saved.append(path)
            save(content, path)

        with monkeypatch.context() as full:
            full.setattr(checkpoints.torch, "save", fail_at_the_second)
            with pytest.raises(OSError, match="No space left"):
                short_train(tiny_recipe(), tmp_path)
        assert load_training_state(tmp_path / "last.pt")[1]["iteration"] == 4
        assert not list(tmp_path.glob(".*"))
        short_train(tiny_recipe(), tmp_path, resume=True)
        assert_same(tmp_path, finished[0])

    def test_later_lines_of_the_log_are_dropped(self, tmp_path: Path) -> None:
        """A run that died logged more than it saved, its last line half."""
        with RunLog(tmp_path, 0) as log:
            for iteration in (1, 2, 3, 4):
                log.write(iteration, loss=float(iteration))
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"iteration": 5, "lo')
        assert len(read_log(tmp_path)) == 4
        with RunLog(tmp_path, 2) as log:
            log.write(3, loss=0.5)
        assert losses(tmp_path) == {1: 1, 2: 2, 3: 0.5}

    def test_goes_on_counting(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seconds, the name of the run, what has changed, and the scale of gradients in half precision."""
        records, loaded = [], []
        precision = type(Trainer(tiny_recipe(), tmp_path / "other", CPU).fabric.strategy.precision)
        monkeypatch.setattr(precision, "state_dict", lambda self: {"scale": 4.0})
        monkeypatch.setattr(precision, "load_state_dict", lambda self, state: loaded.append(state))
        for iterations in (2, 3, 4):
            recipe = tiny_recipe(optim={"iterations": iterations})
            records.append(short_train(recipe, tmp_path / "run", resume=True).record)
        assert loaded == [{"scale": 4.0}] * 2
        assert len({record["run"] for record in records}) == 1
        seconds = [record["seconds"]["training"] for record in records]
        assert seconds == sorted(seconds)
        _, state = load_training_state(tmp_path / "run" / "last.pt")
        assert Trainer(recipe, tmp_path / "run", replace(CPU, resume=True)).seconds == state["seconds"] > 0
        assert records[-1]["changes"] == [f"optim.iterations {i} → {i + 1} at iteration {i}" for i in (2, 3)]

    def test_starts_anew_where_there_is_nothing(self, finished: tuple[Path, TrainResult], tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path / "new", resume=True)
        assert_same(tmp_path / "new", finished[0])

    def test_of_a_finished_run_only_scores(self, tmp_path: Path) -> None:
        first = short_train(tiny_recipe(), tmp_path)
        again = short_train(tiny_recipe(), tmp_path, resume=True)
        assert again.scores == first.scores
        assert again.record["seconds"]["training"] == first.record["seconds"]["training"]
        assert losses(tmp_path).keys() == set(range(1, 9))

    def test_how_to_score_may_change(self, tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path)
        recipe = replace(tiny_recipe(), evaluation=EvalConfig(every=0, scales=(1.0, 2.0)))
        assert set(short_train(recipe, tmp_path, resume=True).scores) == {"single scale", "multi-scale"}

    def test_longer(self, tmp_path: Path) -> None:
        """A finished run goes on; its record says where the schedule changed."""
        short_train(tiny_recipe(), tmp_path)
        result = short_train(tiny_recipe(optim={"iterations": 10}), tmp_path, resume=True)
        assert load_training_state(tmp_path / "last.pt")[1]["iteration"] == 10
        assert result.record["changes"] == ["optim.iterations 8 → 10 at iteration 8"]
        with pytest.raises(CheckpointError, match=r"at iteration 10, .*optim\.iterations: 10 there, 8 here"):
            short_train(tiny_recipe(), tmp_path, resume=True)

    def test_shortened_to_where_it_stands(self) -> None:
        """And no further: the schedule of what has been done was that of a longer run."""
        before, short = tiny_recipe(), tiny_recipe(optim={"iterations": 4})
        changes = refuse_changes(Path("last.pt"), before, {"iteration": 4}, short, "")
        assert changes == ["optim.iterations 8 → 4 at iteration 4"]
        with pytest.raises(CheckpointError, match=r"optim\.iterations: 8 there, 4 here"):
            refuse_changes(Path("last.pt"), before, {"iteration": 5}, short, "")

    def test_where_the_data_have_moved(self, tmp_path: Path) -> None:
        """A folder's content counts, and not where it lies."""
        for name, images in (("here", "abcd"), ("there", "abcd"), ("other", "abce")):
            write_folder(tmp_path / name, images)
        recipe = tiny_recipe(data={"train_split": "train", "eval_split": "train"}, optim={"iterations": 2})
        recipe = replace(recipe, model=replace(recipe.model, num_classes=2))

        def run(folder: str, **options: Any) -> TrainResult:
            data = replace(recipe.data, name=f"{tmp_path / folder}/")
            return train(replace(recipe, data=data), tmp_path / "run", replace(CPU, **options))

        first = run("here")
        assert run("there", resume=True).scores == first.scores
        with pytest.raises(CheckpointError, match="was trained on other images or classes than"):
            run("other", resume=True)

    def test_damaged_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "last.pt").write_bytes(b"PK half a checkpoint")
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
            short_train(tiny_recipe(), tmp_path, resume=True)

    def test_with_another_recipe(self, finished: tuple[Path, TrainResult]) -> None:
        with pytest.raises(
            CheckpointError, match=r"another recipe \(optim\.lr: 0\.003 there, 0\.1 here; seed: 0 there, 1 here\)"
        ):
            short_train(tiny_recipe(seed=1, optim={"lr": 0.1}), finished[0], resume=True)


def write_folder(folder: Path, images: str) -> None:
    """A data set of one's own with two classes and an image for each letter."""
    for name in ("images", "masks"):
        (folder / name / "train").mkdir(parents=True)
    (folder / "classes.yaml").write_text("classes: [plain, striped]\n")
    for number, letter in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "train" / f"{letter}.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(folder / "masks" / "train" / f"{letter}.png")


def losses_so_far(folder: Path) -> list[str]:
    log = folder / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def test_two_ranks_are_one_process_with_their_batches_together(tmp_path: Path) -> None:
    """Under torchrun, in double precision. Crops are padded at random, so ranks count different labeled pixels."""
    flags = (
        "--precision 64-true --optim.optimizer sgd --optim.lr 0.05 --optim.warmup 0 --optim.iterations 6 "
        "--optim.batch-size 4 --data.crop-size 40 40 --data.scale-range 0.4 1.0 "
        "--accelerator cpu --no-progress --log-every 1"
    )
    command = ["train", "shapes-tiny", *flags.split(), "--out"]
    main([*command, str(tmp_path / "one")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "emalab"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *command, str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr[-3000:]

    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert one["context.bases"].dtype == torch.float64
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-11, atol=1e-12, msg=key)

    first, second = (load_records(tmp_path / name, "record.json")[0] for name in ("one", "two"))
    assert (first["devices"], second["devices"]) == (1, 2)
    assert second["scores"] == first["scores"]  # from 200 images, each counted once
    assert second["scores"]["single scale"]["images"] == 200

    assert done.stdout.count("single scale: mIoU") == 1
    logs = [[line.get("loss", 0.0) for line in read_log(tmp_path / name)] for name in ("one", "two")]
    # That of the whole batch, on which all ranks stop or go on. Fabric hands out losses in float32.
    assert logs[1] == pytest.approx(logs[0], rel=3e-7)
    assert len(logs[0]) == 7


def test_devices_without_torchrun(tmp_path: Path) -> None:
    """Fabric starts the second process itself."""
    flags = "--accelerator cpu --devices 2 --no-progress --optim.iterations 2"
    flags += " --data.eval-split val/held-out"
    command = [sys.executable, "-m", "emalab", "train", "shapes-tiny", *flags.split(), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_records(tmp_path / "run", "record.json")[0]["devices"] == 2
    assert done.stdout.count("single scale: mIoU") == 1


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


def test_log_names_a_damaged_line(tmp_path: Path) -> None:
    for line in (b"{", b"[1, 2]", b'{"iteration": "a"}', b"\xff\xfe\x00"):
        (tmp_path / "log.jsonl").write_bytes(b'{"iteration": 1}\n' + line + b'\n{"iteration": 3}\n')
        with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is damaged"):
            read_log(tmp_path)
