"""The order of the chapters: what a page calls its next chapter, or the one before, has that place in _toc.yml."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from table_of_contents import toc_entries

ROOT = Path(__file__).resolve().parents[2]
ORDER = [Path(entry).name for entry in toc_entries(yaml.safe_load((ROOT / "_toc.yml").read_text()))]
PLACES = {"next": 1, "following": 1, "last": -1, "previous": -1, "preceding": -1}
_LINK = re.compile(rf"\[(?:the\s+)?({'|'.join(PLACES)})\s+chapter\]\((\w+)\.ipynb", re.IGNORECASE)


def misplaced(text: str, page: str) -> list[str]:
    """Links of a page whose words promise another place than the linked chapter has."""
    here = ORDER.index(page)
    return [
        f"{found[0]}): {ORDER[here + PLACES[found[1].lower()]]}"
        for found in _LINK.finditer(text)
        if ORDER.index(found[2]) != here + PLACES[found[1].lower()]
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_neighbors_are_what_a_page_calls_them(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert not misplaced(text, path.stem)


def test_a_wrong_neighbor_is_found() -> None:
    assert misplaced("as the [last\nchapter](em_attention.ipynb) shows", "non_local") == [
        "[last\nchapter](em_attention.ipynb): pixels"
    ]
