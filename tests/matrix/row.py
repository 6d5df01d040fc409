"""A pytest plugin, loaded by the sessions of noxfile.py: writes what a session found into the table of the matrix."""

import json
import os
import platform
import subprocess
import sys
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

Each session of [noxfile.py](../../noxfile.py) runs the tests and chapters again with another instruction set, number of
threads, shift of the seeds, Python or torch. `nox --list` names the sessions, `nox -s NAME` runs one, and `make matrix`
runs all of them, which takes hours. A session over whole folders or chapters writes its row of this table.

Skipped tests need a GPU, the real data sets, or a package that the setting lacks. "+1000" means that 1000 was added to
every seed.

"""
COLUMNS = {
    "session": "session",
    "setting": "setting",
    "tests": "tests",
    "passed": "passed",
    "failed": "failed",
    "skipped": "skipped",
    "minutes": "minutes",
    "commit": "commit",
    "date": "date",
    "machine": "machine",
}
NUMBERS = {"passed", "failed", "skipped", "minutes"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the row; a worker of xdist has none, nor has a session over single files of tests."""
    cell = os.environ.get(CELL)
    single = config.option.keyword or any(".py" in target for target in config.args)
    if cell and not single and not hasattr(config, "workerinput"):
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

    def key(entry: Row) -> tuple[str, str, str]:
        return entry["session"], entry["targets"], entry["machine"].split(",")[0]

    rows = sorted([entry for entry in rows if key(entry) != key(found)] + [found], key=key)
    results.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(rows, sessions()), encoding="utf-8")


def sessions() -> list[str]:
    """The names of all sessions that belong to the matrix, in the order of noxfile.py."""
    command = [sys.executable, "-m", "nox", "--list", "--json", "--noxfile", str(HERE.parents[1] / "noxfile.py")]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [entry["session"] for entry in listed if entry["session"] != "other"]


def page(rows: list[Row], expected: list[str]) -> str:
    """The table, the sessions without a row, and the tests that failed."""
    lines = [" | ".join(COLUMNS.values()), " | ".join("---:" if name in NUMBERS else "---" for name in COLUMNS)]
    lines += [" | ".join(str(shown(entry)[name]) for name in COLUMNS) for entry in rows]
    text = HEAD + "".join(f"| {line} |\n" for line in lines)
    if missing := [name for name in expected if name not in {entry["session"] for entry in rows}]:
        text += f"\nNot run yet: {', '.join(missing)}.\n"
    for entry in rows:
        if entry["failures"]:
            text += f"\nFailed in {entry['session']}:\n\n" + "".join(f"- `{name}`\n" for name in entry["failures"])
    return text


def shown(entry: Row) -> Row:
    """The row with its setting and its tests in words."""
    threads, targets = entry["threads"], entry["targets"].split()
    setting = [f"Python {entry['python']}", f"torch {entry['torch']}", str(entry["instructions"])]
    setting += [f"{threads} thread{'s' * (threads != 1)}", *([f"seeds {entry['shift']}"] if entry["shift"] else [])]
    chapters = [target for target in targets if target.endswith(".ipynb")]
    folders = [target for target in targets if target not in chapters]
    tests = ", ".join([*folders, *([f"{len(chapters)} chapters"] if chapters else [])])
    return entry | {"setting": ", ".join(setting), "tests": tests}


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
