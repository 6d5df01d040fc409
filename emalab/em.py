"""EM attention as pure functions: tensors in, tensors out, no state.

Notation follows Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation" (ICCV 2019):
features ``x`` (X in the paper), ``bases`` (μ), ``responsibilities`` (Z). Axes are named everywhere:

    b  images        n  positions (h·w)        k  bases        c  channels
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from emalab import kernels
from emalab.choices import Backend, EMSettings, Grad, Norm

_LARGEST_HALF = torch.finfo(torch.float16).max

__all__ = [
    "EMOutput",
    "attend",
    "e_step",
    "em_attention",
    "log_likelihood",
    "m_step",
    "normalize_bases",
    "reconstruct",
]


class EMOutput(NamedTuple):
    """What `em_attention` returns.

    ``responsibilities`` come from the last E-step, made with the bases *before* the last M-step; ``reconstruction``
    mixes them with the ``bases`` *after* it, as the authors' implementation does.
    """

    reconstruction: Tensor  # (b, n, c), rank ≤ k
    responsibilities: Tensor  # (b, n, k), rows sum to 1
    bases: Tensor  # (b, k, c)


def e_step(x: Tensor, bases: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Responsibility of every base for every position: z_nk ∝ exp(λ x_nᵀ μ_k). Paper, E-step.

    Args:
        x: features (b, n, c).
        bases: (b, k, c).
        scale: λ, the inverse temperature; λ → ∞ gives the hard assignment of K-means.

    Returns:
        Responsibilities (b, n, k); each row is a distribution over the bases.
    """
    similarity = _similarity(x, bases, scale)
    if similarity.dtype == torch.float16:  # where it overflows for several bases, they share the position
        similarity = similarity.clamp(-_LARGEST_HALF, _LARGEST_HALF)
    return similarity.softmax(dim=-1)


def m_step(x: Tensor, responsibilities: Tensor, eps: float = 1e-6, clamp: bool = False) -> Tensor:
    """Each base becomes the mean of the features weighted by its responsibilities. Paper, M-step (eq. 13 lacks the Σ).

    Args:
        x: features (b, n, c).
        responsibilities: (b, n, k).
        eps: added to each base's total responsibility, so that a base that nobody chooses becomes 0 and not NaN.
        clamp: rather than adding ``eps``, let the total not fall below it.

    Returns:
        Bases (b, k, c), not normalized.
    """
    if _multiplies_in_float16(x):  # a sum over positions may be too large for it where the mean is not
        wide = responsibilities.float()
        shares = wide / _nonzero(wide.sum(dim=1, keepdim=True), eps, clamp)
        return torch.bmm(rearrange(shares.to(responsibilities.dtype), "b n k -> b k n"), x)
    weighted_sum = torch.bmm(rearrange(responsibilities, "b n k -> b k n"), x)
    total = rearrange(responsibilities.sum(dim=1), "b k -> b k 1")
    return weighted_sum / _nonzero(total, eps, clamp)


def normalize_bases(bases: Tensor, norm: Norm = "l2", eps: float = 1e-6, clamp: bool = False) -> Tensor:
    """Normalize each base over its channels: ``"l2"`` (paper), ``"layer"`` (ablation; no affine part) or ``"none"``.

    Args:
        bases: (..., k, c).
        norm: which normalization.
        eps: added to the L2 norm, or to the variance of ``"layer"``.
        clamp: rather than adding ``eps`` to the L2 norm, let the norm not fall below it.
    """
    if bases.dtype == torch.float16 and norm != "none":  # eps is below its smallest number, and squares may overflow
        return normalize_bases(bases.float(), norm, eps, clamp).half()
    if norm == "l2":
        return bases / _nonzero(torch.linalg.vector_norm(bases, dim=-1, keepdim=True), eps, clamp)
    if norm == "layer":
        return F.layer_norm(bases, bases.shape[-1:], eps=eps)
    return bases


def reconstruct(responsibilities: Tensor, bases: Tensor) -> Tensor:
    """Re-estimate the features from the bases, X̃ = Z μ: (b, n, k), (b, k, c) → (b, n, c), of rank ≤ k."""
    return torch.bmm(responsibilities, bases)


def em_attention(
    x: Tensor,
    bases: Tensor,
    *,
    num_iters: int = 3,
    scale: float | Tensor = 1.0,
    norm: Norm = "l2",
    grad: Grad = "stop",
    eps: float = 1e-6,
    clamp: bool = False,
    backend: Backend = "auto",
) -> EMOutput:
    """Run ``num_iters`` rounds of E-step and M-step, then rebuild the features from the bases.

    Example:
        >>> found = em_attention(torch.rand(2, 1089, 512), torch.rand(64, 512))
        >>> found.reconstruction.shape, found.responsibilities.shape, found.bases.shape
        (torch.Size([2, 1089, 512]), torch.Size([2, 1089, 64]), torch.Size([2, 64, 512]))

    Args:
        x: features (b, n, c), floating point.
        bases: initial bases μ⁽⁰⁾, shared (k, c) or one set per image (b, k, c).
        num_iters: T ≥ 1.
        scale: λ, named as in ``scaled_dot_product_attention``; a tensor of no axes where it is learned, which takes
            the torch path.
        norm: normalization after each M-step, see `normalize_bases`.
        grad: ``"stop"``: no gradient flows through EM (what the authors' code does); ``"last"``: through the last
            iteration and the reconstruction; ``"unroll"``: through everything.
        eps: added to column sums and norms, as in the authors' code: a base that nobody chooses goes to 0.
        clamp: let sums and norms not fall below ``eps`` rather than adding it, as mmsegmentation does with 1e-12: even
            a base that hardly anybody chooses keeps unit norm.
        backend: ``"triton"``: one fused kernel on the GPU that reads ``x`` once per iteration, with sums in float32,
            without a backward pass. ``"auto"``: the kernel where it can run and is faster
            (see `emalab.kernels`) and no gradient flows through EM, else ``"torch"``.

    Raises:
        ValueError: shapes that do not fit, an unknown option, or ``"triton"`` with what the kernel cannot take.
        TypeError: features that are not floating point.
    """
    return attend(x, bases, EMSettings(num_iters, scale, norm, grad, eps, clamp, backend))


def attend(x: Tensor, bases: Tensor, settings: EMSettings) -> EMOutput:
    """`em_attention` with its settings as one value: by the kernel where it serves, and otherwise step by step."""
    _check(x, bases)
    settings.check()
    return EMOutput(*(kernels.attend(x, bases, settings) or _step_by_step(x, bases, settings)))


def _step_by_step(x: Tensor, bases: Tensor, settings: EMSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction (b, n, c), responsibilities (b, n, k) and bases (b, k, c)."""
    num_iters, scale, norm, grad, eps, clamp, _, relu = settings
    if bases.ndim == 2:
        bases = bases.expand(x.shape[0], -1, -1)
    bases = bases.to(x.dtype)

    def iterate(bases: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        for _ in range(iterations):
            z = e_step(x, bases, scale)
            bases = normalize_bases(m_step(x, z, eps, clamp), norm, eps, clamp)
        return z, bases

    def output(z: Tensor, bases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reconstruction = reconstruct(z, bases)
        return reconstruction.relu() if relu else reconstruction, z, bases

    if grad == "stop":
        with torch.no_grad():
            return output(*iterate(bases, num_iters))
    if grad == "last" and num_iters > 1:
        with torch.no_grad():
            _, bases = iterate(bases, num_iters - 1)
        num_iters = 1
    return output(*iterate(bases, num_iters))


def log_likelihood(x: Tensor, bases: Tensor, scale: float = 1.0) -> Tensor:
    """The objective that EM attention with ``norm="l2"`` climbs, per image: Σ_n log (1/K) Σ_k exp(λ x_nᵀ μ_k).

    With unit-norm ``x`` and ``bases`` this is, up to a constant that depends on λ and c alone, the log-likelihood of a
    mixture of von Mises-Fisher distributions with equal weights and one concentration λ (Banerjee et al., 2005).
    For any ``x``, whose lengths then act as concentrations λ‖x_n‖ of their own, it never decreases from one iteration
    to the next as long as each base is kept at unit norm. With ``norm="layer"`` it never decreases from the second
    iteration on; with ``norm="none"`` it may.

    Args:
        x: features (b, n, c).
        bases: (k, c) or (b, k, c).
        scale: λ.

    Returns:
        (b,), in nats.
    """
    if bases.ndim == 2:
        bases = rearrange(bases, "k c -> 1 k c").expand(x.shape[0], -1, -1)
    log_mean = _similarity(x, bases, scale).logsumexp(dim=-1) - math.log(bases.shape[1])
    return reduce(log_mean, "b n -> b", "sum")


def _similarity(x: Tensor, bases: Tensor, scale: float | Tensor) -> Tensor:
    """λ x_nᵀ μ_k: (b, n, c), (b, k, c) → (b, n, k). As `torch.bmm`: at small sizes einsum's overhead would show."""
    plain = not isinstance(scale, Tensor) and scale == 1  # to compare a tensor would wait for the GPU
    return torch.bmm(x, rearrange(bases if plain else scale * bases, "b k c -> b c k"))


def _multiplies_in_float16(x: Tensor) -> bool:
    device = x.device.type
    if not x.is_meta and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device) == torch.float16
    return x.dtype == torch.float16


def _nonzero(divisor: Tensor, eps: float, clamp: bool) -> Tensor:
    return divisor.clamp(min=eps) if clamp else divisor + eps


def _check(x: Tensor, bases: Tensor) -> None:
    if x.ndim != 3 or bases.ndim not in (2, 3):
        raise ValueError(
            "em_attention expects x (b, n, c) and bases (k, c) or (b, k, c); "
            f"got x {tuple(x.shape)} and bases {tuple(bases.shape)}"
        )
    if x.shape[-1] != bases.shape[-1] or (bases.ndim == 3 and bases.shape[0] != x.shape[0]):
        raise ValueError(
            f"x {tuple(x.shape)} and bases {tuple(bases.shape)} must agree in their channels c, "
            "and in b when there is one set of bases per image"
        )
    if min(x.shape[1], x.shape[2]) < 1 or bases.shape[-2] < 1:
        raise ValueError(
            f"em_attention needs a position, a channel and a base; got x {tuple(x.shape)}, bases {tuple(bases.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"em_attention needs floating-point features, got {x.dtype}; call x.float() first")
