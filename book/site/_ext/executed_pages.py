"""Puts the outputs of the executed chapters onto their pages, and marks the cells that failed.

A note stands above each failed cell, whose code and traceback are shown whatever its tags hide. A note below the title
says that the page is incomplete, and links to the first failed cell.

A page with the line `TIMES` shows there how long each chapter took.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

sys.path.insert(0, str(Path(__file__).parents[1]))

import chapters

TIMES = "<!-- times of the chapters -->"
_TITLE = re.compile(r"^# .*$", re.MULTILINE)


def with_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook with the outputs of its executed copy, which has the same code cells."""
    pairs = zip(
        chapters.code_cells(notebook), chapters.code_cells(executed), strict=True
    )
    for cell, done in pairs:
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    for name in ("language_info", "widgets"):
        if name in executed.metadata:
            notebook.metadata[name] = executed.metadata[name]
    return notebook


def with_marks(notebook: NotebookNode) -> NotebookNode:
    """The notebook with a note above every failed cell, and one below the title; unchanged if no cell failed."""
    failures = {failure.id: failure for failure in chapters.failures_of(notebook)}
    if not failures:
        return notebook
    cells = []
    for cell in notebook.cells:
        if failure := failures.get(cell.id):
            shown = [tag for tag in cell.metadata.get("tags", []) if not _hides(tag)]
            cell.metadata.tags = [*shown, "failed"]
            cells.append(nbformat.v4.new_markdown_cell(_mark(failure)))
        cells.append(cell)
    title = cells[0]
    note = _note(list(failures.values()))
    title.source = _TITLE.sub(lambda found: f"{found[0]}\n\n{note}\n", title.source, 1)
    notebook.cells = cells
    return notebook


def _hides(tag: str) -> bool:
    return tag.startswith(("hide-", "remove-"))


def _label(failure: chapters.Failure) -> str:
    return f"failed-{failure.id}"


def _mark(failure: chapters.Failure) -> str:
    return f"({_label(failure)})=\n" + _box("The next cell failed", failure.line)


def _note(failures: list[chapters.Failure]) -> str:
    first, *more = failures
    others = f"; so did {len(more)} later cell{'s' if more[1:] else ''}" if more else ""
    return _box(
        "This page is incomplete",
        first.line,
        f"[Cell {first.cell}](#{_label(first)}) failed{others}. "
        "What is said about its results may not hold here.",
    )


def _box(title: str, error: str, text: str = "") -> str:
    shown = f"~~~~~~text\n{error}\n~~~~~~"
    return f":::::{{admonition}} {title}\n:class: error\n{text}\n\n{shown}\n:::::"


def rounded(seconds: float) -> str:
    """A time as readers need it: to ten seconds below a minute, to minutes above."""
    if seconds < 55:
        return f"about {max(10, 10 * round(seconds / 10))} s"
    return f"about {round(seconds / 60)} min"


def times(order: list[str]) -> str:
    """A table of the executed chapters, in the order of the book: their titles, and how long they took."""
    rows = []
    for name in order:
        path = chapters.ROOT / f"{name}.ipynb"
        if path.exists():
            seconds = chapters.seconds_before(path)
            rows.append(
                f"| [](/{name}.ipynb) | {rounded(seconds) if seconds else '–'} |"
            )
    return "\n".join(["| chapter | time |", "|:--|--:|", *rows])


def _fill(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx ``source-read`` handler: a page that nobody has executed yet is executed here."""
    path = Path(app.env.doc2path(docname))
    if TIMES in source[0]:
        toc = Path(app.config.external_toc_path).read_text(encoding="utf-8")
        source[0] = source[0].replace(TIMES, times(re.findall(r"file: (\S+)", toc)))
    if path.suffix != ".ipynb":
        return
    chapter = chapters.kept(path) or chapters.execute(path)
    notebook = nbformat.reads(source[0], as_version=4)
    source[0] = nbformat.writes(with_marks(with_outputs(notebook, chapter.notebook)))


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
