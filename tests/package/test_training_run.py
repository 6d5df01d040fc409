"""What a run learns, logs and keeps, and the running average of its weights."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CPU, scenes, short_train, tiny_recipe
from torch import Tensor
from trained import assert_same, losses, train_to_first_checkpoint

from emalab import checkpoints
from emalab.checkpoints import load_training_state
from emalab.evaluation import evaluate
from emalab.optim import poly_lr
from emalab.recipes import recipe_from_dict
from emalab.results import load_records
from emalab.runlog import read_log
from emalab.segmenter import Segmenter
from emalab.studies.training import score_further
from emalab.trainer import Trainer, TrainingDivergedError, TrainResult


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
        recipe = tiny_recipe(optim={"average": 0.9})
        whole = short_train(recipe, tmp_path / "whole")
        train_to_first_checkpoint(recipe, tmp_path / "stopped", monkeypatch)
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


def test_log_names_a_damaged_line(tmp_path: Path) -> None:
    for line in (b"{", b"[1, 2]", b'{"iteration": "a"}', b"\xff\xfe\x00"):
        (tmp_path / "log.jsonl").write_bytes(b'{"iteration": 1}\n' + line + b'\n{"iteration": 3}\n')
        with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is damaged"):
            read_log(tmp_path)
