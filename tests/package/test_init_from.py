"""Runs that start from another run's weights: what is carried over, what starts anew, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CPU, scenes, short_train, tiny_recipe, tiny_segmenter

from emalab.checkpoints import (
    CheckpointError,
    export_segmenter,
    save_training_state,
)
from emalab.evaluation import evaluate
from emalab.initial_weights import load_initial_weights
from emalab.recipes import EvalConfig, Recipe
from emalab.segmenter import EMAConfig, Segmenter
from emalab.trainer import Trainer, train

CLASSIFIER = ["classifier.2.weight", "classifier.2.bias"]


def release(path: Path, model: Segmenter) -> Path:
    recipe = tiny_recipe(model=replace(model.config))
    export_segmenter(model, path / "net.safetensors", recipe, {}, torch.float32)
    return path / "net.safetensors"


class TestWeights:
    def test_all_of_them_where_the_classes_agree(self, tmp_path: Path) -> None:
        trained, model = tiny_segmenter(seed=1), tiny_segmenter(seed=2)
        assert load_initial_weights(model, release(tmp_path, trained)) == []
        theirs = trained.state_dict()
        assert [key for key, value in model.state_dict().items() if not torch.equal(value, theirs[key])] == []

    @pytest.mark.parametrize("classes", [3, 7])
    def test_all_but_the_classifier_where_they_do_not(self, classes: int, tmp_path: Path) -> None:
        trained, model = tiny_segmenter(seed=1), tiny_segmenter(seed=2, num_classes=classes)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        assert load_initial_weights(model, release(tmp_path, trained)) == CLASSIFIER
        theirs = trained.state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key] if key in CLASSIFIER else theirs[key]), key

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ema": EMAConfig(num_bases=9)}, r"context\.bases is \(8, 32\) there and \(9, 32\) here"),
            ({"context": "none"}, r"context\.bases is \(8, 32\) there and absent here"),
            ({"context": "none", "num_classes": 3}, r"context\.bases is \(8, 32\) there and absent here"),
            ({"channels": 16}, r"reduction\.0\.weight is \(32, 64, 1, 1\) there and \(16, 64, 1, 1\) here"),
        ],
    )
    def test_of_another_network(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        path, model = release(tmp_path, tiny_segmenter(seed=1)), tiny_segmenter(seed=2, **changes)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=f"another network: {message}; only the numbers of classes and"):
            load_initial_weights(model, path)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_channels_that_happen_to_be_as_many_as_the_classes(self, tmp_path: Path) -> None:
        """Tensors of one shape are weights, whatever the number of their rows."""
        trained, model = tiny_segmenter(seed=1, num_classes=32), tiny_segmenter(seed=2, num_classes=5)
        assert load_initial_weights(model, release(tmp_path, trained)) == CLASSIFIER


class TestRun:
    def started(self, recipe: Recipe, out: Path) -> Trainer:
        return Trainer(recipe, out, CPU, eval_data=scenes())

    def test_from_a_checkpoint(self, tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path / "first")
        recipe = tiny_recipe(seed=3, init_from=str(tmp_path / "first/last.pt"))
        trainer = self.started(recipe, tmp_path / "second")
        theirs = Segmenter.from_pretrained(tmp_path / "first/last.pt").state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in trainer.model.state_dict().items())
        assert (trainer.iteration, trainer.optimizer.state_dict()["state"]) == (0, {})

    def test_from_the_run_of_another_recipe(self, tmp_path: Path) -> None:
        """By its name: the run beside this one with the same seed, so that a chain needs no paths."""
        short_train(tiny_recipe(seed=2), tmp_path / "shapes-tiny-seed2")
        recipe = tiny_recipe(name="next", seed=2, init_from="shapes-tiny")
        short_train(recipe, tmp_path / "next-seed2")
        resumed = short_train(recipe, tmp_path / "next-seed2", resume=True)
        (tmp_path / "shapes-tiny-seed2/last.pt").unlink()
        again = short_train(recipe, tmp_path / "next-seed2", resume=True)  # it has weights of its own by now
        assert again.scores == resumed.scores

    def test_backbone_weights_are_not_asked_for(self, tmp_path: Path) -> None:
        recipe = tiny_recipe(init_from=str(release(tmp_path, tiny_segmenter(seed=1))))
        recipe = replace(recipe, model=replace(recipe.model, backbone_weights="gone.pt"))
        trainer = self.started(recipe, tmp_path / "run")
        assert trainer.model.config == recipe.model

    def test_before_the_other_run(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as refused:
            self.started(tiny_recipe(name="next", seed=2, init_from="shapes-tiny"), tmp_path / "next-seed2")
        assert "next starts from the weights of shapes-tiny, and there is no " in str(refused.value)
        assert "train that first (emalab train shapes-tiny --seed 2), or name a checkpoint with --init" in str(
            refused.value
        )
        assert not list(tmp_path.iterdir())

    def test_before_the_other_run_is_finished(self, tmp_path: Path) -> None:
        state = {"model": tiny_segmenter().state_dict(), "iteration": 3}
        save_training_state(tmp_path / "shapes-tiny-seed0/last.pt", tiny_recipe(), state)
        with pytest.raises(CheckpointError, match="is at iteration 3 of 8; go on with it"):
            self.started(tiny_recipe(name="next", init_from="shapes-tiny"), tmp_path / "next-seed0")
        assert not (tmp_path / "next-seed0").exists()

    def test_no_such_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pt"):
            self.started(tiny_recipe(init_from=str(tmp_path / "gone.pt")), tmp_path / "run")


class TestScoredStride:
    recipe = replace(
        tiny_recipe(optim={"iterations": 2, "batch_size": 2}),
        evaluation=EvalConfig(every=1, output_stride=8, batch_size=2),
        model=replace(tiny_recipe().model, backbone="resnet18", output_stride=16),
    )

    def test_is_that_of_the_recipe(self, tmp_path: Path) -> None:
        """In training, at its end and in the record, with the weights as they are at the moment."""
        data = scenes(2)
        trainer = Trainer(self.recipe, tmp_path, CPU, eval_data=data)
        result = trainer.fit()
        assert (trainer.model.config.output_stride, trainer.scored.config.output_stride) == (16, 8)
        fresh = Segmenter.from_pretrained(tmp_path / "last.pt")
        at_8, at_16 = evaluate(fresh.with_output_stride(8), data), evaluate(fresh, data)
        assert result.scores["single scale"].to_dict() == at_8.to_dict() != at_16.to_dict()

    def test_that_the_backbone_cannot_have_is_refused_before_training(self, tmp_path: Path) -> None:
        recipe = replace(self.recipe, evaluation=EvalConfig(output_stride=4))
        with pytest.raises(ValueError, match=r"output_stride of resnet18 must be one of .* got 4"):
            train(recipe, tmp_path, CPU, eval_data=scenes(2))
