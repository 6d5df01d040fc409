"""Compile the kernel of EM attention for GPUs that are not here, and record what it takes of each.

    python book/experiments/kernel_targets.py --out book/results/kernel-targets.json

The plans are those that `emalab.kernels` makes for the GPU's limits. Triton compiles them ahead of time, which needs
no GPU; its assembler reports registers and spilled bytes. Nothing is run, and nothing is timed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from emalab.kernels.plan import Limits, Plan, make_plan
from emalab.results import find_origin, write_record

KIBIBYTE = 1024
# Compute capability → shared memory for a block, after the table of technical specifications per compute capability
# in NVIDIA's CUDA C++ Programming Guide; the names are examples.
GPUS = {
    "A100": Limits((8, 0), 163 * KIBIBYTE),
    "RTX 30, A10": Limits((8, 6), 99 * KIBIBYTE),
    "RTX 40, L4": Limits((8, 9), 99 * KIBIBYTE),
    "H100, H200": Limits((9, 0), 227 * KIBIBYTE),
    "B200": Limits((10, 0), 227 * KIBIBYTE),
    "RTX 50": Limits((12, 0), 99 * KIBIBYTE),
}
SHAPES = ((64, 512), (64, 128), (17, 99), (256, 512), (256, 1024))  # bases, channels
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
STRIDES = ("stride_b", "start_stride")  # of the kernel's arguments
PROCESSORS = 100  # the images below are shared by as many programs as on such a GPU
IMAGES, POSITIONS = 16, 65**2


@dataclass(frozen=True)
class Arguments:
    """Where to write."""

    out: Path
    """The record."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""
    tiny: bool = False
    """One small plan for one GPU: tries the program."""


def compile_plan(
    plan: Plan, k: int, c: int, dtype: torch.dtype, limits: Limits
) -> dict[str, int]:
    """Bytes of shared memory, registers of a thread and bytes spilled, of the kernel with all its phases.

    Raises:
        ImportError: Triton is not installed, or older than 3.6.
    """
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia.compiler import get_ptxas
        from triton.compiler import ASTSource
    except ImportError as error:
        raise ImportError("the kernel needs Triton 3.6 or newer") from error

    from emalab.kernels._triton import ALL, em_kernel

    constants: dict[str, Any] = {
        **plan.constants(k, c),
        "STRIDE": c,
        "NORM": "l2",
        "CLAMP": False,
        "RELU": False,
        "PHASE": ALL,
        "PRECISION": "tf32x3",
        **({} if plan.whole else {"x_desc": None}),
    }
    names = em_kernel.arg_names
    signature = _signature(plan, DTYPES[dtype]) | dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if (name.endswith("_ptr") and name != "counter_ptr") or name in STRIDES
    }
    source = ASTSource(
        em_kernel, {name: signature[name] for name in names}, constants, aligned
    )
    major, minor = limits.capability
    target = GPUTarget("cuda", 10 * major + minor, 32)
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    compiled = triton.compile(source, target=target, options=options)
    assembler = get_ptxas(target.arch).path
    return {
        "shared": compiled.metadata.shared,
        **_registers(compiled.asm["ptx"], assembler),
    }


def _signature(plan: Plan, dtype: str) -> dict[str, str]:
    """Types of the kernel's arguments, as Triton writes them."""
    features = ("x_ptr", "start_ptr", "bases_ptr", "result_ptr", "z_ptr", "out_ptr")
    numbers = (*STRIDES, "positions", "begin_t", "end_t", "num_iters")
    return {
        **dict.fromkeys(features, f"*{dtype}"),
        "x_desc": f"tensordesc<{dtype}[1,{plan.block_n},{plan.block_c}]>",
        "weighted_ptr": "*fp32",
        "total_ptr": "*fp32",
        "counter_ptr": "*i32",
        **dict.fromkeys(numbers, "i32"),
        "scale": "fp32",
        "eps": "fp32",
    }


def _registers(ptx: str, assembler: str) -> dict[str, int]:
    """What the assembler reports of a program in PTX."""
    architecture = _found(r"\.target (\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        command = [
            assembler,
            "-v",
            f"--gpu-name={architecture}",
            str(file),
            "-o",
            f"{folder}/kernel.cubin",
        ]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(_found(r"Used (\d+) registers", log)),
        "spilled": int(_found(r"(\d+) bytes spill stores", log)),
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(
            f"no {pattern!r} in what Triton or its assembler wrote: {text[:200]!r}"
        )
    return match[1]


def main(arguments: Arguments) -> None:
    """Compile every plan for every GPU, and write the record."""
    rows = []
    for gpu, limits in list(GPUS.items())[: 1 if arguments.tiny else None]:
        for k, c in (
            SHAPES[1 : 2 if arguments.tiny else None] if arguments.tiny else SHAPES
        ):
            for dtype in [torch.float16] if arguments.tiny else DTYPES:
                plan = make_plan(IMAGES, POSITIONS, k, c, dtype, PROCESSORS, limits)
                row = {
                    "gpu": gpu,
                    "capability": list(limits.capability),
                    "shared_limit": limits.shared_memory,
                    "bases": k,
                    "channels": c,
                    "dtype": DTYPES[dtype],
                    "whole": plan.whole,
                    **compile_plan(plan, k, c, dtype, limits),
                }
                rows.append(row)
                print(row, flush=True)
    import triton

    record = {
        "what": "Shared memory, registers and spilled bytes of the kernel, compiled for GPUs that were not there.",
        "seeds": "none: nothing is run",
        "triton": triton.__version__,
        **find_origin(torch.device("cpu"), arguments.commit),
        "rows": rows,
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
