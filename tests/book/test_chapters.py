"""Executing chapters, and what is kept of it."""

from pathlib import Path

import chapters
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


@pytest.fixture(autouse=True)
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chapters, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(chapters, "surroundings", lambda: "the same")
    return tmp_path / "executed"


def write(path: Path, *code: str, prose: str = "Text.", expected: bool = False) -> Path:
    tags = {"tags": ["raises-exception"]} if expected else {}
    cells = [new_code_cell(source, id=f"cell-{i}", metadata=tags) for i, source in enumerate(code, 1)]
    nbformat.write(new_notebook(cells=[new_markdown_cell(prose, id="prose"), *cells]), path)
    return path


def test_failures_name_cell_and_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "x = 1", "assert x > 1", "assert x > 2, f'x is\\n{x}'", "print('goes on')")
    chapter = chapters.execute(path)
    assert [(failure.cell, failure.id, failure.line) for failure in chapter.failures] == [
        (3, "cell-2", "AssertionError: assert x > 1"),
        (4, "cell-3", "AssertionError: x is 1"),
    ]
    assert chapter.failures[0].traceback.startswith("---")
    assert chapter.notebook.cells[-1].outputs[0].text == "goes on\n"


def test_success_is_kept_while_the_code_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ipynb", "print(1)")
    first = chapters.execute(path)
    assert not first.reused
    write(path, "print(1)", prose="Other text.")
    again = chapters.execute(path)
    assert again.reused
    assert again.notebook.cells[1].outputs == first.notebook.cells[1].outputs
    assert chapters.seconds_before(path) == pytest.approx(first.seconds, abs=0.01)
    write(path, "print(2)")
    assert chapters.kept(path) is None
    assert chapters.execute(path).notebook.cells[1].outputs[0].text == "2\n"


def test_success_is_not_kept_when_the_surroundings_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.ipynb", "print(1)")
    chapters.execute(path)
    monkeypatch.setattr(chapters, "surroundings", lambda: "changed")
    assert chapters.kept(path) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [("EMALAB_SEED_SHIFT", "7"), ("ATEN_CPU_CAPABILITY", "avx2"), ("MKL_ENABLE_INSTRUCTIONS", "AVX2")],
)
def test_surroundings_include_variables(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv(variable, raising=False)
    chapters.surroundings.cache_clear()
    before = chapters.surroundings()
    monkeypatch.setenv(variable, value)
    chapters.surroundings.cache_clear()
    assert chapters.surroundings() != before
    monkeypatch.undo()
    chapters.surroundings.cache_clear()


def test_failure_is_kept_to_be_shown_and_executed_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    path = write(tmp_path / "a.ipynb", f"from pathlib import Path\nassert Path({str(flag)!r}).exists()")
    assert chapters.execute(path).failures
    shown = chapters.kept(path)
    assert shown is not None
    assert shown.failures
    flag.touch()
    assert not chapters.execute(path).failures


def test_announced_errors_are_no_failures(tmp_path: Path) -> None:
    assert not chapters.execute(write(tmp_path / "a.ipynb", "1 / 0", expected=True)).failures


def test_kernel_that_dies_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ipynb", "import os, sys", "os.write(sys.__stderr__.fileno(), b'last words'); os._exit(1)", "2"
    )
    (failure,) = chapters.execute(path).failures
    assert (failure.cell, failure.line) == (3, "DeadKernelError: Kernel died")
    assert "last words" in failure.traceback
    assert chapters.UNENCRYPTED not in failure.traceback


def test_all_chapters_are_reported_as_they_end(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.ipynb", f"print('{name}')") for name in "abc"]
    done: list[Path] = []
    found = chapters.execute_all(paths, 2, lambda chapter: done.append(chapter.path))
    assert [chapter.path for chapter in found] == paths
    assert sorted(done) == paths
