"""The fused GPU path of `emalab.em.em_attention`: its operator for PyTorch, used where `emalab.kernels.choice` says so.

Triton is imported when a kernel is launched first, so that all of this works without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emalab.choices import EMSettings
from emalab.kernels.choice import in_autocast_type, limit, serves

__all__ = ["attend", "fused", "limit"]


def attend(x: Tensor, bases: Tensor, settings: EMSettings) -> tuple[Tensor, Tensor, Tensor] | None:
    """EM attention by the kernel, or None where it does not serve; ``x`` and ``bases`` as in `emalab.em.em_attention`.

    Under CUDA's autocast, responsibilities and bases are in float32, as on the torch path.

    Returns:
        Reconstruction (b, n, c), responsibilities (b, n, k) and bases (b, k, c).

    Raises:
        ValueError: ``backend="triton"`` with what the kernel cannot take.
    """
    num_iters, scale, norm, grad, eps, clamp, backend, relu = settings
    if not serves(x, bases, scale, grad, backend):
        return None
    assert not isinstance(scale, Tensor)
    wide = x.is_cuda and torch.is_autocast_enabled("cuda")
    with torch.no_grad():
        return fused(in_autocast_type(x), bases, num_iters, scale, norm, eps, clamp, relu, wide)


# Declared by its schema rather than by `torch.library.custom_op`: there are no gradients here, and its steps for them
# take the host as long as two launches.
torch.library.define(
    "emalab::em_attention",
    "(Tensor x, Tensor bases, int num_iters, float scale, str norm, float eps, bool clamp, bool relu, bool wide)"
    " -> (Tensor, Tensor, Tensor)",
)
fused = torch.ops.emalab.em_attention.default


@torch.library.impl("emalab::em_attention", "default")
def _fused(
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


@torch.library.register_fake("emalab::em_attention")
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
) -> tuple[Tensor, Tensor, Tensor]:
    (b, n, c), k = x.shape, bases.shape[-2]
    dtype = torch.float32 if wide else x.dtype
    return x.new_empty(b, n, c), x.new_empty(b, n, k, dtype=dtype), x.new_empty(b, k, c, dtype=dtype)
