"""Thin `torch.nn` shells over the functional core: `EMAU`, the baselines and the block that all are built from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from emalab.bases import Maintenance, initial_bases, make_maintenance
from emalab.choices import AttentionPath, EMSettings, Grad, NonLocalMode, Norm, Renormalize, check_choice
from emalab.em import EMOutput, attend

__all__ = ["EMAU", "IMAGENET_MEAN", "IMAGENET_STD", "ConvNormAct", "NonLocal2d", "Normalize"]

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class ConvNormAct(nn.Sequential):
    """Convolution with "same" padding, batch norm and ReLU (optional): (b, i, h, w) → (b, o, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, activation: bool = True) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(out_channels), *([nn.ReLU(inplace=True)] if activation else []))


class Normalize(nn.Module):
    """uint8 images to what the network takes: (x / 255 − mean) / std, on the device where the batch is.

    A training batch is moved as uint8, a quarter of the bytes of float32, and normalized on the GPU.

    Args:
        mean: of each of c channels, in 0–1.
        std: of each channel, in 0–1.

    Attributes:
        values: mean and std, as they were given.

    Raises:
        ValueError: another number of means than of deviations, or a deviation that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if min(std) <= 0:
            raise ValueError(f"std is {std}; it must be above 0")
        if len(mean) != len(std):
            raise ValueError(f"mean has {len(mean)} channels, std has {len(std)}")
        self.values = tuple(mean), tuple(std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the constants, which no file of weights holds, where a network was built without values."""
        for name, values in zip(("mean", "std"), self.values, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (…, c, h, w) → float32, or float64 in a network of that, of the same shape and memory format.

        Raises:
            TypeError: the images are not uint8, so their range is unknown.
            ValueError: another number of channels, which would be broadcast.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"Normalize takes uint8 images in 0–255, got {images.dtype}")
        channels = len(self.values[0])
        if images.ndim < 3 or images.shape[-3] != channels:
            raise ValueError(f"Normalize takes images (…, {channels}, h, w), got {tuple(images.shape)}")
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return (images.to(dtype) / 255 - mean) / std


class EMAU(nn.Module):
    """Expectation-Maximization Attention Unit: (b, c, h, w) → (b, c, h, w). Paper, §3.3.

    1×1 conv → EM attention → ReLU → 1×1 conv and batch norm → add the input → ReLU. In training mode each forward pass
    also maintains ``bases``, identically on every rank; evaluation leaves them alone. (Run under activation
    checkpointing, a training forward happens twice and so does its update. If you accumulate gradients over several
    forwards, `emalab.accumulation.one_update_of_bases` makes them count as one batch.)

    So a training forward is a collective operation where `torch.distributed` runs: all ranks must make equally many.
    ``DistributedDataParallel.join()``, for ranks with fewer batches, stands in for DDP's own exchanges only.

    Example:
        >>> unit = EMAU(channels=512, num_bases=64)
        >>> unit(torch.rand(2, 512, 33, 33)).shape
        torch.Size([2, 512, 33, 33])

    Args:
        channels: c of the input and of the output.
        num_bases: K.
        num_iters: T; may be changed on a trained unit (``unit.num_iters = 8``).
        maintenance: how μ⁽⁰⁾ lives between batches: ``"moving_average"`` (paper), ``"frozen"``, ``"learned"`` or
            ``"per_image"``; or a `Maintenance` of your own.
        momentum: α of the moving average; it weights the OLD bases.
        norm: normalization of the bases within EM, ``"l2"``, ``"layer"`` or ``"none"``.
        grad: how far gradients flow through EM, ``"stop"``, ``"last"`` or ``"unroll"``. With ``"stop"``, the first
            convolution can receive no gradient and is frozen at its random initialization, as in the authors' code.
        scale: λ of the E-step; where it is learned, its first value.
        learn_scale: make λ = exp(``log_scale``) a parameter, which needs ``grad="last"`` or ``"unroll"``.
        freeze_input: keep the first convolution at its random initialization whatever ``grad`` is.
        renormalize: what to normalize in the moving average: ``"none"``, ``"batch_mean"`` or ``"after_mixing"``.
        eps, clamp: how EM avoids divisions by zero, see `em_attention`.

    Attributes:
        bases: (k, c), a parameter if the maintenance is ``"learned"`` and a buffer otherwise.
        log_scale: log λ, a parameter of no axes if λ is learned and None otherwise.

    Raises:
        ValueError: a size below 1, an unknown option, learned bases or a learned λ that no gradient can reach, or a
            learned λ that does not start above 0.
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        num_bases: int = 64,
        num_iters: int = 3,
        *,
        maintenance: str | Maintenance = "moving_average",
        momentum: float = 0.9,
        norm: Norm = "l2",
        grad: Grad = "stop",
        scale: float = 1.0,
        renormalize: Renormalize = "none",
        eps: float = 1e-6,
        clamp: bool = False,
        learn_scale: bool = False,
        freeze_input: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, num_bases, num_iters) < 1:
            raise ValueError(
                f"channels, num_bases and num_iters must be at least 1; got {channels}, {num_bases} and {num_iters}"
            )
        EMSettings(num_iters, scale, norm, grad).check()
        if isinstance(maintenance, str):
            maintenance = make_maintenance(maintenance, momentum=momentum, renormalize=renormalize)
        _require_gradients(maintenance.learnable, learn_scale, num_iters, scale, grad)
        self.num_iters, self.scale, self.norm = num_iters, scale, norm
        self.grad, self.eps, self.clamp = grad, eps, clamp
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learn_scale else None
        self.maintenance = maintenance

        self.conv_in = _input_convolution(channels).requires_grad_(grad != "stop" and not freeze_input)
        self.conv_out = ConvNormAct(channels, channels, 1, activation=False)
        bases = initial_bases(num_bases, channels)
        if maintenance.learnable:
            self.bases = nn.Parameter(bases)
        else:
            self.register_buffer("bases", bases)

    def attend(self, features: Tensor) -> EMOutput:
        """EM attention over ``features`` (b, c, h, w), without updating the bases. Positions n run row by row.

        ``rearrange(unit.attend(f).responsibilities, "b (h w) k -> b k h w", h=h)`` are the attention maps.
        """
        return attend(*self._start(features), self._settings())

    def _start(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (b, n, c) and the bases that EM starts from."""
        x = rearrange(self.conv_in(features), "b c h w -> b (h w) c")
        # A buffer is updated in place after the forward pass, when autograd may still need what EM started from.
        stored = self.bases if self.maintenance.learnable or self.grad == "stop" else self.bases.clone()
        return x, self.maintenance.start(stored, x)

    def _settings(self, relu: bool = False) -> EMSettings:
        scale = self.scale if self.log_scale is None else self.log_scale.exp()
        return EMSettings(self.num_iters, scale, self.norm, self.grad, self.eps, self.clamp, relu=relu)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)."""
        attended = attend(*self._start(features), self._settings(relu=True))
        if self.training:
            self.maintain(attended.bases)
        context = rearrange(attended.reconstruction, "b (h w) c -> b c h w", h=features.shape[-2])
        return F.relu(features + self.conv_out(context))

    @torch.no_grad()
    def maintain(self, batch_bases: Tensor) -> None:
        """Update the stored bases with those of a batch, (b, k, c); each training forward does so itself."""
        updated = self.maintenance.update(self.bases, batch_bases.detach())
        if updated is not None:
            self.bases.copy_(updated)

    def extra_repr(self) -> str:
        """Bases, iterations and strategy, for ``print(unit)``."""
        num_bases, channels = self.bases.shape
        return (
            f"channels={channels}, num_bases={num_bases}, num_iters={self.num_iters}, "
            f"maintenance={type(self.maintenance).__name__}, norm={self.norm!r}, grad={self.grad!r}, scale={self.scale}"
            + (" (learned)" if self.log_scale is not None else "")
        )


def _input_convolution(channels: int) -> nn.Conv2d:
    """1×1, without a ReLU behind it: features range over all of ℝ."""
    conv = nn.Conv2d(channels, channels, 1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _require_gradients(learned_bases: bool, learned_scale: bool, num_iters: int, scale: float, grad: Grad) -> None:
    """Refuse what is to be learned where no gradient reaches it."""
    if learned_bases and not (grad == "unroll" or (grad == "last" and num_iters == 1)):
        raise ValueError(f'learned bases get no gradient with grad={grad!r}; use grad="unroll"')
    if learned_scale and (grad == "stop" or scale <= 0):
        raise ValueError(
            f'a learned λ needs grad="last" or "unroll" and a scale above 0; got grad={grad!r}, scale={scale}'
        )


class NonLocal2d(nn.Module):
    """Non-local block, the attention that EMA replaces: (b, c, h, w) → (b, c, h, w). Wang et al., CVPR 2018.

    Every position gathers from all N = h·w positions with weights from a pairwise similarity f(θ x_i, φ x_j); the block
    adds the result to its input. The last batch norm starts at zero, so a new block is the identity (their §4.1).

    Example:
        >>> NonLocal2d(channels=64)(torch.rand(2, 64, 17, 17)).shape
        torch.Size([2, 64, 17, 17])

    Args:
        channels: c of the input and of the output.
        inner_channels: channels of θ, φ and g; ``channels // 2`` by default. θ and φ of ``"gaussian"`` are the input.
        mode: ``"gaussian"`` and ``"embedded_gaussian"`` normalize exp(s · θᵀφ) by its sum (softmax);
            ``"dot_product"`` divides θᵀφ by N.
        scale: s; 1/√(channels of θ) by default, as in mmsegmentation and transformers. 1.0 is the paper's.
        path: ``"sdpa"`` calls ``scaled_dot_product_attention``, which need not hold the N×N matrix, and orders the
            dot-product mode as θ(φᵀg); ``"explicit"`` builds the matrix. Same result, different memory.

    Raises:
        ValueError: an unknown mode or path, or no channels.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        mode: NonLocalMode = "embedded_gaussian",
        *,
        scale: float | None = None,
        path: AttentionPath = "sdpa",
    ) -> None:
        super().__init__()
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        if min(channels, inner) < 1:
            raise ValueError(f"channels and inner_channels must be at least 1; got {channels} and {inner}")
        check_choice("mode", mode, NonLocalMode)
        check_choice("path", path, AttentionPath)
        self.mode, self.path = mode, path
        embedded = mode != "gaussian"
        self.scale = (inner if embedded else channels) ** -0.5 if scale is None else scale
        self.theta = nn.Conv2d(channels, inner, 1) if embedded else nn.Identity()
        self.phi = nn.Conv2d(channels, inner, 1) if embedded else nn.Identity()
        self.g = nn.Conv2d(channels, inner, 1)
        self.conv_out = ConvNormAct(inner, channels, 1, activation=False)
        nn.init.zeros_(self.conv_out[1].weight)  # type: ignore[arg-type]

    def attention(self, features: Tensor) -> Tensor:
        """The N×N matrix of weights, (b, n, n): row i says where position i looks. O(N²) memory."""
        query, key = (rearrange(f(features), "b c h w -> b (h w) c") for f in (self.theta, self.phi))
        similarity = einsum(query, key, "b i c, b j c -> b i j")
        if self.mode == "dot_product":
            return similarity / similarity.shape[-1]
        return (self.scale * similarity).softmax(dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, c, h, w) → (b, c, h, w)."""
        value = rearrange(self.g(features), "b c h w -> b (h w) c")
        if self.path == "explicit":
            context = einsum(self.attention(features), value, "b i j, b j c -> b i c")
        else:
            context = self._without_matrix(features, value)
        context = rearrange(context, "b (h w) c -> b c h w", h=features.shape[-2])
        return features + self.conv_out(context)

    def _without_matrix(self, features: Tensor, value: Tensor) -> Tensor:
        query, key = (rearrange(f(features), "b c h w -> b (h w) c") for f in (self.theta, self.phi))
        if self.mode == "dot_product":  # associativity: (θ φᵀ) g = θ (φᵀ g)
            summary = einsum(key, value, "b n i, b n o -> b i o") / key.shape[1]
            return einsum(query, summary, "b n i, b i o -> b n o")
        query, key, value = (rearrange(t, "b n c -> b 1 n c") for t in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return rearrange(context, "b 1 n c -> b n c")

    def extra_repr(self) -> str:
        """Mode, scale and path, for ``print(block)``."""
        return f"mode={self.mode!r}, scale={self.scale:.4g}, path={self.path!r}"
