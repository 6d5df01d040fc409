"""Timings of attention at the paper's size, (2, 512, 65, 65) in float32, and of a network: ``make bench``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from emalab import EMAU, NonLocal2d, Segmenter, em_attention

B, C, H, W, K, T = 2, 512, 65, 65, 64, 3


def plain_em(x: Tensor, bases: Tensor) -> Tensor:
    """What `em_attention` replaces: batched matrix products over (b, c, n), channels first."""
    bases = bases.expand(len(x), -1, -1)  # (b, c, k)
    for _ in range(T):
        z = torch.bmm(x.transpose(1, 2), bases).softmax(dim=2)
        weights = z / (z.sum(dim=1, keepdim=True) + 1e-6)
        bases = torch.bmm(x, weights)
        bases = bases / (bases.norm(dim=1, keepdim=True) + 1e-6)
    return torch.bmm(bases, z.transpose(1, 2))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bases() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(K, C, generator=torch.Generator().manual_seed(1)), dim=-1)


def timed(benchmark: BenchmarkFixture, function: Callable[..., object], *arguments: object) -> None:
    with torch.inference_mode():
        benchmark.pedantic(function, arguments, rounds=10, warmup_rounds=2)


@pytest.mark.benchmark(group="em")
def test_plain_em(benchmark: BenchmarkFixture, image: Tensor, bases: Tensor) -> None:
    timed(benchmark, plain_em, rearrange(image, "b c h w -> b c (h w)"), rearrange(bases, "k c -> 1 c k"))


@pytest.mark.benchmark(group="em")
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_em_attention(benchmark: BenchmarkFixture, image: Tensor, bases: Tensor, memory_format: str) -> None:
    """The features as a view of either layout of the image."""
    if memory_format == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    x = rearrange(image, "b c h w -> b (h w) c")
    expected = rearrange(plain_em(rearrange(x, "b n c -> b c n"), bases.T[None]), "b c n -> b n c")
    torch.testing.assert_close(em_attention(x, bases).reconstruction, expected, rtol=1e-4, atol=1e-4)
    timed(benchmark, em_attention, x, bases)


@pytest.mark.benchmark(group="unit")
def test_emau(benchmark: BenchmarkFixture, image: Tensor) -> None:
    timed(benchmark, EMAU(C, K, T).eval(), image)


@pytest.mark.benchmark(group="unit")
@pytest.mark.parametrize("path", ["sdpa", "explicit"])
def test_non_local(benchmark: BenchmarkFixture, image: Tensor, path: str) -> None:
    timed(benchmark, NonLocal2d(C, path=path).eval(), image)  # type: ignore[arg-type]


@pytest.mark.benchmark(group="network")
def test_shipped_segmenter(benchmark: BenchmarkFixture) -> None:
    """EMANet on EfficientNet-Lite2 at stride 16, one photograph of 360×480."""
    photo = torch.randint(0, 256, (1, 3, 360, 480), dtype=torch.uint8)
    timed(benchmark, Segmenter.from_pretrained(), photo)
