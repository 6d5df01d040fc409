"""Look at the kernel of EM attention through a GPU's counters, and keep a few of them.

    for n in 1089 4225 16641; do
        ncu --clock-control none --kernel-name regex:em_kernel --set full --csv --page raw \
            python book/experiments/h200_kernel_profile.py launch $n > $n.csv
    done
    python book/experiments/h200_kernel_profile.py distill 1089.csv 4225.csv 16641.csv

writes ``book/results/h200-kernel-profile.json``, which the chapter "What attention costs" reads. Nsight Compute repeats
every launch for its counters, and empties the caches before each.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro

from emalab.kernels.plan import make_plan
from emalab.results import load_records, write_record

B, K, C, T = 16, 64, 512, 3
CALLS = 2  # the first of a process warms up, the second counts

COUNTERS = {  # ours: theirs, and what one of theirs is of ours
    "microseconds": ("gpu__time_duration.sum", 1e-3),
    "dram_read_bytes": ("dram__bytes_read.sum", 1),
    "dram_written_bytes": ("dram__bytes_write.sum", 1),
    "dram_percent": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "l2_hit_percent": ("lts__t_sector_hit_rate.pct", 1),
    "sm_percent": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "tensor_percent": (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
        1,
    ),
    "issuing_percent": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
    "occupancy_percent": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    "registers": ("launch__registers_per_thread", 1),
    "shared_memory_bytes": ("launch__shared_mem_per_block", 1),
    "spills": ("derived__local_spilling_requests", 1),
    "clock_mhz": ("gpc__cycles_elapsed.avg.per_second", 1e-6),
}
UNITS = {"microseconds": "ns", "clock_mhz": "hz", "shared_memory_bytes": "byte/block"}
DEVICE = "device__attribute_display_name"
STALLS = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"


def launch(positions: int, /) -> None:
    """Attend to random features, with a launch for each phase and with one for all.

    Args:
        positions: N of each of 16 images.
    """
    from emalab.kernels._launch import launch as attend

    device = torch.device("cuda")
    x = torch.randn(B, positions, C, device=device, dtype=torch.bfloat16)
    bases = F.normalize(torch.randn(K, C, device=device), dim=-1).bfloat16()
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    plan = make_plan(B, positions, K, C, x.dtype, processors)
    for one_launch in (False, True):
        for _ in range(CALLS):
            way = replace(plan, one_launch=one_launch)
            attend(x, bases, T, 1.0, "l2", 1e-6, False, False, x.dtype, way)
    torch.cuda.synchronize()


def read(table: Path, device: str) -> list[dict[str, Any]]:
    """The counters of each launch of the second call on that GPU, in order, from the CSV of Nsight Compute.

    Raises:
        ValueError: the file is not the table of `launch`; the message says why.
    """
    lines = table.read_text(encoding="utf-8").splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        raise ValueError(f"{table} holds no CSV table of Nsight Compute")
    units, *rows = csv.DictReader(lines[head:])
    phases = [*["accumulate", "finish"] * T, "rebuild"]
    if len(rows) != CALLS * (len(phases) + 1):
        raise ValueError(
            f"{table} has {len(rows)} launches, not {CALLS} × ({len(phases)} + 1)"
        )
    for name, unit in UNITS.items():
        if units[COUNTERS[name][0]] != unit:
            found = units[COUNTERS[name][0]]
            raise ValueError(f"{table}: {COUNTERS[name][0]} is in {found}, not {unit}")
    if (found := rows[0][DEVICE]) != device:
        raise ValueError(
            f"{table} is of {found}, and the record of timings of {device}"
        )
    several, one = rows[len(phases) : CALLS * len(phases)], rows[-1]
    return [
        {"phase": phase, **distilled(row)}
        for phase, row in zip([*phases, "all"], [*several, one], strict=True)
    ]


def distilled(row: dict[str, str]) -> dict[str, Any]:
    """Our counters of one launch, and for what its warps wait: shares of their time, the longest four."""
    begin, end = STALLS
    waits = {
        name.removeprefix(begin).removesuffix(end): number(value)
        for name, value in row.items()
        if name.startswith(begin) and name.endswith(end)
    }
    everything = sum(waits.values())
    del waits["selected"]  # these do not wait
    longest = sorted(waits, key=lambda name: -waits[name])[:4]
    ours = {
        name: round(number(row[theirs]) * unit, 3)
        for name, (theirs, unit) in COUNTERS.items()
    }
    shares = {name: round(waits[name] / everything, 3) for name in longest}
    return {**ours, "waits": shares}


def number(text: str) -> int | float:
    """What Nsight Compute writes as 1,234 or 1,234.5."""
    text = text.replace(",", "")
    return float(text) if "." in text else int(text)


def distill(
    tables: tyro.conf.Positional[tuple[Path, ...]],
    bench: Path = Path("book/results/h200-bench.json"),
    out: Path = Path("book/results/h200-kernel-profile.json"),
) -> None:
    """Write the record.

    Args:
        tables: what `ncu` printed, in files N.csv.
        bench: record of the same source on the same device: its commit, versions and date are taken.
        out: the record.
    """
    (origin,) = load_records(bench.parent, bench.name)
    record = {
        "what": f"Counters of the kernel of EM attention, launch by launch: forward, {B} images, K {K}, C {C}, T {T}, "
        "bfloat16, N as said. several: a launch for each phase; one: a single launch. The second call in its process.",
        "how": "ncu --clock-control none --set full (book/experiments/h200_kernel_profile.py). It repeats each launch for its counters "
        "and empties the caches before each, so that here even what the last launch has written comes from memory; "
        "clocks are those that the GPU chose, and differ from those of timings without a profiler.",
        "units": "percent of what the device sustains at its clock; spills: requests of warps to memory for what does "
        "not fit into registers; waits: share of the time of all warps, by what they wait for, the longest four.",
        **{
            key: origin[key]
            for key in ("commit", "device", "python", "versions", "date")
        },
        "seeds": "features and bases: normal random numbers, unseeded",
        "rows": [
            {"n": int(table.stem), "several": launches[:-1], "one": launches[-1]}
            for table in tables
            for launches in [read(table, origin["device"])]
        ],
    }
    write_record(out, record)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"launch": launch, "distill": distill})
