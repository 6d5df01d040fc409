"""The matrix: the workflow runs the sessions of noxfile.py, and its table holds what they found."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROW = runpy.run_path(str(ROOT / "tests/matrix/row.py"))
TRAINS = re.compile(r"(?<!def )\btrain\(|Trainer\(|torch\.optim\.")


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    command = [sys.executable, "-m", "nox", "--list", "--json", "--noxfile", str(ROOT / "noxfile.py")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {entry["session"] for entry in json.loads(listed)}


def test_the_workflow_runs_every_session(sessions: set[str]) -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/matrix.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["session"]["strategy"]["matrix"]
    assert set(matrix["session"]) == sessions
    assert {entry["session"] for entry in matrix["include"]} <= sessions


def test_chapters_that_train_are_executed_with_other_seeds() -> None:
    listed = [Path(path).stem for path in runpy.run_path(str(ROOT / "noxfile.py"))["CHAPTERS_THAT_TRAIN"]]
    chapters = {path.stem: nbformat.read(path, as_version=4) for path in (ROOT / "book").glob("*.ipynb")}
    assert set(listed) <= set(chapters)
    code = {
        name: "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        for name, notebook in chapters.items()
    }
    assert not {name for name, source in code.items() if TRAINS.search(source)} - set(listed)


def found(session: str, machine: str = "Linux, a, 2 cores", targets: str = "book tests", **more: Any) -> dict[str, Any]:
    values = dict.fromkeys(("python", "torch", "instructions", "shift", *ROW["COLUMNS"]), "")
    return values | {"session": session, "machine": machine, "targets": targets, "threads": 1, "failures": []} | more


def test_a_row_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    for row in (
        found("threads(2)", failures=["tests/a.py::test_a"]),
        found("threads(1)"),
        found("threads(2)", "Windows, b, 4 cores"),
        found("threads(2)", "Linux, c, 8 cores"),
        found("threads(2)", targets="tests/package"),
    ):
        ROW["write"](tmp_path, row)
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(row["session"], row["targets"], row["machine"][:8]) for row in rows] == [
        ("threads(1)", "book tests", "Linux, a"),
        ("threads(2)", "book tests", "Linux, c"),
        ("threads(2)", "book tests", "Windows,"),
        ("threads(2)", "tests/package", "Linux, a"),
    ]
    assert "test_a" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_row_counts_and_names_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMALAB_SEED_SHIFT", "1000")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    report = SimpleNamespace(nodeid="tests/a.py::test_a")
    reports = {"passed": [report] * 3, "failed": [report], "error": [report], "skipped": []}
    row = ROW["row"]("seeds(1000)", ["book/a.ipynb", "book/b.ipynb"], reports)
    assert (row["passed"], row["failed"], row["skipped"], row["shift"]) == (3, 2, 0, "+1000")
    page = ROW["page"]([row], ["seeds(1000)", "lowest", "torch(2.6)"])
    assert "| seeds(1000) |" in page
    assert f"{row['instructions']}, 2 threads, seeds +1000 | 2 chapters | 3 | 2 | 0 |" in page
    assert "- `tests/a.py::test_a`" in page
    assert "Not run yet: lowest, torch(2.6)." in page
    assert row["instructions"]


def test_the_table_is_that_of_the_results(sessions: set[str]) -> None:
    results = ROOT / "tests/matrix/results.json"
    if not results.exists():
        pytest.skip("no session has been run")
    rows = json.loads(results.read_text(encoding="utf-8"))
    assert (ROOT / "tests/matrix/README.md").read_text(encoding="utf-8") == ROW["page"](rows, ROW["sessions"]())
    assert {row["session"] for row in rows} <= sessions
