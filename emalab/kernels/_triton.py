"""EM attention as one Triton kernel. Axes as in `emalab.em`: b images, n positions, k bases, c channels.

The programs of a grid (programs, b) share the positions of each image, one run of them for each program. In turns:

    accumulate   E-step of a tile of positions, brought to shared memory by the copy engine (TMA), and from there its
                 part of the M-step: Σ_n x_n z_nk and Σ_n z_nk stay in float32 registers over all tiles of the program,
                 and are written once
    finish       every program adds up, divides and normalizes its share of the bases, always in the same order
    rebuild      after the last iteration: responsibilities times new bases, and ReLU when asked

So each iteration reads the features once, and of (n, k) only the last responsibilities are ever written. Where bases
times channels exceed the registers, and for what the copy engine cannot read, accumulate writes all responsibilities
and goes through the features in chunks, twice.

In between, the programs of an image wait for each other: launched at once (`ALL`) at a counter in memory, which needs
all programs on the device at a time (a cooperative launch); launched phase by phase, the ends of the launches do it.
"""

# Triton's arguments have no Python types, its constants are written in capitals, and it knows no `in`.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803, SIM109

from __future__ import annotations

import triton
import triton.language as tl

ALL, ACCUMULATE, FINISH, REBUILD = 0, 1, 2, 3

_ALL, _ACCUMULATE, _FINISH, _REBUILD = (tl.constexpr(phase) for phase in (ALL, ACCUMULATE, FINISH, REBUILD))
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softmax(logits, there, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Responsibilities (n, k) from logits in base 2; zero for positions that are not there."""
    if K < BLOCK_K:
        logits = tl.where(tl.arange(0, BLOCK_K)[None, :] < K, logits, float("-inf"))
    weights = tl.exp2(logits - tl.max(logits, axis=1)[:, None])
    return weights * tl.where(there, 1 / tl.sum(weights, axis=1), 0.0)[:, None]


@triton.jit
def _rows(base_ptr, first, stride, in_n, in_c, stop, C: tl.constexpr):
    """Features (n, c) of the tile that begins at position ``first``, zero where there are none."""
    at = base_ptr + first.to(tl.int64) * stride + in_n[:, None] * stride + in_c[None, :]
    return tl.load(at, mask=(first + in_n < stop)[:, None] & (in_c[None, :] < C), other=0.0)


@triton.jit
def _keep(z_ptr, z, first, in_n, in_k, stop, K: tl.constexpr):
    """Store responsibilities (n, k)."""
    at = z_ptr + first.to(tl.int64) * K + in_n[:, None] * K + in_k[None, :]
    tl.store(at, z.to(z_ptr.dtype.element_ty), mask=(first + in_n < stop)[:, None] & (in_k[None, :] < K))


@triton.jit
def _accumulate(
    x_desc,
    bases_ptr,
    z_ptr,
    weighted_ptr,
    total_ptr,
    begin,
    stop,
    backward,
    keep,
    scale,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """E-step and M-step over the positions begin … stop of one image, with all channels in one block."""
    in_n, in_k, in_c = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    there_kc = (in_k[:, None] < K) & (in_c[None, :] < C)
    at = in_k[:, None] * C + in_c[None, :]
    bases = tl.load(bases_ptr + at, mask=there_kc, other=0.0, cache_modifier=".cg")
    weighted = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    tiles = tl.cdiv(stop - begin, BLOCK_N)
    for i in tl.range(0, tiles, num_stages=STAGES):
        # Back and forth in turns: what the last iteration read last is still in the cache.
        first = begin + tl.where(backward, tiles - 1 - i, i) * BLOCK_N
        x = x_desc.load([tl.program_id(1), first, 0]).reshape(BLOCK_N, BLOCK_C)
        z = _softmax(tl.dot(x, tl.trans(bases)) * scale, first + in_n < stop, K, BLOCK_K)
        total += z
        weighted = tl.dot(tl.trans(x), z.to(x.dtype), weighted)
        if keep:
            _keep(z_ptr, z, first, in_n, in_k, stop, K)
    tl.store(
        weighted_ptr + in_k[None, :] * C + in_c[:, None],
        weighted,
        mask=(in_k[None, :] < K) & (in_c[:, None] < C),
    )
    tl.store(total_ptr + in_k, tl.sum(total, axis=0), mask=in_k < K)


@triton.jit
def _accumulate_in_chunks(
    x_ptr,
    bases_ptr,
    z_ptr,
    weighted_ptr,
    total_ptr,
    begin,
    stop,
    STRIDE: tl.constexpr,
    scale,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same in two passes, the E-step and then the M-step, each over blocks of channels."""
    in_n, in_k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    tiles = tl.cdiv(stop - begin, BLOCK_N)
    for i in range(tiles):
        first = begin + i * BLOCK_N
        logits = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for c in tl.range(0, C, BLOCK_C, num_stages=STAGES):
            in_c = c + tl.arange(0, BLOCK_C)
            x = _rows(x_ptr, first, STRIDE, in_n, in_c, stop, C)
            there_kc = (in_k[:, None] < K) & (in_c[None, :] < C)
            at = in_k[:, None] * C + in_c[None, :]
            bases = tl.load(bases_ptr + at, mask=there_kc, other=0.0, cache_modifier=".cg")
            logits = tl.dot(x, tl.trans(bases), logits, input_precision=PRECISION)
        z = _softmax(logits * scale, first + in_n < stop, K, BLOCK_K)
        total += z
        _keep(z_ptr, z, first, in_n, in_k, stop, K)
    tl.store(total_ptr + in_k, tl.sum(total, axis=0), mask=in_k < K)
    tl.debug_barrier()  # other threads of the program read these responsibilities
    for c in range(0, C, BLOCK_C):
        in_c = c + tl.arange(0, BLOCK_C)
        weighted = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
        for i in tl.range(0, tiles, num_stages=STAGES):
            first = begin + i * BLOCK_N
            x = _rows(x_ptr, first, STRIDE, in_n, in_c, stop, C)
            z = _rows(z_ptr, first, K, in_n, in_k, stop, K).to(x.dtype)
            weighted = tl.dot(tl.trans(x), z, weighted, input_precision=PRECISION)
        at = in_k[None, :] * C + in_c[:, None]
        tl.store(weighted_ptr + at, weighted, mask=(in_k[None, :] < K) & (in_c[:, None] < C))


@triton.jit
def _divide(numerator, denominator, eps, CLAMP: tl.constexpr):
    if CLAMP:
        return numerator / tl.maximum(denominator, eps, propagate_nan=tl.PropagateNan.ALL)
    else:
        return numerator / (denominator + eps)


@triton.jit
def _finish(
    weighted_ptr,
    total_ptr,
    bases_ptr,
    result_ptr,
    program,
    programs,
    eps,
    K: tl.constexpr,
    C: tl.constexpr,
    NORM: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_ALL_C: tl.constexpr,
):
    """The program's share of the bases of one image, from what all programs accumulated: add up, divide, normalize."""
    in_p, in_r, in_c = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_ALL_C)
    share = tl.cdiv(K, programs)
    stop = tl.minimum((program + 1) * share, K)
    for first in range(program * share, stop, BLOCK_R):
        r = first + in_r
        there_rc = (r < stop)[:, None] & (in_c < C)[None, :]
        weighted = tl.zeros((BLOCK_R, BLOCK_ALL_C), tl.float32)
        total = tl.zeros((BLOCK_R,), tl.float32)
        for p in range(0, programs, BLOCK_P):
            there_p = p + in_p < programs
            row = (p + in_p)[:, None] * K + r[None, :]
            parts = tl.load(
                weighted_ptr + row[:, :, None] * C + in_c[None, None, :],
                mask=there_p[:, None, None] & there_rc[None, :, :],
                other=0.0,
                cache_modifier=".cg",
            )
            weighted += tl.sum(parts, axis=0)
            there = there_p[:, None] & (r < stop)[None, :]
            total += tl.sum(tl.load(total_ptr + row, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
        bases = _divide(weighted, total[:, None], eps, CLAMP)
        if NORM == "l2":
            bases = _divide(bases, tl.sqrt(tl.sum(bases * bases, axis=1))[:, None], eps, CLAMP)
        elif NORM == "layer":
            bases -= tl.sum(bases, axis=1)[:, None] / C
            bases = tl.where((in_c < C)[None, :], bases, 0.0)
            bases /= tl.sqrt(tl.sum(bases * bases, axis=1)[:, None] / C + eps)
        at = r[:, None] * C + in_c[None, :]
        tl.store(bases_ptr + at, bases.to(bases_ptr.dtype.element_ty), mask=there_rc)
        if result_ptr.dtype.element_ty != bases_ptr.dtype.element_ty:
            tl.store(result_ptr + at, bases.to(result_ptr.dtype.element_ty), mask=there_rc)


@triton.jit
def _rebuild(
    z_ptr,
    bases_ptr,
    out_ptr,
    begin,
    stop,
    backward,
    K: tl.constexpr,
    C: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Positions begin … stop of one image as mixtures of its bases."""
    in_n, in_k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    tiles = tl.cdiv(stop - begin, BLOCK_N)
    for c in range(0, C, BLOCK_C):
        in_c = c + tl.arange(0, BLOCK_C)
        there_kc = (in_k[:, None] < K) & (in_c[None, :] < C)
        at = in_k[:, None] * C + in_c[None, :]
        bases = tl.load(bases_ptr + at, mask=there_kc, other=0.0, cache_modifier=".cg")
        for i in tl.range(0, tiles, num_stages=3):
            first = begin + tl.where(backward, tiles - 1 - i, i) * BLOCK_N
            z = _rows(z_ptr, first, K, in_n, in_k, stop, K).to(bases.dtype)
            out = tl.dot(z, bases, input_precision=PRECISION)
            if RELU:
                out = tl.where(out < 0, 0.0, out)  # NaN stays NaN
            out_at = out_ptr + first.to(tl.int64) * C + in_n[:, None] * C + in_c[None, :]
            there = (first + in_n < stop)[:, None] & (in_c[None, :] < C)
            tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _meet(counter_ptr, arrivals):
    """Wait for the other programs of the image; what they wrote before can be read after."""
    tl.debug_barrier()
    arrived = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") + 1
    while arrived < arrivals:
        arrived = tl.atomic_add(counter_ptr, 0, sem="acq_rel", scope="gpu")
    tl.debug_barrier()


@triton.jit(do_not_specialize=["positions", "begin_t", "end_t", "num_iters"])
def em_kernel(
    x_ptr,  # (b, n, c), channels side by side
    x_desc,  # the same for the copy engine, in tiles (1, BLOCK_N, BLOCK_C); None has accumulate go in chunks
    start_ptr,  # (k, c) or (b, k, c), the bases of the first E-step
    bases_ptr,  # (b, k, c), overwritten in every iteration
    result_ptr,  # (b, k, c), the same memory or another type
    z_ptr,  # (b, n, k)
    out_ptr,  # (b, n, c)
    weighted_ptr,  # (b, programs, k, c), scratch
    total_ptr,  # (b, programs, k), scratch
    counter_ptr,  # (b,), zeros; None where no programs meet
    positions,
    stride_b,
    start_stride,  # 0 where all images share the first bases
    begin_t,
    end_t,
    num_iters,
    scale,
    eps,
    PHASE: tl.constexpr,
    STRIDE: tl.constexpr,
    NORM: tl.constexpr,
    CLAMP: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ALL_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OUT_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Iterations begin_t … end_t of num_iters: all phases of them, or one."""
    program, programs, image = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    span = tl.cdiv(tl.cdiv(positions, BLOCK_N), programs) * BLOCK_N
    begin = program * span
    stop = tl.minimum(begin + span, positions)
    x_ptr += image * stride_b
    start_ptr += image * start_stride
    bases_ptr += image * K * C
    result_ptr += image * K * C
    z_ptr += image * positions * K
    out_ptr += image * positions * C
    weighted_ptr += image * programs * K * C
    total_ptr += image * programs * K
    own_weighted, own_total = weighted_ptr + program * K * C, total_ptr + program * K
    log_scale = scale * _LOG2_E
    for t in tl.range(begin_t, end_t, disable_licm=True):
        if PHASE == _ALL or PHASE == _ACCUMULATE:
            before_ptr = tl.where(t == 0, start_ptr, bases_ptr)
            if x_desc is None:
                _accumulate_in_chunks(
                    x_ptr,
                    before_ptr,
                    z_ptr,
                    own_weighted,
                    own_total,
                    begin,
                    stop,
                    STRIDE,
                    log_scale,
                    K,
                    C,
                    BLOCK_N,
                    BLOCK_K,
                    BLOCK_C,
                    STAGES,
                    PRECISION,
                )
            else:
                _accumulate(
                    x_desc,
                    before_ptr,
                    z_ptr,
                    own_weighted,
                    own_total,
                    begin,
                    stop,
                    t % 2 == 1,
                    t == num_iters - 1,
                    log_scale,
                    K,
                    C,
                    BLOCK_N,
                    BLOCK_K,
                    BLOCK_C,
                    STAGES,
                )
        if PHASE == _ALL:
            _meet(counter_ptr + image, (2 * t + 1) * programs)
        if PHASE == _ALL or PHASE == _FINISH:
            _finish(
                weighted_ptr,
                total_ptr,
                bases_ptr,
                result_ptr,
                program,
                programs,
                eps,
                K,
                C,
                NORM,
                CLAMP,
                BLOCK_P,
                BLOCK_R,
                BLOCK_ALL_C,
            )
        if PHASE == _ALL:
            _meet(counter_ptr + image, (2 * t + 2) * programs)
    if PHASE == _ALL or PHASE == _REBUILD:
        _rebuild(
            z_ptr,
            bases_ptr,
            out_ptr,
            begin,
            stop,
            num_iters % 2 == 1,
            K,
            C,
            RELU,
            OUT_N,
            BLOCK_K,
            BLOCK_C,
            PRECISION,
        )
