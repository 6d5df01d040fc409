"""Figures of the chapters: each has a caption and a description, and the text sends the reader to it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
FIGURE = re.compile(r"^```\{figure\}.*?^:name: ([\w-]+)$", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    """The prose of a page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_figures_are_captioned_described_and_referred_to(chapter: Path) -> None:
    text = text_of(chapter)
    names = FIGURE.findall(text)
    for cell in nbformat.read(chapter, as_version=4).cells:
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            names.append(figure["name"])
            assert figure["caption"].endswith((".", "?", ")")), cell.id
            # What readers drive describes itself, part by part; a schematic has a title and a description inside.
            if not figure["caption"].startswith("Drive it") and "schematics." not in cell.source:
                assert cell.metadata["mystnb"]["image"]["alt"], cell.id
    pages = text + "".join(text_of(page) for page in BOOK.iterdir() if page.suffix in (".md", ".ipynb"))
    lost = [name for name in names if f"{{numref}}`{name}`" not in pages and f"<{name}>`" not in pages]
    assert not lost, f"no sentence sends the reader to {', '.join(lost)}"
