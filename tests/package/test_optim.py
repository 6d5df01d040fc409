"""Schedule, parameter groups and loss."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_segmenter
from torch import nn

from emalab.optim import cross_entropy, parameter_groups, poly_lr
from emalab.recipes import OptimConfig
from emalab.segmenter_config import ContextName, EMAConfig


class TestPolyLR:
    def test_falls_from_lr_to_zero(self) -> None:
        config = OptimConfig(lr=0.1, power=0.9, iterations=101)
        assert poly_lr(0, config) == 0.1
        assert poly_lr(50, config) == pytest.approx(0.1 * 0.5**0.9)
        assert poly_lr(75, config) == pytest.approx(0.1 * 0.25**0.9)
        assert poly_lr(100, config) == 0

    def test_warm_up_is_a_factor_that_rises_to_one(self) -> None:
        warm, cold = OptimConfig(iterations=50, warmup=4), OptimConfig(iterations=50)
        factors = [poly_lr(i, warm) / poly_lr(i, cold) for i in range(6)]
        assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])

    def test_held_for_some_iterations(self) -> None:
        """Counted from 1: with h = 4, iterations 1 to 3 keep lr, 4 to 7 share a rate, and the last of 12 has 0."""
        config = OptimConfig(lr=1.0, power=1.0, iterations=12, lr_hold=4)
        rates = [poly_lr(i, config) for i in range(12)]
        assert rates == pytest.approx([1, 1, 1, *[2 / 3] * 4, *[1 / 3] * 4, 0])

    def test_a_run_of_one_step_learns(self) -> None:
        assert poly_lr(0, OptimConfig(lr=0.1, iterations=1)) == 0.1


@pytest.mark.parametrize("context", get_args(ContextName))
class TestParameterGroups:
    config = OptimConfig(weight_decay=0.1, head_lr_factor=10.0)

    def test_cover_what_can_learn_once(self, context: str) -> None:
        model = tiny_segmenter(context=context)
        grouped = [p for group in parameter_groups(model, self.config) for p in group["params"]]
        assert len(grouped) == len({id(p) for p in grouped})
        assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}

    def test_decay_convolution_weights_alone(self, context: str) -> None:
        model = tiny_segmenter(context=context)
        convs = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad}
        for group in parameter_groups(model, self.config):
            assert {id(p) in convs for p in group["params"]} == {group["weight_decay"] == 0.1}

    def test_head_learns_faster(self, context: str) -> None:
        model = tiny_segmenter(context=context)
        head = {id(p) for p in model.head.parameters()}
        for group in parameter_groups(model, self.config):
            assert {id(p) in head for p in group["params"]} == {group["lr_factor"] == 10.0}

    def test_biases_learn_faster(self, context: str) -> None:
        model = tiny_segmenter(context=context)
        head = {id(p) for p in model.head.parameters()}
        biases = {id(p) for name, p in model.named_parameters() if name.endswith(".bias") and p.requires_grad}
        assert biases & head
        assert biases - head
        groups = parameter_groups(model, OptimConfig(head_lr_factor=10.0, bias_lr_factor=2.0))
        factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
        assert factors == {p: (10.0 if p in head else 1.0) * (2.0 if p in biases else 1.0) for p in factors}
        assert biases < factors.keys()


def test_learned_bases_learn_without_decay() -> None:
    model = tiny_segmenter(ema=EMAConfig(num_bases=8, maintenance="learned", grad="unroll"))
    groups = parameter_groups(model, OptimConfig(weight_decay=0.1))
    (home,) = [group for group in groups if any(p is model.context.bases for p in group["params"])]
    assert home["weight_decay"] == 0


def test_the_first_convolution_of_the_unit_stays_random() -> None:
    """With ``grad="stop"`` no gradient reaches it, so weight decay must not either."""
    model = tiny_segmenter()
    grouped = {id(p) for group in parameter_groups(model, OptimConfig()) for p in group["params"]}
    assert not grouped & {id(p) for p in model.context.conv_in.parameters()}


class TestCrossEntropy:
    logits = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 5, (2, 4, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def test_sum_and_count_make_the_mean(self) -> None:
        masks = self.masks.clone()
        masks[0, :2] = 255
        total, labeled = cross_entropy(self.logits, masks)
        assert labeled == 2 * 4 * 6 - 12
        torch.testing.assert_close(total / labeled, F.cross_entropy(self.logits, masks.long(), ignore_index=255))

    def test_nothing_labeled_is_no_loss(self) -> None:
        total, labeled = cross_entropy(self.logits, torch.full_like(self.masks, 255))
        assert (total, labeled) == (0, 0)
