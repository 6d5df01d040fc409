"""Whether the fused kernel serves: what it cannot take, and where it was measured to be the faster way."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from emalab.choices import Backend, Grad
from emalab.kernels.plan import MAX_BASES, MAX_CHANNELS, device_limits, pays, timed

__all__ = ["in_autocast_type", "limit", "serves"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def serves(x: Tensor, bases: Tensor, scale: float | Tensor, grad: Grad, backend: Backend) -> bool:
    """Whether the kernel is to be used.

    Raises:
        ValueError: it is asked for and cannot be used.
    """
    if isinstance(scale, Tensor):
        if backend == "triton":
            raise ValueError(
                'the kernel of backend="triton" takes scale as a number, not a tensor; backend="torch" can'
            )
        return False
    differentiated = grad != "stop" and torch.is_grad_enabled() and (x.requires_grad or bases.requires_grad)
    if backend == "auto":
        if differentiated or not x.is_cuda:
            return False
        x, (k, c) = in_autocast_type(x), bases.shape[-2:]
        return limit(x, bases) is None and pays(k, c, x.dtype) and _timed_here(x.device.index or 0)
    if backend == "triton" and differentiated:
        raise ValueError(
            f'the kernel of backend="triton" has no backward pass, and grad="{grad}" needs one; backend="torch" has it'
        )
    if backend == "triton" and (reason := limit(in_autocast_type(x), bases)):
        raise ValueError(f'the kernel of backend="triton" cannot take this: {reason}; backend="torch" can')
    return backend == "triton"


def in_autocast_type(x: Tensor) -> Tensor:
    """Features in the type in which autocast multiplies matrices, where that is on."""
    device = x.device.type
    lower = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if lower else x


def limit(x: Tensor, bases: Tensor) -> str | None:
    """Which limit of the kernel features (b, n, c) and bases (k, c) or (b, k, c) exceed; None if it takes them."""
    k, c = bases.shape[-2:]
    if x.dtype not in _DTYPES:
        return f"it computes in bfloat16, float16 or float32, not in {x.dtype}"
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        return "Triton's interpreter does not multiply bfloat16"
    if k > MAX_BASES:
        return f"it holds at most {MAX_BASES} bases, not {k}"
    if c > MAX_CHANNELS:
        return f"it holds at most {MAX_CHANNELS} channels, not {c}"
    if bases.device != x.device:
        return f"the features are on {x.device} and the bases on {bases.device}"
    return _device_limit(x.device.type, x.device.index or 0)


def _device_limit(device: str, index: int) -> str | None:
    return _cached_device_limit(device, index)


def _timed_here(index: int) -> bool:
    """Whether this is a GPU of the kind whose timings `pays` judges by."""
    return timed(device_limits(index))


# torch.compile asks, and does not look inside. What `torch.compiler.assume_constant_result` does, which first imports
# the whole compiler.
_device_limit._dynamo_marked_constant = True  # type: ignore[attr-defined]
_timed_here._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _cached_device_limit(device: str, index: int) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "the version of Triton is unknown, as its metadata are not installed"
    if tuple(map(int, found.split(".")[:2])) < (3, 6):
        return f"it needs Triton 3.6 or newer, and this is {found}"
    if device == "cuda" and torch.version.hip is None:
        return device_limits(index).missing()
    from emalab.kernels._launch import interpreted

    return None if device == "cpu" and interpreted() else f"it runs on CUDA devices, not on {device}"
