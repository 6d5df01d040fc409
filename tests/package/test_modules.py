"""The modules: EMAU against a recorded unit and its documented behavior; NonLocal2d's two paths against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from emalab.bases import Maintenance
from emalab.em import em_attention
from emalab.modules import EMAU, ConvNormAct, NonLocal2d
from emalab.pyramid import PyramidPooling

UNIT = np.load(Path(__file__).parents[1] / "reference" / "emau_unit.npz")
MODES = ["gaussian", "embedded_gaussian", "dot_product"]

Compare = Callable[..., None]


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class TestEMAU:
    def test_by_hand(self) -> None:
        """The unit spelled out with the functional core."""
        unit = EMAU(8, num_bases=5, num_iters=2, scale=3.0).eval()
        inputs = features(2, 8, 4, 6)
        x = F.conv2d(inputs, unit.conv_in.weight, unit.conv_in.bias)
        context = em_attention(rearrange(x, "b c h w -> b (h w) c"), unit.bases, num_iters=2, scale=3.0).reconstruction
        context = rearrange(context, "b (h w) c -> b c h w", h=4).relu()
        torch.testing.assert_close(unit(inputs), (inputs + unit.conv_out(context)).relu())

    def test_attention_maps(self) -> None:
        unit = EMAU(8, num_bases=5)
        attended = unit.attend(features(2, 8, 4, 6))
        maps = rearrange(attended.responsibilities, "b (h w) k -> b k h w", h=4)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, 4, 6))

    @pytest.mark.parametrize("num_iters", [1, 3])
    def test_iterations_may_change_on_a_trained_unit(self, num_iters: int) -> None:
        unit = EMAU(8, num_bases=5, num_iters=2).eval()
        unit.num_iters = num_iters
        inputs = features(2, 8, 4, 6)
        x = rearrange(unit.conv_in(inputs), "b c h w -> b (h w) c")
        expected = em_attention(x, unit.bases, num_iters=num_iters).bases
        torch.testing.assert_close(unit.attend(inputs).bases, expected)

    @pytest.mark.parametrize("grad", ["last", "unroll"])
    def test_scale_may_be_learned(self, grad: Any) -> None:
        """λ = exp(log_scale): the same unit at the start, with the derivative that a difference quotient finds."""
        inputs = features(2, 8, 4, 6, dtype=torch.float64)
        torch.manual_seed(0)
        unit = EMAU(8, num_bases=5, num_iters=2, scale=3.0, grad=grad, learn_scale=True).double().eval()
        torch.manual_seed(0)
        fixed = EMAU(8, num_bases=5, num_iters=2, scale=3.0, grad=grad).double().eval()
        fixed.scale = float(unit.log_scale.exp())
        torch.testing.assert_close(unit(inputs), fixed(inputs))
        if grad == "unroll":  # "last" leaves out what earlier iterations contribute
            loss = unit(inputs).square().sum()
            (slope,) = torch.autograd.grad(loss, unit.log_scale)
            losses = []
            for step in (1e-5, -1e-5):
                fixed.scale = float((unit.log_scale + step).exp())
                losses.append(fixed(inputs).square().sum())
            torch.testing.assert_close(slope, (losses[0] - losses[1]) / 2e-5, rtol=1e-5, atol=1e-8)
        else:
            unit(inputs).square().sum().backward()
            assert unit.log_scale.grad.abs() > 0

    def test_a_scale_that_cannot_be_learned(self) -> None:
        with pytest.raises(ValueError, match=r"a learned λ needs grad=.*; got grad='stop', scale=1.0"):
            EMAU(8, learn_scale=True)
        with pytest.raises(ValueError, match="a scale above 0; got grad='last', scale=0"):
            EMAU(8, learn_scale=True, grad="last", scale=0)

    def test_the_first_convolution_may_be_frozen(self) -> None:
        unit = EMAU(8, num_bases=5, grad="unroll", freeze_input=True)
        unit(features(2, 8, 4, 6)).sum().backward()
        assert unit.conv_in.weight.grad is None
        assert EMAU(8, grad="unroll").conv_in.weight.requires_grad

    def test_output_keeps_the_input_by_its_residual(self) -> None:
        unit = EMAU(8).eval()
        nn.init.zeros_(unit.conv_out[1].weight)
        inputs = features(2, 8, 4, 6)
        assert torch.equal(unit(inputs), inputs.relu())

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_memory_format(self, channels_last: bool, training: bool) -> None:
        unit = EMAU(16, num_bases=5).train(training)
        inputs = features(2, 16, 5, 7)
        before = {name: tensor.clone() for name, tensor in unit.state_dict().items()}
        expected = unit(inputs)
        unit.load_state_dict(before)
        if channels_last:
            unit, inputs = unit.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
        torch.testing.assert_close(unit(inputs), expected)

    def test_bfloat16_and_autocast(self) -> None:
        unit, inputs = EMAU(16, num_bases=5).eval(), features(2, 16, 5, 7)
        exact = unit(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = unit(inputs)
        low = unit.to(torch.bfloat16)(inputs.bfloat16())
        assert low.dtype == torch.bfloat16
        for output in (mixed, low):
            error = (output.float() - exact).norm() / exact.norm()
            assert 0 < error < 2e-2

    def test_bases_stay_float32_under_autocast(self) -> None:
        unit = EMAU(16, num_bases=5).train()
        before = unit.bases.clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            unit(features(2, 16, 5, 7))
        assert unit.bases.dtype == torch.float32
        assert not torch.equal(unit.bases, before)
        assert unit.bases.isfinite().all()

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_compiles_without_graph_breaks(self, mode: str) -> None:
        unit, inputs = EMAU(16, num_bases=5).train(mode == "train"), features(2, 16, 5, 7)
        before = {name: tensor.clone() for name, tensor in unit.state_dict().items()}
        expected, bases = unit(inputs), unit.bases.clone()
        unit.load_state_dict(before)
        compiled = torch.compile(unit, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), expected)
        torch.testing.assert_close(unit.bases, bases)

    def test_state_dict_round_trip(self) -> None:
        trained, inputs = EMAU(8, num_bases=5), features(2, 8, 4, 6)
        trained(inputs)
        fresh = EMAU(8, num_bases=5)
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh.eval()(inputs), trained.eval()(inputs))
        assert "bases" in trained.state_dict()

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"channels": 0}, "channels.*at least 1; got 0"),
            ({"num_bases": 0}, "num_bases.*at least 1; got 8, 0"),
            ({"num_iters": -1}, "num_iters.*at least 1; got 8, 64 and -1"),
            ({"norm": "L2"}, "norm must be one of.*'L2'"),
            ({"grad": "all"}, "grad must be one of.*'all'"),
            ({"maintenance": "ema"}, "maintenance must be one of.*'ema'"),
            ({"momentum": 2.0}, r"\[0, 1\], got 2.0"),
            ({"renormalize": "l2"}, "renormalize must be one of.*'l2'"),
            ({"maintenance": "learned"}, "learned bases get no gradient.*'stop'.*unroll"),
            ({"maintenance": "learned", "grad": "last"}, "learned bases get no gradient.*'last'.*unroll"),
        ],
    )
    def test_errors_name_the_value(self, arguments: dict[str, Any], names: str) -> None:
        with pytest.raises(ValueError, match=names):
            EMAU(**{"channels": 8, **arguments})

    def test_print(self) -> None:
        assert "num_bases=5, num_iters=3, maintenance=MovingAverage" in repr(EMAU(8, num_bases=5))


class TestMaintenanceInTheUnit:
    def test_moving_average_in_training_alone(self) -> None:
        unit, inputs = EMAU(8, num_bases=5, momentum=0.7), features(3, 8, 4, 6)
        before = unit.bases.clone()
        mean = reduce(unit.attend(inputs).bases, "b k c -> k c", "mean")
        assert torch.equal(unit.bases, before)  # looking changes nothing
        unit.eval()(inputs)
        assert torch.equal(unit.bases, before)
        unit.train()(inputs)
        torch.testing.assert_close(unit.bases, 0.7 * before + 0.3 * mean)

    @pytest.mark.parametrize("maintenance", ["frozen", "per_image"])
    def test_stored_bases_never_change(self, maintenance: str) -> None:
        unit = EMAU(8, num_bases=5, maintenance=maintenance)
        before = unit.bases.clone()
        unit(features(3, 8, 4, 6))
        assert torch.equal(unit.bases, before)
        assert "bases" in dict(unit.named_buffers())

    def test_per_image_ignores_the_stored_bases(self) -> None:
        unit, inputs = EMAU(8, num_bases=5, maintenance="per_image").eval(), features(3, 8, 4, 6)
        expected = unit(inputs)
        unit.bases.zero_()
        assert torch.equal(unit(inputs), expected)

    def test_learned_bases_move_under_sgd(self) -> None:
        unit = EMAU(8, num_bases=5, maintenance="learned", grad="unroll")
        assert isinstance(unit.bases, nn.Parameter)
        before = unit.bases.detach().clone()
        optimizer = torch.optim.SGD(unit.parameters(), lr=0.1)
        output = unit(features(3, 8, 4, 6))
        assert torch.equal(unit.bases, before)  # the forward pass alone does not
        output.square().sum().backward()
        optimizer.step()
        assert (unit.bases - before).abs().max() > 1e-4

    def test_a_strategy_of_your_own(self) -> None:
        class Keep(Maintenance):
            def update(self, bases: Tensor, batch_bases: Tensor) -> Tensor:
                return batch_bases[0]

        unit, inputs = EMAU(8, num_bases=5, maintenance=Keep()), features(3, 8, 4, 6)
        expected = unit.attend(inputs).bases[0]
        unit(inputs)
        torch.testing.assert_close(unit.bases, expected)

    def test_gradients_reach_the_first_convolution_unless_stopped(self) -> None:
        inputs = features(3, 8, 4, 6)
        for grad in ("last", "unroll"):
            unit = EMAU(8, num_bases=5, grad=grad)
            unit(inputs).square().sum().backward()
            assert unit.conv_in.weight.grad.abs().max() > 0
        stopped = EMAU(8, num_bases=5)
        assert not stopped.conv_in.weight.requires_grad

    def test_a_stopped_convolution_never_moves(self) -> None:
        """Not even where the optimizer has it, as in the authors' code: no gradient is not a gradient of zeros."""
        unit, inputs = EMAU(8, num_bases=5), features(3, 8, 4, 6)
        unit.conv_in.requires_grad_(True)
        before = {name: parameter.detach().clone() for name, parameter in unit.named_parameters()}
        optimizer = torch.optim.SGD(unit.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            unit(inputs).square().mean().backward()
            optimizer.step()
        still = {name for name, parameter in unit.named_parameters() if torch.equal(parameter, before[name])}
        assert still == {"conv_in.weight", "conv_in.bias"}


class TestParity:
    """A whole unit recorded in float64 from the authors' released implementation; see reference/README.md."""

    @staticmethod
    def rename(key: str) -> str:
        module, _, name = key.rpartition(".")
        return {"conv1": "conv_in", "conv2.0": "conv_out.0", "conv2.1": "conv_out.1"}[module] + f".{name}"

    @pytest.fixture
    def unit(self) -> EMAU:
        unit = EMAU(32, num_bases=8, num_iters=3).double()
        unit.conv_out[1].momentum = 3e-4
        state = {
            self.rename(key[3:]): torch.from_numpy(UNIT[key])
            for key in UNIT.files
            if key.startswith("sd/") and key != "sd/mu"
        }
        state["bases"] = rearrange(torch.from_numpy(UNIT["sd/mu"]), "1 c k -> k c")
        unit.load_state_dict(state)
        return unit

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_output_and_bases(self, unit: EMAU, mode: str, compare: Compare) -> None:
        unit.train(mode == "train")
        x = torch.from_numpy(UNIT["x"])
        bases = rearrange(unit.attend(x).bases, "b k c -> b c k")
        compare(f"EMA unit, {mode} mode: bases", bases, UNIT[f"{mode}/mu"])
        compare(f"EMA unit, {mode} mode: output", unit(x).detach(), UNIT[f"{mode}/out"])

    def test_gradients(self, unit: EMAU, compare: Compare) -> None:
        x = torch.from_numpy(UNIT["x"]).requires_grad_()
        (unit.train()(x) * torch.from_numpy(UNIT["w"])).sum().backward()
        gradients = {name: p.grad for name, p in unit.named_parameters()} | {"x": x.grad}
        for key in UNIT.files:
            if key.startswith("grad/"):
                name = "x" if key == "grad/x" else self.rename(key[5:])
                compare(f"EMA unit: gradient of {name}", gradients.pop(name), UNIT[key])
        assert gradients == {self.rename(key): None for key in UNIT["grad_none"]}

    def test_statistics_after_training(self, unit: EMAU, compare: Compare) -> None:
        unit.train()(torch.from_numpy(UNIT["x"]))
        state = unit.state_dict()
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            compare(f"EMA unit: {name} after a batch", state[f"conv_out.1.{name}"], UNIT[f"after/conv2.1.{name}"])


class TestNonLocal2d:
    @staticmethod
    def block(mode: str, **arguments: Any) -> NonLocal2d:
        """A block that is not the identity: the last batch norm gets weights."""
        block = NonLocal2d(12, mode=mode, **arguments).double().eval()
        nn.init.normal_(block.conv_out[1].weight)
        return block

    @pytest.mark.parametrize("scale", [None, 1.0])
    @pytest.mark.parametrize("mode", MODES)
    def test_paths_agree(self, mode: str, scale: float | None) -> None:
        block = self.block(mode, scale=scale)
        inputs = features(2, 12, 5, 7, dtype=torch.float64).requires_grad_()
        results = []
        for block.path in ("sdpa", "explicit"):
            output = block(inputs)
            results.append((output, *torch.autograd.grad(output.square().sum(), [inputs, block.g.weight])))
        for fast, plain in zip(*results, strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(results[0][0], inputs)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("path", ["sdpa", "explicit"])
    def test_a_new_block_is_the_identity(self, mode: str, path: str) -> None:
        inputs = features(2, 12, 5, 7)
        assert torch.equal(NonLocal2d(12, mode=mode, path=path)(inputs), inputs)

    @pytest.mark.parametrize("mode", ["gaussian", "embedded_gaussian"])
    def test_rows_are_distributions(self, mode: str) -> None:
        attention = self.block(mode).attention(features(2, 12, 5, 7, dtype=torch.float64))
        assert attention.shape == (2, 35, 35)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 35, dtype=torch.float64))

    @pytest.mark.parametrize("mode", MODES)
    def test_by_its_definition(self, mode: str) -> None:
        """Two loops over positions, as equation (1) of the paper reads."""
        block, inputs = self.block(mode, scale=0.5), features(1, 12, 3, 3, dtype=torch.float64)
        theta, phi, g = (f(inputs).flatten(2)[0].T for f in (block.theta, block.phi, block.g))
        expected = torch.empty_like(g)
        for i in range(9):
            scores = torch.stack([theta[i] @ phi[j] for j in range(9)])
            weights = scores / 9 if mode == "dot_product" else (0.5 * scores).exp() / (0.5 * scores).exp().sum()
            expected[i] = sum(weights[j] * g[j] for j in range(9))
        context = block.conv_out(expected.T.reshape(1, -1, 3, 3))
        torch.testing.assert_close(block(inputs), inputs + context)

    @pytest.mark.parametrize("mode", MODES)
    def test_positions_commute(self, mode: str) -> None:
        block, inputs = self.block(mode), features(2, 12, 5, 7, dtype=torch.float64)
        torch.testing.assert_close(block(inputs.flip(2)), block(inputs).flip(2))

    def test_default_scale_is_one_over_root_channels(self) -> None:
        assert NonLocal2d(64, 16).scale == 0.25
        assert NonLocal2d(64, 16, "gaussian").scale == 0.125
        assert NonLocal2d(64, 16, scale=1.0).scale == 1.0

    @pytest.mark.parametrize("mode", MODES)
    def test_compiles_without_graph_breaks(self, mode: str) -> None:
        block, inputs = self.block(mode), features(2, 12, 5, 7, dtype=torch.float64)
        torch.testing.assert_close(torch.compile(block, backend="eager", fullgraph=True)(inputs), block(inputs))

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"channels": 0}, "channels.*got 0"),
            ({"channels": 8, "inner_channels": 0}, "inner_channels.*got 8 and 0"),
            ({"channels": 8, "mode": "concatenation"}, "mode must be one of gaussian.*'concatenation'"),
            ({"channels": 8, "path": "flash"}, "path must be one of sdpa, explicit; got 'flash'"),
        ],
    )
    def test_errors_name_the_value(self, arguments: dict[str, Any], names: str) -> None:
        with pytest.raises(ValueError, match=names):
            NonLocal2d(**arguments)


class TestPyramidPooling:
    def test_by_hand(self) -> None:
        pyramid, inputs = PyramidPooling(8, (1, 2)).eval(), features(2, 8, 4, 6)
        mean = reduce(inputs, "b c h w -> b c 1 1", "mean")
        cells = reduce(inputs, "b c (i h) (j w) -> b c i j", "mean", i=2, j=2)
        expected = [F.interpolate(pyramid.grids[i][1](x), (4, 6), mode="bilinear") for i, x in enumerate((mean, cells))]
        torch.testing.assert_close(pyramid(inputs), torch.cat([inputs, *expected], dim=1))

    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (12, 7)], ids=str)
    def test_any_size(self, size: tuple[int, int]) -> None:
        pyramid = PyramidPooling(8)
        out = pyramid(features(2, 8, *size))
        assert out.shape == (2, pyramid.out_channels, *size) == (2, 16, *size)
        out.sum().backward()
        assert all(parameter.grad is not None for parameter in pyramid.parameters())

    def test_keeps_the_precision_of_autocast(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert PyramidPooling(8).eval()(features(1, 8, 6, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_one_image_is_too_few_for_batch_norm_in_training_alone(self) -> None:
        pyramid = PyramidPooling(8)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            pyramid(features(1, 8, 6, 6))
        assert pyramid.eval()(features(1, 8, 6, 6)).shape == (1, 16, 6, 6)

    @pytest.mark.parametrize(("channels", "sizes"), [(0, (1, 2)), (8, ()), (8, (0, 1))])
    def test_errors_name_the_value(self, channels: int, sizes: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=f"got {channels} and "):
            PyramidPooling(channels, sizes)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_conv_norm_act(kernel_size: int) -> None:
    block, inputs = ConvNormAct(4, 6, kernel_size), features(2, 4, 5, 7)
    assert block(inputs).shape == (2, 6, 5, 7)
    assert block(inputs).min() == 0
    assert ConvNormAct(4, 6, kernel_size, activation=False)(inputs).min() < 0


def test_unit_is_exported_for_any_number_and_size_of_images() -> None:
    unit = EMAU(8, num_bases=4).eval()
    free = torch.export.Dim.AUTO
    exported = torch.export.export(unit, (torch.randn(2, 8, 5, 6),), dynamic_shapes=({0: free, 2: free, 3: free},))
    others = torch.randn(3, 8, 7, 4)
    torch.testing.assert_close(exported.module()(others), unit(others))
