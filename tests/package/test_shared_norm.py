"""Batch norm over two processes is batch norm of one process over both batches."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from processes import group_of, run_ranks
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from emalab.shared_norm import SharedBatchNorm, share_batch_norm


class Plain(nn.Module):
    """Convolutions, batch norm, and timm's batch norm with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.more, self.last = nn.Conv2d(5, 4, 1), BatchNormAct2d(4, eps=1e-3, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.more(self.norm(self.conv(x)).relu()))


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = Plain().to(dtype)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def learn(model: nn.Module, images: Tensor, weights: Tensor) -> Tensor:
    """The result, after a loss in which every number counts otherwise."""
    result = model(images)
    (result * weights).square().sum().backward()
    return result.detach()


def batches(dtype: torch.dtype, offset: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 3, 7, 7, dtype=dtype) + offset, torch.rand(6, 4, 5, 5, dtype=dtype)


def share_of_rank(rank: int, meeting: Path, compiled: bool) -> None:
    images, weights = batches(torch.float64, offset=3.0)
    whole = network(torch.float64)
    expected = learn(whole, images, weights)
    mine = slice(3 * rank, 3 * rank + 3)
    model = share_batch_norm(deepcopy(network(torch.float64)))
    with group_of(2, rank, meeting):
        step = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
        result = learn(step, images[mine], weights[mine])
        torch.testing.assert_close(result, expected[mine], rtol=0, atol=1e-12)
        for (name, parameter), other in zip(whole.named_parameters(), model.parameters(), strict=True):
            torch.distributed.all_reduce(other.grad)
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-10, atol=1e-10, msg=name)
        assert whole.state_dict().keys() == model.state_dict().keys()
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(model.get_buffer(name), buffer, rtol=0, atol=1e-12, msg=name)
        model.eval()
        torch.testing.assert_close(model(images), whole.eval()(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "one graph"])
def test_two_processes(compiled: bool, tmp_path: Path) -> None:
    """Outputs, gradients and statistics; compiled, without an interruption of the graph."""
    run_ranks(2, share_of_rank, tmp_path / "meeting", compiled)


def large_mean(rank: int, meeting: Path) -> None:
    """The mean is 10⁴ deviations away: in float32, a sum of squares would hold nothing of the variance."""
    torch.manual_seed(2)
    images = torch.randn(4, 3, 9, 9, dtype=torch.float64) + 1e4
    expected = images.var((0, 2, 3))
    with group_of(2, rank, meeting):
        norm = SharedBatchNorm(3, momentum=1.0)
        norm(images[2 * rank : 2 * rank + 2].float())
        assert norm.running_var is not None
        torch.testing.assert_close(norm.running_var.double(), expected, rtol=1e-2, atol=0)


def test_a_large_mean(tmp_path: Path) -> None:
    run_ranks(2, large_mean, tmp_path / "meeting")


def half_precision(rank: int, meeting: Path) -> None:
    images = batches(torch.float32, offset=0.0)[0]
    with group_of(2, rank, meeting):
        norm = SharedBatchNorm(3)
        assert norm(images.half()).dtype == torch.float16
        assert norm.running_mean is not None
        assert norm.running_mean.dtype == torch.float32


def test_half_precision(tmp_path: Path) -> None:
    run_ranks(2, half_precision, tmp_path / "meeting")


def test_alone_it_is_pytorchs() -> None:
    images, weights = batches(torch.float32, offset=1.0)
    one, other = network(torch.float32), share_batch_norm(network(torch.float32))
    assert sum(isinstance(module, SharedBatchNorm) for module in other.modules()) == 2
    assert torch.equal(learn(one, images, weights), learn(other, images, weights))
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("lacks", ["affine", "track_running_stats"])
def test_what_cannot_be_shared(lacks: str) -> None:
    with pytest.raises(ValueError, match=f"cannot share BatchNorm2d.*{lacks}=False"):
        share_batch_norm(nn.Sequential(nn.BatchNorm2d(3, **{lacks: False})))
