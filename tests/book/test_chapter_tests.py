"""How pytest tests the chapters: by nbmake, and not again what was executed before."""

from pathlib import Path

import chapters
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytest_plugins = "pytester"

CONFTEST = Path(__file__).resolve().parents[2] / "book" / "conftest.py"


@pytest.fixture
def folder(
    pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A book without chapters, with the conftest.py of ours."""
    monkeypatch.setattr(chapters, "EXECUTED", tmp_path_factory.mktemp("executed"))
    monkeypatch.setattr(chapters, "surroundings", lambda: "the same")
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    return pytester.path


def write(folder: Path, code: str) -> None:
    """A chapter that leaves a mark of each execution."""
    cells = [new_code_cell(code, id="a"), new_code_cell("open('marks', 'a').write('x')", id="b")]
    nbformat.write(new_notebook(cells=cells), folder / "chapter.ipynb")


def marks(folder: Path) -> int:
    path = folder / "marks"
    return len(path.read_text(encoding="utf-8")) if path.exists() else 0


def test_an_unchanged_chapter_is_executed_once(pytester: pytest.Pytester, folder: Path) -> None:
    write(folder, "1")
    pytester.runpytest_inprocess("--nbmake").assert_outcomes(passed=1)
    again = pytester.runpytest_inprocess("--nbmake")
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines("*Executed before, and nothing has changed since: chapter")
    assert marks(folder) == 1
    pytester.runpytest_inprocess("--nbmake", "--execute-all").assert_outcomes(passed=1)
    assert marks(folder) == 2
    write(folder, "2")
    pytester.runpytest_inprocess("--nbmake").assert_outcomes(passed=1)
    assert marks(folder) == 3


def test_the_build_executes_for_the_tests(pytester: pytest.Pytester, folder: Path) -> None:
    write(folder, "1")
    chapters.execute(folder / "chapter.ipynb")
    pytester.runpytest_inprocess("--nbmake").assert_outcomes(passed=1)
    assert marks(folder) == 1


def test_a_failure_is_not_kept(pytester: pytest.Pytester, folder: Path) -> None:
    write(folder, "assert 1 > 2")
    assert chapters.execute(folder / "chapter.ipynb").failures
    for _ in range(2):
        failed = pytester.runpytest_inprocess("--nbmake")
        failed.assert_outcomes(failed=1)
        failed.stdout.fnmatch_lines("*assert 1 > 2*")
