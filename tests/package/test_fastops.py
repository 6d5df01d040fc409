"""The rewritten operations against the ones they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emalab.fastops import DilatedDepthwiseConv2d, dilated_depthwise, replace_dilated_depthwise, upsample_bilinear

SIDE = st.integers(1, 23)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


class TestUpsampleBilinear:
    @settings(deadline=None, max_examples=40)
    @given(source=st.tuples(SIDE, SIDE), target=st.tuples(SIDE, SIDE), align_corners=st.booleans())
    def test_is_interpolate(self, source: tuple[int, int], target: tuple[int, int], align_corners: bool) -> None:
        """Up and down, odd and even, and with the same gradient."""
        x, other = (noise(2, 3, *source).requires_grad_() for _ in range(2))
        ours = upsample_bilinear(x, target, align_corners)
        theirs = F.interpolate(other, target, mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        weights = noise(*ours.shape)
        (ours * weights).sum().backward()
        (theirs * weights).sum().backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_single_precision(self, align_corners: bool) -> None:
        x = noise(1, 4, 33, 47, dtype=torch.float32)
        ours = upsample_bilinear(x, (257, 375), align_corners)
        assert ours.dtype == torch.float32
        single, exact = (
            F.interpolate(wide, (257, 375), mode="bilinear", align_corners=align_corners) for wide in (x, x.double())
        )
        assert (ours - exact).abs().max() < 1.2 * (single - exact).abs().max()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_autocast_leaves_it_in_single_precision(self, dtype: torch.dtype) -> None:
        x = noise(1, 2, 5, 7).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            ours = upsample_bilinear(x, (20, 28))
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, F.interpolate(x.float(), (20, 28), mode="bilinear"))

    def test_the_same_size_changes_nothing(self) -> None:
        x = noise(1, 2, 9, 11)
        assert torch.equal(upsample_bilinear(x, (9, 11)), x)


class TestDilatedDepthwise:
    @settings(deadline=None, max_examples=40)
    @given(
        size=st.tuples(SIDE, SIDE), dilation=st.integers(1, 6), kernel=st.sampled_from([1, 3, 5]), biased=st.booleans()
    )
    def test_is_conv2d(self, size: tuple[int, int], dilation: int, kernel: int, biased: bool) -> None:
        weight, bias = noise(4, 1, kernel, kernel), noise(4) if biased else None
        x, other = (noise(2, 4, *size).requires_grad_() for _ in range(2))
        ours = dilated_depthwise(x, weight, bias, dilation)
        theirs = F.conv2d(other, weight, bias, padding=dilation * (kernel // 2), dilation=dilation, groups=4)
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
        weights = noise(*ours.shape)
        (ours * weights).sum().backward()
        (theirs * weights).sum().backward()
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-11, atol=1e-12)


class TestReplaceDilatedDepthwise:
    def test_keeps_keys_and_outputs(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), nn.Conv2d(6, 2, 1)
        )
        x = noise(1, 3, 9, 10, dtype=torch.float32)
        keys, before = list(network.state_dict()), network(x)
        replace_dilated_depthwise(network)
        assert [type(module) for module in network] == [nn.Conv2d, DilatedDepthwiseConv2d, nn.Conv2d]
        assert list(network.state_dict()) == keys
        torch.testing.assert_close(network(x), before)
        depthwise = network[1]
        fast = dilated_depthwise(x[:, [0, 1, 2] * 2], depthwise.weight, depthwise.bias, 2)
        torch.testing.assert_close(fast, depthwise(x[:, [0, 1, 2] * 2]))

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(4, 4, 3, padding=1, groups=4),  # not dilated
            nn.Conv2d(4, 4, 3, padding=2, dilation=2),  # not depthwise
            nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),  # two filters a channel
            nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4),  # another padding than "same"
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, stride=2, groups=4),
            nn.Conv2d(4, 4, 3, padding=(2, 3), dilation=(2, 3), groups=4),  # two dilations
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, padding_mode="reflect"),
        ],
        ids=str,
    )
    def test_leaves_others_alone(self, conv: nn.Conv2d) -> None:
        replace_dilated_depthwise(conv)
        assert type(conv) is nn.Conv2d


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dilation", [2, 4])
def test_dilated_depthwise_on_cuda(dilation: int) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=dilation, dilation=dilation, groups=16, bias=False).double().cuda()
    x = noise(2, 16, 29, 31).cuda().requires_grad_()
    plain = conv(x)
    (expected,) = torch.autograd.grad(plain.square().sum(), x)
    replace_dilated_depthwise(conv)
    fast = conv(x)
    (gradient,) = torch.autograd.grad(fast.square().sum(), x)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(gradient, expected)
