"""The table of the chapters' times on the page about running the book."""

from pathlib import Path

import chapters
import executed_pages
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "about 10 s"), (24, "about 20 s"), (54, "about 50 s"), (58, "about 1 min"), (170, "about 3 min")],
)
def test_times_are_rounded(seconds: float, text: str) -> None:
    assert executed_pages.rounded(seconds) == text


def test_chapters_are_listed_in_order_and_pages_without_code_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapters, "seconds_before", lambda path: {"cost": 31.0}.get(path.stem))
    rows = executed_pages.times(["book/notation", "book/cost", "book/beyond"]).splitlines()[2:]
    assert rows == ["| [](/book/cost.ipynb) | about 30 s |", "| [](/book/beyond.ipynb) | – |"]


def test_the_page_has_the_place() -> None:
    assert executed_pages.TIMES in (ROOT / "book" / "running.md").read_text(encoding="utf-8").splitlines()
