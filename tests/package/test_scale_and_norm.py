"""What λ, the length of the features and the normalization of the bases have to do with each other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emalab import em_attention


@pytest.fixture
def features() -> Tensor:
    return 3 * torch.randn(2, 60, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bases() -> Tensor:
    return F.normalize(torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_scale_is_the_length_of_the_features(features: Tensor, bases: Tensor, scale: float) -> None:
    scaled = em_attention(features, bases, scale=scale, eps=1e-12)
    longer = em_attention(scale * features, bases, eps=1e-12)
    for one, other in zip(scaled, longer, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(scaled.responsibilities, em_attention(features, bases).responsibilities, atol=1e-3)


def test_layer_norm_is_the_l2_norm_with_more_contrast(features: Tensor, bases: Tensor) -> None:
    """λ√C on features whose mean over the C channels is taken off; bases, and what they rebuild, √C times as long."""
    factor = features.shape[-1] ** 0.5
    start = F.layer_norm(bases, bases.shape[-1:], eps=1e-12)
    layer = em_attention(features, start, norm="layer", scale=0.5, eps=1e-12)
    centered = features - features.mean(dim=-1, keepdim=True)
    l2 = em_attention(centered, start / factor, norm="l2", scale=0.5 * factor, eps=1e-12)
    torch.testing.assert_close(layer.responsibilities, l2.responsibilities)
    torch.testing.assert_close(layer.bases, factor * l2.bases)
    torch.testing.assert_close(layer.reconstruction, factor * l2.reconstruction)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bases_without_norm_stay_within_the_features(features: Tensor, bases: Tensor, scale: float) -> None:
    """They are means of features: no longer than the longest, and within their range in every channel."""
    found = em_attention(features, bases, num_iters=20, norm="none", scale=scale).bases
    assert (found.norm(dim=-1) <= features.norm(dim=-1).amax(dim=1, keepdim=True)).all()
    for bound, side in ((features.amin(dim=1), found.amin(dim=1)), (-features.amax(dim=1), -found.amax(dim=1))):
        assert (side >= bound - 1e-5).all()
