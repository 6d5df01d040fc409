"""A pytest plugin, loaded by the sessions of noxfile.py: writes what a session found into the table of the matrix."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
CELL = "EMALAB_MATRIX_CELL"
OUTCOMES = ("passed", "failed", "error", "skipped")
_START = time.monotonic()

Row = dict[str, Any]

HEAD = """# The matrix

`make matrix` runs the tests and chapters again in every row's setting, and writes this table; `nox --list`
(with [noxfile.py](../../noxfile.py)) names the sessions, and `nox -s NAME` runs one of them. A session that needs
a Python or an instruction set that a machine lacks is skipped, and its row stays as it was.

"""
COLUMNS = {
    "session": "session",
    "python": "Python",
    "torch": "torch",
    "instructions": "instructions",
    "threads": "threads",
    "shift": "seeds",
    "targets": "of",
    "passed": "passed",
    "failed": "failed",
    "skipped": "skipped",
    "minutes": "minutes",
    "date": "date",
    "commit": "commit",
    "machine": "machine",
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the row; a worker of xdist has none."""
    cell = os.environ.get(CELL)
    if cell and not hasattr(config, "workerinput"):
        reports = {outcome: terminalreporter.getreports(outcome) for outcome in OUTCOMES}
        write(HERE, row(cell, list(config.args), reports))


def row(cell: str, targets: list[str], reports: Mapping[str, list[Any]]) -> Row:
    """What one session found, and where."""
    import torch

    failures = [report.nodeid for outcome in ("failed", "error") for report in reports[outcome]]
    return {
        "session": cell,
        "python": platform.python_version(),
        "torch": version("torch"),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
        "shift": f"+{os.environ['EMALAB_SEED_SHIFT']}" if os.environ.get("EMALAB_SEED_SHIFT") else "",
        "targets": " ".join(targets),
        "passed": len(reports["passed"]),
        "failed": len(failures),
        "skipped": len(reports["skipped"]),
        "minutes": round((time.monotonic() - _START) / 60, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "machine": f"{platform.system()}, {processor()}, {os.cpu_count()} cores",
        "failures": failures,
    }


def write(folder: Path, found: Row) -> None:
    """Put a row into results.json and README.md of the folder, in the place of the session's earlier row."""
    results = folder / "results.json"
    rows: list[Row] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []

    def key(entry: Row) -> tuple[str, str]:
        return entry["session"], entry["machine"].split(",")[0]

    rows = sorted([entry for entry in rows if key(entry) != key(found)] + [found], key=key)
    results.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(rows), encoding="utf-8")


def page(rows: list[Row]) -> str:
    """The table, and the tests that failed."""
    lines = [" | ".join(COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(str(entry[name]) for name in COLUMNS) for entry in rows]
    text = HEAD + "".join(f"| {line} |\n" for line in lines)
    for entry in rows:
        if entry["failures"]:
            text += f"\nFailed in {entry['session']}:\n\n" + "".join(f"- `{name}`\n" for name in entry["failures"])
    return text


def commit() -> str:
    """The commit of the working tree, with `-dirty` where more than the table itself was edited."""
    try:
        name = git("rev-parse", "--short", "HEAD")
        return name + ("-dirty" if git("status", "--porcelain", "--", ".", ":!tests/matrix") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    """What a command of git prints."""
    root = HERE.parents[1]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """The processor's name, as Linux has it, or Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
