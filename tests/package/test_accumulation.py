"""Gradient accumulation: a step in micro-batches is the step on all its images, and what cannot be so is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric.plugins import MixedPrecision
from processes import TWO_RANKS, run_module
from tiny import CPU, scenes, short_train, tiny_recipe, tiny_segmenter
from torch import Tensor, nn
from trained import assert_same, final_state, train_to_first_checkpoint

from emalab.accumulation import one_update_of_bases
from emalab.bases import MovingAverage, make_maintenance
from emalab.cli import main
from emalab.execution import Execution
from emalab.losses import SegmentationLoss
from emalab.modules import EMAU
from emalab.optim import poly_lr
from emalab.recipes import LossConfig, OptimConfig, Recipe
from emalab.run_checks import check_run
from emalab.runlog import read_log
from emalab.trainer import Trainer

WEIGHTS = (0.2, 1.0, 2.0, 1.0, 1.0)
LOSSES = {
    "plain": LossConfig(),
    "weights": LossConfig(class_weights=WEIGHTS, focal_gamma=2),
    "hardest": LossConfig(hardest=0.3),
    "dice": LossConfig(dice_weight=0.5),
    "lovasz": LossConfig(lovasz_weight=0.5),
}


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    """Images, and labels of which each image lacks another part."""
    samples = [scenes(size, size=32)[index] for index in range(size)]
    masks = torch.stack([sample.mask.as_subclass(Tensor) for sample in samples])
    for index in range(size):
        masks[index, : 4 * index] = 255
    return torch.stack([sample.image.as_subclass(Tensor) for sample in samples]), masks


def recipe_in(parts: int, **optim: Any) -> Recipe:
    """A recipe whose eight images a step pass in so many micro-batches, computed in double precision."""
    settings = {"optimizer": "sgd", "lr": 0.1, "warmup": 0, "batch_size": 8, "freeze_batch_norm": True}
    return tiny_recipe(optim={**settings, "accumulate_grad_batches": parts, **optim}, precision="64-true")


def stepped(recipe: Recipe, out: Path, *batches: tuple[Tensor, Tensor]) -> tuple[Trainer, Tensor]:
    """The trainer after two steps, or those on ``batches``, and the loss of the last."""
    trainer = Trainer(recipe, out, CPU)
    trainer._train_mode()
    for images, masks in batches or [batch()] * 2:
        loss = trainer.step(images, masks)
    return trainer, loss


def assert_close(one: Trainer, other: Trainer) -> None:
    """All weights, bases and running statistics, to rounding in double precision."""
    theirs = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("loss", LOSSES)
def test_is_a_step_on_all_images(loss: str, average: str, tmp_path: Path) -> None:
    """Every image has another number of labeled pixels, so a mean of the micro-batches' means would differ."""
    settings = {"loss": LOSSES[loss], "loss_average": average, "clip_norm": 0.05}
    whole, expected = stepped(recipe_in(1, **settings), tmp_path / "whole")
    before = Trainer(recipe_in(1), tmp_path / "before", CPU).model.classifier[2].bias
    assert (whole.model.classifier[2].bias - before).abs().max() > 1e-4
    for parts in (2, 4):
        trainer, found = stepped(recipe_in(parts, **settings), tmp_path / str(parts))
        torch.testing.assert_close(found, expected, rtol=5e-7, atol=0)  # Fabric hands out losses in float32
        assert_close(trainer, whole)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_divisor_follows_from_labels(loss: str) -> None:
    masks = batch()[1]
    logits = torch.randn(8, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    criterion = SegmentationLoss(LOSSES[loss])
    torch.testing.assert_close(criterion.divisor(masks), criterion(logits, masks).divisor, check_dtype=False)


def test_labels_in_one_micro_batch_only(tmp_path: Path) -> None:
    """The others add nothing, and nothing is divided by zero."""
    images, masks = batch()
    masks[2:] = 255
    trainers = [stepped(recipe_in(parts), tmp_path / str(parts), (images, masks))[0] for parts in (1, 4)]
    assert_close(*trainers)
    assert trainers[1].model.classifier[2].bias.isfinite().all()


def test_batch_norm_sees_one_micro_batch_at_a_time(tmp_path: Path) -> None:
    recipe = recipe_in(2, freeze_batch_norm=False, lr=0.0)
    trainer, _ = stepped(recipe, tmp_path, batch())
    by_hand = Trainer(recipe, tmp_path, CPU).model.train()
    for images in batch()[0].chunk(2):
        by_hand(images)
    for key in ("reduction.1.running_mean", "reduction.1.running_var"):
        torch.testing.assert_close(trainer.model.get_buffer(key), by_hand.get_buffer(key))
    assert trainer.model.reduction[1].num_batches_tracked == 2


class TestBases:
    """The paper mixes in the mean over the images of a step, once."""

    @pytest.mark.parametrize("maintenance", ["moving_average", "frozen", "per_image"])
    def test_one_update_a_step(self, maintenance: str) -> None:
        torch.manual_seed(0)
        unit = EMAU(8, num_bases=4, maintenance=maintenance).double().train()
        before, features = unit.bases.clone(), torch.rand(6, 8, 5, 5, dtype=torch.float64)
        reached = unit.attend(features).bases  # every image from the same bases
        expected = make_maintenance(maintenance).update(before, reached)
        strategy = unit.maintenance
        with one_update_of_bases(nn.Sequential(unit)):
            for part in features.split((2, 3, 1)):
                unit(part)
                assert torch.equal(unit.bases, before)
        torch.testing.assert_close(unit.bases, before if expected is None else expected)
        assert unit.maintenance is strategy

    def test_each_forward_updates_them_elsewhere(self) -> None:
        unit = EMAU(8, num_bases=4).train()
        before = unit.bases.clone()
        with one_update_of_bases(unit):
            pass
        assert torch.equal(unit.bases, before)
        unit(torch.rand(2, 8, 5, 5))
        assert not torch.equal(unit.bases, before)

    def test_learned_bases_get_the_gradient_of_all(self, tmp_path: Path) -> None:
        def learned(parts: int) -> Recipe:
            recipe = recipe_in(parts)
            ema = replace(recipe.model.ema, maintenance="learned", grad="unroll")
            return replace(recipe, model=replace(recipe.model, ema=ema))

        assert_close(*(stepped(learned(parts), tmp_path / str(parts))[0] for parts in (1, 4)))

    def test_an_error_in_between_changes_nothing(self) -> None:
        unit = EMAU(8, num_bases=4).train()
        before = unit.bases.clone()

        def fail_at_the_second() -> None:
            with one_update_of_bases(unit):
                unit(torch.rand(2, 8, 5, 5))
                raise OSError("no more data")

        with pytest.raises(OSError, match="no more data"):
            fail_at_the_second()
        assert torch.equal(unit.bases, before)
        assert isinstance(unit.maintenance, MovingAverage)


class Scaled(MixedPrecision):
    """The scaler of float16's gradients, with everything computed in double precision: scaling is exact."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def forward_context(self) -> Any:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        return data

    convert_output = convert_input


class TestScaler:
    """Float16 on a GPU multiplies losses, so that small gradients do not vanish, and divides before a step."""

    def trainer(self, parts: int, out: Path) -> Trainer:
        trainer = Trainer(recipe_in(parts, clip_norm=0.05), out, CPU)
        trainer.fabric.strategy._precision = trainer.fabric._precision = Scaled()
        trainer._train_mode()
        return trainer

    def test_scales_all_micro_batches_alike(self, tmp_path: Path) -> None:
        plain, _ = stepped(recipe_in(1, clip_norm=0.05), tmp_path / "plain", batch())
        scaled = self.trainer(4, tmp_path / "scaled")
        seen: list[float] = []
        parameter = scaled.model.classifier[2].bias
        parameter.register_hook(lambda gradient: seen.append(gradient.abs().max().item()))
        scaled.step(*batch())
        assert len(seen) == 4
        assert max(seen) > 1  # they were scaled
        assert_close(scaled, plain)

    def test_one_micro_batch_that_overflows_skips_the_step(self, tmp_path: Path) -> None:
        trainer = self.trainer(4, tmp_path)
        before = trainer.model.classifier[2].bias.clone()
        calls: list[int] = []

        def overflow(gradient: Tensor) -> Tensor:
            calls.append(1)
            return gradient * (float("inf") if len(calls) == 2 else 1)

        trainer.model.classifier[2].bias.register_hook(overflow)
        trainer.step(*batch())
        assert torch.equal(trainer.model.classifier[2].bias, before)
        assert trainer.fabric.strategy.precision.state_dict()["scale"] == 2.0**9
        trainer.step(*batch())
        assert not torch.equal(trainer.model.classifier[2].bias, before)


class TestRun:
    def test_resumes_bit_for_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = tiny_recipe(optim={"accumulate_grad_batches": 2})
        recipe = replace(recipe, model=replace(recipe.model, dropout=0.2))
        short_train(recipe, tmp_path / "whole")
        train_to_first_checkpoint(recipe, tmp_path / "stopped", monkeypatch)
        short_train(recipe, tmp_path / "stopped", resume=True)
        assert_same(tmp_path / "stopped", tmp_path / "whole")

    def test_the_schedule_counts_steps(self, tmp_path: Path) -> None:
        recipe = tiny_recipe(optim={"accumulate_grad_batches": 2})
        result = short_train(recipe, tmp_path)
        rates = [line["lr"] for line in read_log(tmp_path) if "lr" in line]
        assert rates == [poly_lr(iteration, recipe.optim) for iteration in range(8)]
        assert result.record["recipe"]["optim"]["accumulate_grad_batches"] == 2

    def test_a_number_of_micro_batches_is_part_of_the_recipe(self, tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path)
        with pytest.raises(ValueError, match=r"optim\.accumulate_grad_batches: 1 there, 2 here"):
            short_train(tiny_recipe(optim={"accumulate_grad_batches": 2}), tmp_path, resume=True)


COUNTING = """
import sys
from pathlib import Path
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from emalab.cli import main
from emalab.trainer import Trainer

counted, prepare = [], Trainer._train_mode

def count(state, bucket):
    counted.append(bucket.index())
    return allreduce_hook(None, bucket)

def register(trainer):
    if not hasattr(trainer, "counting"):
        trainer.counting = True
        trainer._execution.module._forward_module.register_comm_hook(None, count)
    prepare(trainer)

Trainer._train_mode = register
main(sys.argv[1:])
print(f"exchanges: {len(counted) / len(set(counted))}", flush=True)
"""


def test_two_ranks_exchange_gradients_once_a_step(tmp_path: Path) -> None:
    """Two ranks with two micro-batches each are one process with all images together."""
    flags = (
        "--precision 64-true --optim.optimizer sgd --optim.lr 0.05 --optim.warmup 0 --optim.iterations 3 "
        "--optim.batch-size 8 --optim.freeze-batch-norm --data.crop-size 40 40 --data.scale-range 0.4 1.0 "
        "--data.eval-split val/held-out --accelerator cpu --no-progress --log-every 1"
    )
    command = ["train", "shapes-tiny", *flags.split(), "--out"]
    main([*command, str(tmp_path / "one")])
    program = tmp_path / "counting.py"
    program.write_text(COUNTING)
    two_parts = ["--optim.accumulate-grad-batches", "2"]
    printed = run_module(*TWO_RANKS, str(program), *command, str(tmp_path / "two"), *two_parts)
    assert printed.count("exchanges: 3.0") == 2, printed
    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-11, atol=1e-12, msg=key)


class TestExecutions:
    def test_compiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The compiler's own backend without code generation: what is traced, and how often."""
        compiled: list[int] = []

        def count(graph: Any, inputs: Any) -> Any:
            compiled.append(1)
            return graph.forward

        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda step, **_: real(step, backend=count))
        eager, _ = stepped(recipe_in(4), tmp_path / "eager")
        torch._dynamo.reset()
        trainer = Trainer(replace(recipe_in(4), execution="compile"), tmp_path / "compiled", CPU)
        trainer._train_mode()
        after_each, backward = list[int](), Execution._backward

        def counted(execution: Execution, *arguments: Any) -> Tensor:
            loss = backward(execution, *arguments)
            after_each.append(len(compiled))
            return loss

        monkeypatch.setattr(Execution, "_backward", counted)
        for _ in range(2):
            trainer.step(*batch())
        assert after_each == after_each[:1] * 8
        assert after_each[0] > 0
        assert_close(trainer, eager)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_compiled_into_graphs_only_without(self, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A CUDA graph would overwrite the gradients of one micro-batch with those of the next."""
        given: dict[str, Any] = {}
        monkeypatch.setattr(torch, "compile", lambda step, options: given.update(options) or step)
        fabric: Any = SimpleNamespace(world_size=1, device=torch.device("cuda"), setup=lambda *both: both)
        recipe: Any = replace(recipe_in(parts), execution="compile")
        Execution(fabric, recipe, None, None)  # type: ignore[arg-type]
        assert given == {"triton.cudagraphs": parts == 1}

    def test_a_cuda_graph_is_refused(self) -> None:
        fabric: Any = SimpleNamespace(world_size=1, device=torch.device("cuda"))
        recipe = replace(recipe_in(2), execution="cuda_graph")
        with pytest.raises(ValueError, match=r"optim\.accumulate_grad_batches 2 take --execution eager or compile"):
            check_run(recipe, fabric, scenes(), scenes())


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"accumulate_grad_batches": 0}, r"optim\.accumulate_grad_batches must be at least 1, got 0"),
        ({"batch_size": 8, "accumulate_grad_batches": 3}, "batch_size 8 cannot be divided into 3 micro-batches"),
        ({"batch_size": 4, "accumulate_grad_batches": 4}, "4 in 4 micro-batches is too small .*; take at least 8 or"),
        (
            {"accumulate_grad_batches": 2, "loss": LossConfig(class_weights=WEIGHTS, hardest=0.5)},
            "class_weights and optim.loss.hardest cannot be combined",
        ),
    ],
)
def test_what_is_refused(optim: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(model=replace(tiny_segmenter().config, num_classes=5), optim=OptimConfig(**optim))


def test_ranks_that_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    fabric: Any = SimpleNamespace(world_size=4, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"8 cannot be shared equally by 4 processes with 4 micro-batches each"):
        check_run(recipe_in(4), fabric, scenes(), scenes())
