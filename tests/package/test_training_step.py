"""A step of the trainer against plain PyTorch: loss, gradient, what moves and what stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CPU, scenes, short_train, tiny_recipe, with_auxiliary_head
from torch import Tensor, nn

from emalab.losses import SegmentationLoss
from emalab.optim import cross_entropy
from emalab.recipes import LossConfig, Recipe
from emalab.trainer import Trainer


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
