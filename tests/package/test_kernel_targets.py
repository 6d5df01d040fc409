"""The kernel compiled for GPUs that are not here: what it takes of each stays within the chip's limits."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from experiments.kernel_targets import GPUS, IMAGES, POSITIONS, PROCESSORS, compile_plan

from emalab.kernels.plan import MINIMUM, Limits, make_plan, timed

pytest.importorskip("triton", minversion="3.6", reason="Triton compiles the kernel")

# Every GPU with the book's shape, and the largest plans on one with little shared memory. The whole table of shapes
# takes minutes: book/results/kernel-targets.json.
CASES = [(gpu, 64, 512, torch.bfloat16) for gpu in GPUS]
CASES += [("RTX 30, A10", 256, 1024, torch.float16), ("A100", 256, 512, torch.float32)]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize(("gpu", "k", "c", "dtype"), CASES, ids=str)
def test_a_plan_fits_its_chip(gpu: str, k: int, c: int, dtype: torch.dtype) -> None:
    limits = GPUS[gpu]
    plan = make_plan(IMAGES, POSITIONS, k, c, dtype, PROCESSORS, limits)
    taken = compile_plan(plan, k, c, dtype, limits)
    assert taken["shared"] <= limits.shared_memory
    assert taken["registers"] <= 255
    if dtype.itemsize == 2:  # in float32 the kernel is for checks: with 256 bases it spills, and is never taken unasked
        assert taken["spilled"] <= 1024  # bytes a thread, which has 255 registers of 4


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
def test_the_plan_of_a_larger_chip_does_not_fit() -> None:
    limits = GPUS["RTX 30, A10"]
    plan = replace(
        make_plan(IMAGES, POSITIONS, 64, 512, torch.bfloat16, PROCESSORS), whole=False, block_c=256, stages=3
    )
    assert compile_plan(plan, 64, 512, torch.bfloat16, limits)["shared"] > limits.shared_memory


def test_what_a_chip_lacks_is_named() -> None:
    assert all(limits.missing() is None for limits in GPUS.values())
    assert "has compute capability 7.5 and 64 KB" in (Limits((7, 5), 64 * 1024).missing() or "")
    assert "needs compute capability 8.0 and 99 KB" in (Limits((8, 0), 48 * 1024).missing() or "")


def test_tiles_of_all_channels_need_the_copy_engine() -> None:
    wholes = {gpu: make_plan(16, 4225, 64, 512, torch.bfloat16, 100, limits).whole for gpu, limits in GPUS.items()}
    assert [gpu for gpu, whole in wholes.items() if whole] == ["H100, H200", "B200"]
    assert make_plan(16, 4225, 64, 128, torch.bfloat16, 100, GPUS["RTX 50"]).whole


def test_only_what_was_timed_is_taken_unasked() -> None:
    assert [gpu for gpu, limits in GPUS.items() if timed(limits)] == ["H100, H200"]
    assert all(limits.contain(MINIMUM) for limits in GPUS.values())
