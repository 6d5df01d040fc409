"""Launching the Triton kernel. The only importer of `emalab.kernels._triton`, and imported when first launched."""

from __future__ import annotations

from contextlib import nullcontext

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

    Deterministic: every sum has its order. Nothing waits for the GPU and nothing is kept between calls, so a CUDA
    graph can record it; other streams may run it at the same time.

    Returns:
        Reconstruction (b, n, c), responsibilities (b, n, k) and bases (b, k, c).
    """
    (b, n, c), k = x.shape, bases.shape[-2]
    out, z, result = (
        torch.empty(shape, dtype=dtype, device=x.device)
        for shape, dtype in (((b, n, c), x.dtype), ((b, n, k), result_dtype), ((b, k, c), result_dtype))
    )
    if b == 0:
        return out, z, result
    if plan is None:
        plan = _plan_for(x, k)
    x = _readable(x, plan.whole)
    stride = x.stride(1) if n > 1 else c
    if plan.whole:
        strides = [x.stride(0) if b > 1 else n * stride, stride, 1]
        tiles = TensorDescriptor(x, [b, n, c], strides, [1, plan.block_n, plan.block_c])
    current = result if result_dtype == x.dtype else torch.empty_like(result, dtype=x.dtype)
    current.copy_(bases)
    programs = plan.programs
    weighted = torch.empty(b, programs, k, c, dtype=torch.float32, device=x.device)
    total = torch.empty(b, programs, k, dtype=torch.float32, device=x.device)
    counter = torch.zeros(b, dtype=torch.int32, device=x.device)

    def run(phase: int, begin_t: int, end_t: int, cooperative: bool = False) -> None:
        em_kernel[programs, b](
            x,
            tiles if plan.whole and phase in (ALL, ACCUMULATE) else None,
            current,
            result,
            z,
            out,
            weighted,
            total,
            counter,
            n,
            x.stride(0),
            begin_t,
            end_t,
            num_iters,
            scale,
            eps,
            STRIDE=stride,
            NORM=norm,
            CLAMP=clamp,
            RELU=relu,
            PHASE=phase,
            PRECISION="tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
            **plan.constants(k, c),
            num_warps=plan.warps,
            num_stages=plan.stages,
            launch_cooperative_grid=cooperative,
        )

    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        if plan.one_launch:
            run(ALL, 0, num_iters, cooperative=programs > 1)
        else:
            for t in range(num_iters):
                run(ACCUMULATE, t, t + 1)
                run(FINISH, t, t + 1)
            run(REBUILD, num_iters, num_iters)
    return out, z, result


def _readable(x: Tensor, whole: bool) -> Tensor:
    """The features, copied only if the kernel, or its copy engine, could not read them where they are."""
    steps = [x.stride(axis) * x.itemsize for axis in (0, 1) if x.shape[axis] > 1]
    if whole:
        fits = x.data_ptr() % ALIGNMENT == 0 and all(step > 0 and step % ALIGNMENT == 0 for step in steps)
    else:
        fits = 0 <= x.stride(1) < 2**20
    return x if fits and x.stride(2) == 1 else x.clone(memory_format=torch.contiguous_format)


def _plan_for(x: Tensor, k: int) -> Plan:
    """The plan for features (b, n, c) on their device; the interpreter runs one program after the other."""
    b, n, c = x.shape
    if interpreted():
        return make_plan(b, n, k, c, x.dtype, processors=1)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    return make_plan(b, n, k, c, x.dtype, processors, device_limits(x.device.index or 0))
