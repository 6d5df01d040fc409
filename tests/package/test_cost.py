"""Cost by counting: the paper's table, sums done by hand, and what does and does not count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import tiny_segmenter

from emalab.cost import Cost, network_cost
from emalab.recipes import get_recipe
from emalab.segmenter import EMAConfig, SegmenterConfig

TINY = get_recipe("shapes-tiny").model
POSITIONS, BASES, DEEP = 65**2, 64, 2048  # of a 513×513 image at stride 8; μ; channels of ResNet-101
PUBLISHED = {  # what each adds to ResNet-101: multiply-adds in G, memory and parameters in M
    "EMANet (256)": ({"channels": 256}, 21.1, 12.3, 4.87),
    "EMANet (512)": ({"channels": 512}, 43.1, 22.1, 10.0),
    "DeepLabV3": ({"context": "deeplab_v3"}, 63.4, 66.0, 15.5),
}


def added(config: SegmenterConfig) -> Cost:
    """Reduction and context, which the paper's table counts."""
    parts = network_cost(config, 513).parts
    return parts["reduction"] + parts["context"] if "reduction" in parts else parts["context"]


class TestPublishedTable:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_row(self, name: str) -> None:
        changes, multiply_adds, memory, parameters = PUBLISHED[name]
        config = replace(get_recipe("voc-r101").model, **changes)
        cost, c = added(config), config.channels
        assert cost.multiply_adds == pytest.approx(multiply_adds * 1e9, rel=0.02)
        assert cost.parameters == pytest.approx(parameters * 1e6, rel=0.02)
        # What the published arrangement makes besides; see the docstring of the module.
        besides = 5 * DEEP * POSITIONS if name == "DeepLabV3" else 3 * (POSITIONS * BASES - BASES * c)
        assert cost.activations + besides == pytest.approx(memory * 1e6, rel=0.02)

    def test_backbone(self) -> None:
        backbone = network_cost(get_recipe("voc-r101").model, 513).parts["backbone"]
        assert backbone.multiply_adds == pytest.approx(190.6e9, rel=0.02)
        assert backbone.parameters == pytest.approx(42.6e6, rel=0.02)


@pytest.mark.parametrize("num_iters", [1, 3])
def test_emanet_by_hand(num_iters: int) -> None:
    n, k, c = 16 * 16, 8, 32
    parts = network_cost(replace(TINY, ema=EMAConfig(num_bases=k, num_iters=num_iters)), 64).parts
    reduction = parts["reduction"]
    assert (reduction.multiply_adds, reduction.parameters) == (n * 64 * c, 64 * c + 2 * c)
    assert reduction.activations == pytest.approx(2 * n * c, rel=0.01)  # but for batch norm's statistics
    # Two 1×1 convolutions; E-step, M-step, and the reconstruction.
    assert parts["context"].multiply_adds == 2 * n * c * c + (2 * num_iters + 1) * n * k * c
    assert parts["context"].parameters == (c * c + c) + c * c + 2 * c + k * c
    # The maps around EM; a similarity and a softmax; sums, quotients and norms of the bases.
    maps, of_positions, of_bases = 7 * n * c, 2 * n * k, 3 * k * c + 4 * k
    expected = maps + num_iters * (of_positions + of_bases)
    assert parts["context"].activations == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("context", ["none", "non_local", "deeplab_v3", "psp", "ema"])
@pytest.mark.parametrize("concat_input", [False, True])
def test_parts_add_up(context: str, concat_input: bool) -> None:
    cost = network_cost(replace(TINY, context=context, concat_input=concat_input), (64, 48))
    model = tiny_segmenter(context=context, concat_input=concat_input)
    bases = TINY.ema.num_bases * TINY.channels if context == "ema" else 0
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters()) + bases
    assert cost.parameters == sum(part.parameters for part in cost.parts.values())
    enlargement = 5 * (16 * 12 * 48 + 16 * 48 * 64)  # two matrix products
    assert cost.multiply_adds == sum(part.multiply_adds for part in cost.parts.values()) + enlargement
    assert cost.activations > sum(part.activations for part in cost.parts.values())


def test_learned_bases_count_once() -> None:
    learned = EMAConfig(num_bases=8, maintenance="learned", grad="unroll")
    assert network_cost(replace(TINY, ema=learned), 64).parameters == network_cost(TINY, 64).parameters


def test_auxiliary_head_works_in_training_alone() -> None:
    assert network_cost(replace(TINY, auxiliary_channels=8), 64) == network_cost(TINY, 64)


def test_non_local_grows_with_the_square_of_the_positions() -> None:
    small, large = (network_cost(replace(TINY, context="non_local"), side).parts["context"] for side in (64, 128))
    n, c = 16 * 16, 32
    attention, convs = 2 * n * n * c // 2, 4 * n * c * c // 2
    assert small.multiply_adds == attention + convs
    assert large.multiply_adds == 16 * attention + 4 * convs


def test_image_without_pixels() -> None:
    with pytest.raises(ValueError, match="at least one pixel; got 0×64"):
        network_cost(TINY, (0, 64))
