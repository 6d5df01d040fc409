"""Run the tests that need a GPU on 1, 2 and 4 devices, and record the outcome of each.

    python book/experiments/gpu_tests.py --out book/results/gpu-tests-h100.json

runs ``pytest -m gpu`` once for each number of devices that is there. On one device every test runs; on several, those
that need several. The runs go side by side, since they test results and no times, and the tests of recipes are shared
out over all devices. With four GPUs this takes four minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import tyro

from emalab.results import find_origin, write_record

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = "several_devices or the_device_of_the_features"


@dataclass(frozen=True)
class Job:
    """One run of pytest."""

    devices: str
    """As CUDA_VISIBLE_DEVICES names them."""
    targets: tuple[str, ...]
    """Test files, and options of pytest."""


@dataclass(frozen=True)
class Arguments:
    """Where to write."""

    out: Path
    """The record."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""
    time_limit: float = 1800.0
    """Seconds after which what still runs is ended, and recorded as not finished."""
    tiny: bool = False
    """One test of the CPU instead: tries the program."""


def jobs(count: int, tiny: bool) -> list[Job]:
    """What to run side by side on so many devices."""
    if tiny:
        return [Job("", ("tests/package/test_em.py", "-k", "test_the_rank_reaches_k"))]
    tests = "tests/package"
    kernels = tuple(
        f"{tests}/test_{name}.py" for name in ("kernels", "fastops", "bench")
    )
    several = (f"{tests}/test_gpu.py", f"{tests}/test_kernels.py", "-k", SEVERAL)
    plan = [
        Job("0", (*kernels, "-m", "gpu")),
        Job(str(1 % count), (f"{tests}/test_gpu.py", "-m", "gpu")),
    ]
    recipes = [index for index in range(count) if index > 1] or [count - 1]
    for share, index in enumerate(recipes):
        plan.append(
            Job(
                str(index),
                (
                    f"{tests}/test_dry_runs.py",
                    "-m",
                    "gpu",
                    *_share(share, len(recipes)),
                ),
            )
        )
    plan += [
        Job(",".join(map(str, range(used))), (*several, "-m", "gpu"))
        for used in (2, 4)
        if used <= count
    ]
    return plan


def _share(index: int, count: int) -> tuple[str, ...]:
    """Options of pytest that select every ``count``-th recipe."""
    from emalab.recipes import recipe_names

    others = [
        name for place, name in enumerate(recipe_names()) if place % count != index
    ]
    return tuple(
        f"--deselect=tests/package/test_dry_runs.py::test_of_every_recipe[{name}]"
        for name in others
    )


def run(plan: list[Job], time_limit: float) -> list[dict[str, Any]]:
    """Run all jobs at once; what each did, test by test."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder) / f"{index}.xml" for index in range(len(plan))]
        processes = [
            _start(job, report) for job, report in zip(plan, reports, strict=True)
        ]
        codes = [
            _wait(process, time_limit - (time.monotonic() - started))
            for process in processes
        ]
        return [
            {
                "devices": len(job.devices.split(",")) if job.devices else 0,
                "targets": [
                    target
                    for target in job.targets
                    if not target.startswith("--deselect")
                ],
                **_outcomes(report),
                "exit_code": code,
            }
            for job, report, code in zip(plan, reports, codes, strict=True)
        ]


def _start(job: Job, report: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *job.targets,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": job.devices}
    )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def _outcomes(report: Path) -> dict[str, Any]:
    """Numbers of tests, and the names of those that did not pass, with the message."""
    if not report.is_file():  # ended before pytest wrote it
        return {"finished": False}
    cases = list(ElementTree.parse(report).iter("testcase"))
    problems: dict[str, list[tuple[str, str]]] = {"skipped": [], "failed": []}
    for case in cases:
        for kind, tags in (("skipped", ("skipped",)), ("failed", ("failure", "error"))):
            problems[kind] += [
                (
                    f"{case.get('classname')}::{case.get('name')}",
                    (found.get("message") or "")[:300],
                )
                for found in case
                if found.tag in tags
            ]
    return {
        "finished": True,
        "passed": len(cases) - sum(map(len, problems.values())),
        **{
            kind: [f"{name}: {message}" for name, message in found]
            for kind, found in problems.items()
        },
    }


def main(arguments: Arguments) -> None:
    """Run the tests, and write the record."""
    count = torch.cuda.device_count()
    if not (count or arguments.tiny):
        raise SystemExit(
            "there is no CUDA device here; --tiny tries the program without one"
        )
    record = {
        "what": "pytest -m gpu on one device, and on 2 and 4 devices the tests that need several; side by side.",
        "devices": count,
        "seeds": "in the tests",
        **find_origin(
            torch.device("cpu" if arguments.tiny else "cuda"), arguments.commit
        ),
        "runs": run(jobs(count, arguments.tiny), arguments.time_limit),
    }
    write_record(arguments.out, record)
    for one in record["runs"]:
        print(one)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
