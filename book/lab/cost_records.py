"""The records of `book/results` that the chapter on cost shows, and the sizes, names and marks of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emalab.bench import Size
from emalab.results import load_records
from lab.style import METHODS

if TYPE_CHECKING:
    pass


RESULTS = Path(__file__).parents[1] / "results"
PAPER = Size(b=16, n=65**2, k=64, c=512, iterations=3, dtype="bfloat16")
B, N, K, C, T = PAPER.b, PAPER.n, PAPER.k, PAPER.c, PAPER.iterations
PROCESSORS = 132  # multiprocessors of an H200
FEATURES = B * N * C * 2  # bytes of the features in bfloat16
NAMES = {
    "em-triton": "EM, fused kernel",
    "em-torch": "EM, package's loop",
    "em-compiled": "EM, package's loop, compiled",
    "non-local-sdpa": "non-local, Flash",
    "non-local-explicit": "non-local, explicit",
}
MARKS = {
    "em-triton": (METHODS["EM"], "o", "-"),
    "em-torch": (METHODS["EM"], "s", "--"),
    "non-local-sdpa": (METHODS["non-local"], "D", "-"),
    "non-local-explicit": (METHODS["non-local"], "v", "--"),
}


@cache
def record(name: str) -> dict[str, Any]:
    """The record of that name in `book/results`."""
    (found,) = load_records(RESULTS, f"{name}.json")
    return found


def origin(of: Mapping[str, Any]) -> str:
    return f"{of['device']}, torch {of['versions']['torch']}, commit {of['commit'][:7]}, {of['date']}"


@cache
def benched() -> dict[tuple[str, Size], dict[str, Any]]:
    """Rows of `h200-bench.json` by method and size; ``time`` is that of the device: replayed where it was recorded."""
    found: dict[tuple[str, Size], dict[str, Any]] = {}
    for row in record("h200-bench")["rows"]:
        timed = row | {"time": row["replayed"] or row["seconds"]}
        found.setdefault((row["method"], Size(**row["size"])), timed)
    return found


def measured(method: str, **changes: Any) -> dict[str, Any]:
    """The row of a method at the paper's size, but for the changes."""
    return benched()[method, replace(PAPER, **changes)]


def ceilings() -> tuple[float, float]:
    """Bytes and bfloat16 operations per second that the H200 reached."""
    found = record("h200-bench")["ceilings"]
    return found["bandwidth"], found["arithmetic"]["bfloat16"]


def textbook_ms(key: str = "plain_bcn_ms") -> dict[int, float]:
    """Milliseconds of a loop by positions, called from Python: `h200-speed.json`, batch 16, bfloat16.

    Args:
        key: ``plain_bcn_ms``, the textbook loop; ``em_bcn_ms`` and ``em_bnc_ms``, the package's of that commit with the
            channels first and last.
    """
    rows = record("h200-speed")["em_attention"]["rows"]
    return {r["positions"]: r[key] for r in rows if r["dtype"] == "bfloat16"}


ROUNDS = {  # ways of `bench-cards-h200.json`
    "em-fused": NAMES["em-triton"],
    "em-torch": NAMES["em-torch"],
    "em-compiled": NAMES["em-compiled"],
    "em-public": "EM, textbook loop",
    "non-local-flash": NAMES["non-local-sdpa"],
}


@cache
def rounds(method: str, b: int = B, n: int = N) -> dict[str, np.ndarray[Any, Any]]:
    """Milliseconds of `bench-cards-h200.json`, one in each round: ``called``, ``replayed``, ``host``; ``floor``."""
    (row,) = (
        row
        for row in record("bench-cards-h200")["rows"]
        if (row["method"], row["size"]["b"], row["size"]["n"]) == (method, b, n)
    )
    return {
        key: 1e3 * np.array(row[key]) for key in ("called", "replayed", "host", "floor")
    }
