"""Batch normalization over the batches of all processes, where `torch.nn.SyncBatchNorm` cannot be used.

PyTorch's module needs a GPU, and breaks the graphs of torch.compile.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from emalab.collectives import several_processes, sum_over_processes

__all__ = ["SharedBatchNorm", "share_batch_norm"]


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization with the mean and variance of all processes' batches, which must be of one size.

    Parameters, statistics and their names are those of PyTorch's batch norm. In training, every process must call it,
    forward and backward. Without a process group it computes the same as PyTorch's.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, after: nn.Module | None = None) -> None:
        """``after`` is applied to the normalized values, such as the activation in timm's layers."""
        super().__init__(channels, eps, momentum)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, and in training update the running statistics: (b, c, …) → (b, c, …)."""
        shared = self.training and several_processes()
        y = self._normalize(x) if shared else super().forward(x)
        return y if self.after is None else self.after(y)

    def _normalize(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        values = x.to(self.running_mean.dtype)  # sums need more than half precision
        mean, variance = shared_moments(values)
        self._note(mean.detach(), variance.detach(), x.numel() // len(mean) * dist.get_world_size())
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        along = (-1, *[1] * (x.dim() - 2))
        return (values * scale.view(along) + shift.view(along)).to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the moving averages; as in PyTorch, that of the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes any number of dimensions."""


def shared_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel over the batches of all processes: (b, c, …) → (c,), (c,).

    They are combined from each batch's own moments, because sums of squares cancel where the mean is large.
    """
    variance, mean = torch.var_mean(x, dim=(0, *range(2, x.dim())), correction=0)
    own = torch.arange(dist.get_world_size(), device=x.device) == dist.get_rank()
    means, variances = sum_over_processes(torch.stack([mean, variance]) * rearrange(own, "r -> r 1 1")).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm, also timm's with an activation, by one that processes share.

    Args:
        module: the batch norms within it are replaced in place.

    Returns:
        The module, or its replacement if it is a batch norm itself.

    Raises:
        ValueError: a batch norm has no weight and bias, no running statistics, or no momentum.
    """
    from timm.layers.norm_act import BatchNormAct2d  # timm takes long to import

    for name, child in module.named_children():
        module.add_module(name, share_batch_norm(child))
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module
    if not module.affine or not module.track_running_stats or module.momentum is None:
        raise ValueError(f"several processes cannot share {module}: it needs affine, momentum and track_running_stats")
    after = nn.Sequential(module.drop, module.act) if isinstance(module, BatchNormAct2d) else None
    shared = SharedBatchNorm(module.num_features, module.eps, module.momentum, after)
    for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        setattr(shared, name, value)
    return shared.train(module.training)
