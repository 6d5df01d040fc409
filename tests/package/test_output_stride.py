"""One set of weights at two output strides: trained at 16, scored at 8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import random_images, tiny_segmenter

from emalab.segmenter import Segmenter, SegmenterConfig

SMALL = SegmenterConfig(
    num_classes=3, backbone="resnet50s", backbone_blocks=(1, 1, 2, 3), output_stride=16, multi_grid=(1, 2, 4),
    channels=8, head_channels=8, align_corners=True,
)  # fmt: skip


def network(config: SegmenterConfig, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(config).eval()


@pytest.mark.parametrize("backbone", ["resnet50s", "resnet50d", "tf_efficientnet_lite0", "convnext_atto"])
@torch.no_grad()
def test_equals_a_network_built_at_that_stride(backbone: str) -> None:
    """Even where a stride is part of another module than the convolution, as in ResNet-D's shortcuts."""
    config = SMALL if backbone == "resnet50s" else replace(SMALL, backbone=backbone, backbone_blocks=(), multi_grid=())
    model = network(config)
    built = network(replace(config, output_stride=8), seed=1)
    built.load_state_dict(model.state_dict())
    images = random_images(2, 3, 65, 81)
    twin = model.with_output_stride(8)
    assert torch.equal(twin(images), built(images))
    assert twin.coarse_logits(images).shape[-2:] > model.coarse_logits(images).shape[-2:]
    assert twin.config == replace(config, output_stride=8)
    assert torch.equal(twin.with_output_stride(16)(images), model(images))


def test_multi_grid_is_kept() -> None:
    """R-50's last stage: dilations 1, 4, 8 at stride 16 become 2, 8, 16 at stride 8."""

    def dilations(model: Segmenter) -> list[int]:
        stage = model.backbone.network.get_submodule("layer4")
        return [block.conv2.dilation[0] for block in stage]

    model = network(SMALL)
    assert dilations(model) == [1, 4, 8]
    assert dilations(model.with_output_stride(8)) == [2, 8, 16]


def test_shares_its_weights() -> None:
    """What training changes in place, the optimizer's steps, batch statistics and bases, the other network has too."""
    model = network(SMALL).train()
    twin = model.with_output_stride(8)
    assert twin.training
    assert len(list(twin.parameters())) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(random_images(2, 3, 33, 33)).square().mean().backward()
    optimizer.step()
    theirs = model.state_dict()
    assert [key for key, value in twin.state_dict().items() if not torch.equal(value, theirs[key])] == []
    assert model.state_dict()["context.bases"].data_ptr() == twin.state_dict()["context.bases"].data_ptr()


def test_draws_no_random_numbers() -> None:
    model = network(SMALL)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model.with_output_stride(8)
    assert torch.equal(torch.rand(2), expected)


def test_keeps_precision_and_weights_setting() -> None:
    model = network(SMALL).double()
    model.config = replace(SMALL, backbone_weights="imagenet")
    twin = model.with_output_stride(8)
    assert {value.dtype for value in twin.parameters()} == {torch.float64}
    assert twin.config.backbone_weights == "imagenet"


def test_the_same_stride_is_the_same_network() -> None:
    model = tiny_segmenter()
    assert model.with_output_stride(4) is model


@pytest.mark.parametrize(("stride", "message"), [(4, "must be one of"), (12, "got 12")])
def test_stride_that_the_backbone_cannot_have(stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(SMALL).with_output_stride(stride)


@torch.no_grad()
def test_other_settings_with_the_same_tensors() -> None:
    """More iterations at test than in training, and the unit of the trained network left as it is."""
    model = tiny_segmenter()
    other = model.with_config(replace(model.config, ema=replace(model.config.ema, num_iters=8)))
    images = random_images(2, 3, 32, 32)
    before = model(images)
    assert other.config.ema.num_iters == 8
    model.context.num_iters = 8
    assert torch.equal(other(images), model(images))
    assert not torch.equal(other(images), before)
    with pytest.raises(RuntimeError, match=r"context\.bases"):
        model.with_config(replace(model.config, ema=replace(model.config.ema, num_bases=3)))
