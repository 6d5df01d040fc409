"""The network as a whole: shapes, inputs, contexts, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import random_images, tiny_segmenter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.segmentation.deeplabv3 import ASPP

from emalab.modules import EMAU, ConvNormAct, NonLocal2d
from emalab.pyramid import PyramidPooling
from emalab.segmenter import EMAConfig, NonLocalConfig, Segmenter, SegmenterConfig, build_segmenter

CONTEXTS = {"none": nn.Identity, "non_local": NonLocal2d, "deeplab_v3": ASPP, "psp": PyramidPooling, "ema": EMAU}


@pytest.mark.parametrize(("context", "kind"), CONTEXTS.items())
class TestEveryContext:
    @pytest.mark.parametrize("size", [(64, 64), (37, 51), (1, 1)], ids=str)
    def test_labels_every_pixel(self, context: str, kind: type, size: tuple[int, int]) -> None:
        model = tiny_segmenter(context=context)
        assert isinstance(model.context, kind)
        logits = model(random_images(2, 3, *size))
        assert logits.shape == (2, 5, *size)
        assert logits.dtype == torch.float32

    @pytest.mark.parametrize("concat_input", [False, True])
    def test_every_trainable_parameter_learns(self, context: str, kind: type, concat_input: bool) -> None:
        model = tiny_segmenter(context=context, concat_input=concat_input, auxiliary_channels=8).train()
        sum(logits.square().sum() for logits in model.training_logits(random_images(2, 3, 32, 32))).backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_learns_from_single_images_with_frozen_batch_norm(self, context: str, kind: type) -> None:
        model = tiny_segmenter(context=context).train()
        for module in model.modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
        model(random_images(1, 3, 32, 32)).square().sum().backward()
        assert model.backbone.layers[0].weight.grad.abs().sum() > 0


def test_is_its_four_parts() -> None:
    model = tiny_segmenter()
    images = random_images(2, 3, 30, 33)
    x = model.reduction(model.backbone((images.float() / 255 - 0.5) / 0.5))
    small = model.classifier(model.context(x))
    torch.testing.assert_close(model(images), F.interpolate(small, (30, 33), mode="bilinear"))


def test_concat_input_shows_the_classifier_the_backbones_features() -> None:
    model = tiny_segmenter(concat_input=True, head_channels=6)
    images = random_images(2, 3, 32, 32)
    features = model.backbone(model.normalize(images))
    context = model.bottleneck(model.context(model.reduction(features)))
    assert context.shape[1] == 6
    torch.testing.assert_close(model.coarse_logits(images), model.classifier(torch.cat([features, context], dim=1)))


class TestAuxiliaryHead:
    def test_by_hand(self) -> None:
        model = tiny_segmenter(auxiliary_channels=6)
        images = random_images(2, 3, 32, 32)
        inner, _ = model.backbone.stages(model.normalize(images))
        logits, auxiliary = model.training_logits(images)
        assert torch.equal(logits, model(images))
        assert isinstance(model.auxiliary[0], ConvNormAct)
        torch.testing.assert_close(auxiliary, F.interpolate(model.auxiliary(inner), (32, 32), mode="bilinear"))

    def test_is_left_out_of_evaluation(self) -> None:
        model = tiny_segmenter(auxiliary_channels=6)
        model.auxiliary.register_forward_hook(lambda *_: pytest.fail("the auxiliary head ran"))
        model(random_images(1, 3, 32, 32))

    def test_changes_no_other_initial_weight(self) -> None:
        plain, helped = (dict(tiny_segmenter(auxiliary_channels=n).named_parameters()) for n in (0, 6))
        assert plain.keys() < helped.keys()
        assert all(torch.equal(value, helped[key]) for key, value in plain.items())

    def test_none_by_default(self) -> None:
        model = tiny_segmenter()
        assert model.auxiliary is None
        assert len(model.training_logits(random_images(1, 3, 32, 32))) == 1

    def test_channels_below_zero(self) -> None:
        with pytest.raises(ValueError, match="auxiliary_channels must be 0 to 65536, got -1"):
            tiny_segmenter(auxiliary_channels=-1)


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_atrous_rates_keep_their_reach_in_pixels(stride: int, rates: list[int]) -> None:
    """Those of DeepLabV3 at strides 8 and 16."""
    model = Segmenter(SegmenterConfig(backbone="resnet18", output_stride=stride, context="deeplab_v3"))
    assert [branch[0].dilation for branch in model.context.convs[1:4]] == [(rate, rate) for rate in rates]


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
    for context in CONTEXTS:
        travels, model = context != "none", tiny_segmenter(context=context)
        if context == "non_local":
            nn.init.ones_(model.context.conv_out[1].weight)  # a new block is the identity
        assert (not torch.equal(model(images)[..., 40:, 40:], model(changed)[..., 40:, 40:])) == travels


def test_settings_reach_the_modules() -> None:
    ema = EMAConfig(num_bases=7, num_iters=2, maintenance="learned", grad="unroll", scale=2.0)
    unit = tiny_segmenter(ema=ema).context
    assert (unit.bases.shape, unit.num_iters, unit.grad, unit.scale) == ((7, 32), 2, "unroll", 2.0)
    assert isinstance(unit.bases, nn.Parameter)
    block = tiny_segmenter(context="non_local", non_local=NonLocalConfig(8, "dot_product", 0.5)).context
    assert (block.g.out_channels, block.mode, block.scale) == (8, "dot_product", 0.5)


def test_head_is_everything_but_the_backbone() -> None:
    model = tiny_segmenter(concat_input=True, auxiliary_channels=8)
    head, backbone = ({id(p) for p in part.parameters()} for part in (model.head, model.backbone))
    assert not head & backbone
    assert head | backbone == {id(p) for p in model.parameters()}


def test_seed_decides_the_weights() -> None:
    first, same, other = (tiny_segmenter(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["reduction.0.weight"], other["reduction.0.weight"])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)], ids=str)
def test_images_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects images \(b, 3, h, w\), RGB; got \("):
        tiny_segmenter()(random_images(*shape))


def test_one_class() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        Segmenter(SegmenterConfig(num_classes=1, backbone="tiny", output_stride=4))


@pytest.mark.parametrize("name", ["emma", "a b:c", "torch.nn:", "os.path", None])
def test_unknown_context(name: str) -> None:
    with pytest.raises(ValueError, match=f"psp, ema, or a class of your own as module:Class; got {name!r}"):
        build_segmenter(SegmenterConfig(backbone="tiny", output_stride=4, context=name))


class TestContextOfOnesOwn:
    def test_is_built_for_the_reduced_channels(self) -> None:
        model = tiny_segmenter(context="torch.nn:BatchNorm2d", channels=24)
        assert isinstance(model.context, nn.BatchNorm2d)
        assert model.context.num_features == 24
        assert model.with_config(model.config).context is not model.context

    @pytest.mark.parametrize("name", ["torch.nn:Bathnorm", "os.path:join", "torch.nn:functional", "builtins:int"])
    def test_is_a_module(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"context '{name}': .* has no subclass of torch.nn.Module"):
            tiny_segmenter(context=name)

    def test_can_be_imported(self) -> None:
        with pytest.raises(ValueError, match=r"'heads:Gate' cannot be imported: No module named 'heads'.*PYTHONPATH"):
            tiny_segmenter(context="heads:Gate")


class TestWhatItTakes:
    """uint8 in 0–255, or floating point that is normalized already."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_images_come_into_the_type_of_the_weights(self, dtype: torch.dtype) -> None:
        images = random_images(1, 3, 32, 32)
        model = tiny_segmenter()
        expected, logits = model(images), model.to(dtype)(images)
        torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.1)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.bool], ids=str)
    def test_other_types_are_named(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=f"uint8 images or normalized floating-point ones, got {dtype}"):
            tiny_segmenter()(random_images(1, 3, 32, 32).to(dtype))

    @pytest.mark.parametrize("training", [False, True])
    def test_values_that_are_not_normalized(self, training: bool) -> None:
        """They gave other labels without a word."""
        images, model = random_images(2, 3, 32, 32), tiny_segmenter().train(training)
        with pytest.raises(ValueError, match=r"their values reach 255; give uint8 .*: images.to\(torch.uint8\)"):
            model(images.float())
        with pytest.raises(ValueError, match="their values reach 255"):
            model(-images.float())
        model(model.normalize(images))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
    def test_images_in_the_unit_range(self, dtype: torch.dtype) -> None:
        """As torchvision has them; they were read as normalized ones. The way out that the message names is right."""
        images, model = random_images(2, 3, 32, 32), tiny_segmenter()
        unit = images.to(dtype) / 255
        with pytest.raises(
            ValueError, match=r"lie in 0…1 \(0 to 1\); .*: \(255 \* images\).round\(\).to\(torch.uint8\)"
        ):
            model(unit)
        torch.testing.assert_close(model((255 * unit).round().to(torch.uint8)), model(images))

    @pytest.mark.parametrize(
        "images", [torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)], ids=lambda i: ""
    )
    def test_constant_images_are_taken_as_they_are(self, images: torch.Tensor) -> None:
        """Tools trace networks with zeros or ones."""
        tiny_segmenter()(images)

    def test_one_value_beyond_the_unit_range_is_enough(self) -> None:
        images = random_images(1, 3, 8, 8) / 255
        for value in (-0.1, 1.1):
            images[0, 0, 0, 0] = value
            tiny_segmenter()(images)

    def test_training_takes_crops_that_lie_in_the_unit_range(self) -> None:
        """A crop of an even sky may, and a training that meets one must go on."""
        tiny_segmenter().train()(random_images(2, 3, 32, 32) / 255)

    def test_tensors_without_values_pass(self) -> None:
        """Tools count operations on fake tensors, which have a shape and no values to look at."""
        with FakeTensorMode():
            assert tiny_segmenter()(torch.zeros(1, 3, 32, 32)).shape[-2:] == (32, 32)
