"""`make book` on a book of two pages: what a failed cell costs, what is executed again, and what is printed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TOC = "format: jb-book\nroot: book/index\nchapters: [{file: book/good}, {file: book/bad}]\n"
HIDDEN = {"tags": ["hide-cell"]}


def write(path: Path, title: str, *code: str) -> None:
    cells = [new_code_cell(source, id=f"cell-{i}", metadata=HIDDEN) for i, source in enumerate(code)]
    notebook = new_notebook(cells=[new_markdown_cell(f"# {title}\n\nText.", id="title"), *cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)


class Built(NamedTuple):
    status: int
    printed: str
    errors: str
    page: Callable[[str], str]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "book" / "site", root / "book" / "site")
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "_toc.yml").write_text(TOC)
    (root / "book" / "index.md").write_text("# Tiny\n\nA book.\n")
    write(root / "book" / "good.ipynb", "Good", "print('fine')")
    write(root / "book" / "bad.ipynb", "Bad", "x = 1", "assert x > 1", "print('goes on')")
    return root


def build(root: Path, *arguments: str) -> Built:
    command = [sys.executable, str(root / "book" / "site" / "build.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    pages = root / "_build" / "html" / "book"
    return Built(done.returncode, done.stdout, done.stderr, lambda name: (pages / f"{name}.html").read_text())


def test_help_builds_nothing(book: Path) -> None:
    asked = build(book, "--help")
    assert (asked.status, asked.errors) == (0, "")
    assert asked.printed.startswith("usage: build.py [-h]")
    assert "_build/html" in asked.printed
    assert "Rendering" not in asked.printed


@pytest.mark.parametrize("argument", ["--al", "html"])
def test_unknown_argument_builds_nothing(argument: str, book: Path) -> None:
    refused = build(book, argument)
    assert (refused.status, refused.printed) == (2, "")
    assert f"unrecognized arguments: {argument}" in refused.errors


@pytest.fixture(scope="module")
def failed(book: Path) -> Built:
    return build(book)


@pytest.fixture(scope="module")
def mended(book: Path, failed: Built) -> Built:
    write(book / "book" / "bad.ipynb", "Bad", "x = 2", "assert x > 1", "print('goes on')")
    return build(book)


class TestFailedCell:
    def test_costs_the_exit_status(self, failed: Built) -> None:
        assert failed.status == 1

    def test_costs_no_other_page(self, failed: Built) -> None:
        assert "fine" in failed.page("good")
        assert "This page is incomplete" not in failed.page("good")

    def test_is_marked_on_its_page(self, failed: Built) -> None:
        page = failed.page("bad")
        assert page.index("This page is incomplete") < page.index("Text.")
        assert 'href="#failed-cell-1"' in page
        assert 'id="failed-cell-1"' in page
        assert page.index("The next cell failed") < page.index("Traceback")
        assert "goes on" in page  # the cells after it were executed

    def test_is_listed_on_one_line(self, failed: Built) -> None:
        *_, listed, _, where = failed.printed.strip().splitlines()
        assert listed.strip() == "book/bad.ipynb, cell 3 (cell-1): AssertionError: assert x > 1"
        assert where.startswith("The book: ")

    def test_is_executed_again(self, mended: Built) -> None:
        assert mended.status == 0
        assert "This page is incomplete" not in mended.page("bad")


def test_log_has_a_line_a_chapter_and_no_warning_of_other_packages(failed: Built) -> None:
    first, second, rendering, *_ = failed.printed.splitlines()
    assert first.startswith("[ 1/2] ")
    assert first.endswith(" left")
    assert second.startswith("[ 2/2] ")
    assert rendering == "Rendering the pages."
    assert failed.errors == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_build_says_so_and_leaves_no_kernel(number: signal.Signals, tmp_path: Path, book: Path) -> None:
    root = tmp_path / "book"
    shutil.copytree(book, root, ignore=shutil.ignore_patterns("_build"))
    noted = "import os, pathlib, time\npathlib.Path(NAME + '.pid').write_text(str(os.getpid()))\ntime.sleep(300)"
    for name in ("good", "bad"):
        write(root / "book" / f"{name}.ipynb", name.title(), noted.replace("NAME", repr(name)))
    command = [sys.executable, str(root / "book" / "site" / "build.py")]
    # Shells start what runs in the background with SIGINT ignored.
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kernels = [root / "book" / f"{name}.pid" for name in ("good", "bad")]
    wait_until(lambda: all(file.exists() and file.read_text() for file in kernels[: os.cpu_count()]), started)
    started.send_signal(number)
    printed, _ = started.communicate(timeout=100)
    assert started.returncode == 1
    assert printed == "\nInterrupted. The next build goes on from the chapters that were finished.\n"
    for file in filter(Path.exists, kernels):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    assert not list((root / "_build").rglob("*.ipynb"))


def test_unchanged_chapter_is_not_executed_again(book: Path, mended: Built) -> None:
    assert mended.printed.startswith("[ 1/2] good                 unchanged")


def test_nothing_is_done_when_nothing_has_changed(book: Path, mended: Built) -> None:
    assert build(book).printed == f"Nothing has changed. The book: {book / '_build' / 'html' / 'index.html'}\n"
