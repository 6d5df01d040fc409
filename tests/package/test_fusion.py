"""A network with folded batch norm: the same labels, and logits that differ by rounding alone."""

from __future__ import annotations

import pytest
import torch
from skimage import data
from torch import nn

from emalab import Segmenter, predict
from emalab.fusion import fuse_batch_norm
from emalab.recipes import get_recipe
from emalab.segmenter import SegmenterConfig


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_photographs_keep_their_labels(name: str) -> None:
    photo = getattr(data, name)()
    plain, fused = Segmenter.from_pretrained(), fuse_batch_norm(Segmenter.from_pretrained())
    assert not batch_norms(fused)
    same = predict(plain, photo, max_side=480) == predict(fused, photo, max_side=480)
    assert same.mean() >= 0.995


@pytest.mark.parametrize(
    "config",
    [
        get_recipe("shapes-tiny").model,
        SegmenterConfig(num_classes=3, backbone="tf_efficientnet_lite2", context="non_local"),
        SegmenterConfig(num_classes=3, backbone="resnet18", context="deeplab_v3", concat_input=True),
    ],
    ids=lambda config: config.backbone,
)
def test_logits_differ_by_rounding(config: SegmenterConfig) -> None:
    torch.manual_seed(0)
    model = Segmenter(config)
    for norm in batch_norms(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    images = torch.randint(0, 256, (2, 3, 65, 97), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.double().eval()(images)
        found = fuse_batch_norm(model)(images)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()  # 2⁻⁵³ through some seventy layers
    assert not batch_norms(model.classifier)


def test_what_does_not_follow_a_convolution_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    assert len(batch_norms(fuse_batch_norm(model))) == 1


def test_statistics_of_the_batch_are_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert len(batch_norms(fuse_batch_norm(model))) == 1
