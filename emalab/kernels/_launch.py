"""Launching the Triton kernel. The only importer of `emalab.kernels._triton`, and imported when first launched."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from emalab.kernels._triton import ACCUMULATE, ALL, FINISH, REBUILD, em_kernel
from emalab.kernels.plan import ALIGNMENT, Plan, device_limits, make_plan

__all__ = ["interpreted", "launch"]


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernel on the CPU (TRITON_INTERPRET=1 when Triton was imported)."""
    return isinstance(em_kernel, InterpretedFunction)


def launch(
    x: Tensor,
    bases: Tensor,
    num_iters: int,
    scale: float,
    norm: str,
    eps: float,
    clamp: bool,
    relu: bool,
    result_dtype: torch.dtype,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """EM attention, see `emalab.em.em_attention`; the last two results have ``result_dtype``.

    Deterministic: every sum has its order. Nothing waits for the GPU, and no memory of the GPU is kept between calls,
    so a CUDA graph can record it; other streams may run it at the same time.

    Returns:
        Reconstruction (b, n, c), responsibilities (b, n, k) and bases (b, k, c).
    """
    (b, n, c), k, device = x.shape, bases.shape[-2], x.device
    out = torch.empty((b, n, c), dtype=x.dtype, device=device)
    z = torch.empty((b, n, k), dtype=result_dtype, device=device)
    result = torch.empty((b, k, c), dtype=result_dtype, device=device)
    if b == 0:
        return out, z, result
    if plan is None:
        plan = _plan_for(device, b, n, k, c, x.dtype)
    x, start = _readable(x, plan.whole), bases.to(x.dtype).contiguous()
    stride = x.stride(1) if n > 1 else c
    tiles = None
    if plan.whole:
        strides = [x.stride(0) if b > 1 else n * stride, stride, 1]
        tiles = TensorDescriptor(x, [b, n, c], strides, [1, plan.block_n, plan.block_c])
    current = result if result_dtype == x.dtype else torch.empty_like(result, dtype=x.dtype)
    weighted = torch.empty((b, plan.programs, k, c), dtype=torch.float32, device=device)
    total = torch.empty((b, plan.programs, k), dtype=torch.float32, device=device)
    counter = torch.zeros(b, dtype=torch.int32, device=device) if plan.one_launch else None
    precision = "tf32" if x.itemsize == 4 and torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    aligned = x.data_ptr() % ALIGNMENT == 0, start.data_ptr() % ALIGNMENT == 0
    launcher = _launcher(
        device,
        b,
        k,
        c,
        stride,
        norm,
        clamp,
        relu,
        precision,
        plan,
        (x.dtype, result_dtype, x.stride(0), n, bases.ndim, aligned),
    )
    pointers = (start, current, result, z, out, weighted, total, counter)
    sizes = n, x.stride(0), 0 if bases.ndim == 2 else k * c

    def run(phase: int, begin_t: int, end_t: int) -> None:
        reads_tiles = phase in (ALL, ACCUMULATE)
        launcher(phase, (x, tiles if reads_tiles else None, *pointers, *sizes, begin_t, end_t, num_iters, scale, eps))

    with torch.cuda.device(device) if x.is_cuda else nullcontext():
        if plan.one_launch:
            run(ALL, 0, num_iters)
        else:
            for t in range(num_iters):
                run(ACCUMULATE, t, t + 1)
                run(FINISH, t, t + 1)
            run(REBUILD, num_iters, num_iters)
    return out, z, result


class _Launcher:
    """The kernel's machine code for one kind of call, phase by phase, as Triton chose it at the first launch.

    Triton chooses by the types of all arguments, by what divides them and by the values of constants. To choose takes
    the host longer than to launch, so the choice is kept. `_launcher` has one of these for everything it depends on.
    """

    def __init__(self, grid: tuple[int, int, int], constants: dict[str, Any], options: dict[str, Any]) -> None:
        self.grid, self.constants, self.options = grid, constants, options
        self.compiled: dict[int, Any] = {}

    def __call__(self, phase: int, arguments: tuple[Any, ...]) -> None:
        """Launch a phase on the current stream, with the kernel's arguments up to the constants."""
        if phase in self.compiled:
            self.compiled[phase][self.grid](*arguments, phase, *self.constants.values())
        else:
            found = em_kernel[self.grid](*arguments, phase, **self.constants, **self.options)
            if not interpreted():
                self.compiled[phase] = found


@lru_cache(maxsize=1024)
def _launcher(
    device: torch.device,
    b: int,
    k: int,
    c: int,
    stride: int,
    norm: str,
    clamp: bool,
    relu: bool,
    precision: str,
    plan: Plan,
    others: tuple[Any, ...],
) -> _Launcher:
    """The launcher for calls that agree in all of this; ``others`` are not constants, but Triton looks at them."""
    constants = {
        "STRIDE": stride,
        "NORM": norm,
        "CLAMP": clamp,
        "RELU": relu,
        "PRECISION": precision,
        **plan.constants(k, c),
    }
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    if plan.one_launch and plan.programs > 1:  # which wait for each other, so all must be on the device
        options["launch_cooperative_grid"] = True
    return _Launcher((plan.programs, b, 1), constants, options)


def _readable(x: Tensor, whole: bool) -> Tensor:
    """The features, copied only if the kernel, or its copy engine, could not read them where they are."""
    steps = [x.stride(axis) * x.itemsize for axis in (0, 1) if x.shape[axis] > 1]
    if whole:
        fits = x.data_ptr() % ALIGNMENT == 0 and all(step > 0 and step % ALIGNMENT == 0 for step in steps)
    else:
        fits = 0 <= x.stride(1) < 2**20
    return x if fits and x.stride(2) == 1 else x.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=1024)
def _plan_for(device: torch.device, b: int, n: int, k: int, c: int, dtype: torch.dtype) -> Plan:
    """The plan for features (b, n, c) on their device; the interpreter runs one program after the other."""
    if interpreted():
        return make_plan(b, n, k, c, dtype, processors=1)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return make_plan(b, n, k, c, dtype, processors, device_limits(device.index or 0))
