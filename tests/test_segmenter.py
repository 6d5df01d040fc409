"""The network as a whole: shapes, inputs, contexts, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import random_images, tiny_segmenter
from torch import nn

from emalab.modules import EMAU, NonLocal2d
from emalab.segmenter import EMAConfig, NonLocalConfig, Segmenter, SegmenterConfig, build_segmenter


@pytest.mark.parametrize(("context", "kind"), [("none", nn.Identity), ("non_local", NonLocal2d), ("ema", EMAU)])
class TestEveryContext:
    @pytest.mark.parametrize("size", [(64, 64), (37, 51), (1, 1)], ids=str)
    def test_labels_every_pixel(self, context: str, kind: type, size: tuple[int, int]) -> None:
        model = tiny_segmenter(context=context)
        assert isinstance(model.context, kind)
        logits = model(random_images(2, 3, *size))
        assert logits.shape == (2, 5, *size)
        assert logits.dtype == torch.float32

    def test_every_trainable_parameter_learns(self, context: str, kind: type) -> None:
        model = tiny_segmenter(context=context).train()
        model(random_images(2, 3, 32, 32)).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_is_its_four_parts() -> None:
    model = tiny_segmenter()
    images = random_images(2, 3, 30, 33)
    x = model.reduction(model.backbone((images.float() / 255 - 0.5) / 0.5))
    small = model.classifier(model.context(x))
    torch.testing.assert_close(model(images), F.interpolate(small, (30, 33), mode="bilinear"))


def test_images_may_come_normalized() -> None:
    model = tiny_segmenter()
    images = random_images(1, 3, 24, 24)
    torch.testing.assert_close(model(model.normalize(images)), model(images))


def test_align_corners_enlarges_with_the_corners_in_place() -> None:
    model = tiny_segmenter(align_corners=True)
    images = random_images(1, 3, 33, 41)
    small = model.classifier(model.context(model.features(images)))
    torch.testing.assert_close(model(images)[..., ::4, ::4], small)


def test_batch_norm_momentum_is_everywhere_or_the_networks_own() -> None:
    for given, found in ((None, 0.1), (0.1, 0.1), (3e-4, 3e-4)):
        model = tiny_segmenter(batch_norm_momentum=given)
        momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(momenta) > 5
        assert set(momenta) == {found}


def test_without_context_no_news_from_beyond_the_receptive_field() -> None:
    """What the tiny backbone is for: only a context module may carry something across the scene."""
    images = random_images(1, 3, 64, 64)
    changed = images.clone()
    changed[..., :16, :16] = 255 - changed[..., :16, :16]
    for context, travels in (("none", False), ("non_local", True), ("ema", True)):
        model = tiny_segmenter(context=context)
        nn.init.ones_(model.context.conv_out[1].weight) if travels else None  # a new non-local block is the identity
        assert (not torch.equal(model(images)[..., 40:, 40:], model(changed)[..., 40:, 40:])) == travels


def test_settings_reach_the_modules() -> None:
    ema = EMAConfig(num_bases=7, num_iters=2, maintenance="learned", grad="unroll", scale=2.0)
    unit = tiny_segmenter(ema=ema).context
    assert (unit.bases.shape, unit.num_iters, unit.grad, unit.scale) == ((7, 32), 2, "unroll", 2.0)
    assert isinstance(unit.bases, nn.Parameter)
    block = tiny_segmenter(context="non_local", non_local=NonLocalConfig(8, "dot_product", 0.5)).context
    assert (block.g.out_channels, block.mode, block.scale) == (8, "dot_product", 0.5)


def test_head_is_everything_but_the_backbone() -> None:
    model = tiny_segmenter()
    head, backbone = ({id(p) for p in part.parameters()} for part in (model.head, model.backbone))
    assert not head & backbone
    assert head | backbone == {id(p) for p in model.parameters()}


def test_seed_decides_the_weights() -> None:
    first, same, other = (tiny_segmenter(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["reduction.0.weight"], other["reduction.0.weight"])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)], ids=str)
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects images \(b, 3, h, w\), got \("):
        tiny_segmenter()(random_images(*shape))


def test_one_class() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        Segmenter(SegmenterConfig(num_classes=1, backbone="tiny", output_stride=4))


def test_unknown_context() -> None:
    with pytest.raises(ValueError, match="context must be one of none, non_local, ema; got 'emma'"):
        build_segmenter(SegmenterConfig(backbone="tiny", output_stride=4, context="emma"))
