"""The reading time of a chapter: what counts, and what does not."""

from __future__ import annotations

import pytest
import reading_time
from docutils import nodes


def cell(*tags: str) -> nodes.container:
    """A cell of two lines of code and a blank one, which prints three words."""
    code, output = "x = 1\n\nprint(x)", "one two three"
    whole = nodes.container(nb_element="cell_code", classes=["cell", *(f"tag_{tag}" for tag in tags)])
    whole += nodes.container("", nodes.literal_block(code, code), nb_element="cell_code_source")
    whole += nodes.container("", nodes.paragraph("", output), nb_element="cell_code_output")
    return whole


def test_prose_and_visible_code_count() -> None:
    sentence = nodes.paragraph("", "", nodes.Text("three words and "), nodes.math("", "x = y + z"))
    page = nodes.section("", nodes.title("", "Two words"), sentence, cell())
    assert reading_time.amount_of(page) == reading_time.Amount(words=2 + 3 + 1, lines=2)


def test_what_is_folded_or_computed_does_not() -> None:
    folded = nodes.admonition("", nodes.paragraph("", "a box of words"), classes=["dropdown"])
    formula = nodes.math_block("", "a b c d")
    page = nodes.section("", folded, formula, nodes.comment("", "not shown"), cell("hide-input"), cell("hide-cell"))
    assert reading_time.amount_of(page) == reading_time.Amount(0, 0)


@pytest.mark.parametrize(
    ("words", "lines", "minutes"), [(0, 0, 5), (1400, 0, 5), (1600, 0, 10), (4000, 150, 35), (4000, 180, 40)]
)
def test_minutes_are_rounded_to_five(words: int, lines: int, minutes: int) -> None:
    assert reading_time.Amount(words, lines).minutes == minutes
