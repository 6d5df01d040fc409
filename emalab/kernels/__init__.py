"""The fused GPU path of `emalab.em.em_attention`: when it serves, and its operators for PyTorch.

Triton is imported when a kernel is launched first, so that all of this works without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from emalab.choices import Backend, EMSettings, Grad
from emalab.kernels.plan import MAX_BASES, MAX_CHANNELS, device_limits, pays, timed

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

__all__ = ["attend", "differentiate_as", "fused", "fused_with_gradient", "limit"]


def attend(x: Tensor, bases: Tensor, settings: EMSettings) -> tuple[Tensor, Tensor, Tensor] | None:
    """EM attention by the kernel, or None where it does not serve; ``x`` and ``bases`` as in `emalab.em.em_attention`.

    Under CUDA's autocast, responsibilities and bases are in float32, as on the torch path.

    Returns:
        Reconstruction (b, n, c), responsibilities (b, n, k) and bases (b, k, c).

    Raises:
        ValueError: ``backend="triton"`` with what the kernel cannot take.
    """
    num_iters, scale, norm, grad, eps, clamp, backend, relu = settings
    if not _serves(x, bases, scale, grad, backend):
        return None
    assert not isinstance(scale, Tensor)
    wide = x.is_cuda and torch.is_autocast_enabled("cuda")
    x, options = _autocast(x), (num_iters, scale, norm, eps, clamp, relu, wide)
    if grad == "stop":
        with torch.no_grad():
            return fused(x, bases, *options)
    return fused_with_gradient(x, bases, *options, grad)


def _serves(x: Tensor, bases: Tensor, scale: float | Tensor, grad: Grad, backend: Backend) -> bool:
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
    if backend == "auto":
        if not x.is_cuda or (grad != "stop" and torch.is_grad_enabled() and (x.requires_grad or bases.requires_grad)):
            return False
        x, (k, c) = _autocast(x), bases.shape[-2:]
        return limit(x, bases) is None and pays(k, c, x.dtype) and _timed_here(x.device.index or 0)
    if backend == "triton" and (reason := limit(_autocast(x), bases)):
        raise ValueError(f'the kernel of backend="triton" cannot take this: {reason}; backend="torch" can')
    return backend == "triton"


def _autocast(x: Tensor) -> Tensor:
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


@torch.library.custom_op("emalab::em_attention", mutates_args=())
def fused(
    x: Tensor,
    bases: Tensor,
    num_iters: int,
    scale: float,
    norm: str,
    eps: float,
    clamp: bool,
    relu: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`emalab.em.em_attention` without a gradient: reconstruction, responsibilities, bases; the last two in float32
    when ``wide`` and otherwise in the features' type."""
    from emalab.kernels._launch import launch

    return launch(x, bases, num_iters, scale, norm, eps, clamp, relu, torch.float32 if wide else x.dtype)


@torch.library.custom_op("emalab::em_attention_with_gradient", mutates_args=())
def fused_with_gradient(
    x: Tensor,
    bases: Tensor,
    num_iters: int,
    scale: float,
    norm: str,
    eps: float,
    clamp: bool,
    relu: bool,
    wide: bool,
    grad: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same; keeps only features and bases, and computes everything else again when it is differentiated."""
    return fused(x, bases, num_iters, scale, norm, eps, clamp, relu, wide)


@fused.register_fake
@fused_with_gradient.register_fake
def _empty(
    x: Tensor,
    bases: Tensor,
    num_iters: int,
    scale: float,
    norm: str,
    eps: float,
    clamp: bool,
    relu: bool,
    wide: bool,
    grad: str = "stop",
) -> tuple[Tensor, Tensor, Tensor]:
    (b, n, c), k = x.shape, bases.shape[-2]
    dtype = torch.float32 if wide else x.dtype
    return x.new_empty(b, n, c), x.new_empty(b, n, k, dtype=dtype), x.new_empty(b, k, c, dtype=dtype)


def _remember(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    x, bases, *ctx.options = inputs
    ctx.save_for_backward(x, bases)


def differentiate_as(loop: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """Let the kernel's gradient be that of ``loop``, which takes the arguments of `attend`.

    ``loop`` computes everything again on the torch path, whose graph autograd knows; when asked, it gives the graph of
    the gradient, too.
    """

    def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()
        num_iters, scale, norm, eps, clamp, relu, _, grad = ctx.options
        with torch.enable_grad():
            inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
            result = loop(*inputs, EMSettings(num_iters, scale, norm, grad, eps, clamp, relu=relu))
            matched = [g.to(t.dtype) for g, t in zip(gradients, result, strict=True)]
            of_inputs = torch.autograd.grad(result, inputs, matched, create_graph=again, allow_unused=True)
        return (*of_inputs, *(None for _ in ctx.options))

    fused_with_gradient.register_autograd(differentiate, setup_context=_remember)
