"""Tables of results."""

import pytest
from lab import tables

ROWS = [
    {"head": "EM", "mIoU": 74.3123, "difference": None},
    {"head": "non-local", "mIoU": 73.1, "difference": "−1.2 ± 0.4"},
    {"head": "<FCN>", "mIoU": -0.00012, "difference": "−2.3 ± 0.4"},
]


def test_the_page_has_caption_digits_and_signs() -> None:
    html = tables.show(ROWS, "Three heads", formats={"mIoU": "{:.1f}"}).to_html()
    assert "<caption>Three heads</caption>" in html
    assert ">74.3<" in html
    assert ">−0.0<" in html
    assert "&lt;FCN&gt;" in html


def test_three_digits_are_the_default() -> None:
    html = tables.show(ROWS, "Three heads").to_html()
    assert ">74.3<" in html
    assert ">−0.00012<" in html


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    style = tables.show(ROWS, "Three heads")
    right = {column for (row, column), props in style._compute().ctx.items() if ("text-align", "right") in props}
    assert right == {1, 2}


def test_bold_marks_whole_rows() -> None:
    style = tables.show(ROWS, "Three heads", bold=[1])
    bold = {place for place, props in style._compute().ctx.items() if ("font-weight", "bold") in props}
    assert bold == {(1, 0), (1, 1), (1, 2)}


def test_two_tables_of_a_page_share_no_name() -> None:
    first, second = (tables.show(ROWS, caption).to_html() for caption in ("one", "two"))
    assert first.split("T_")[1][:8] != second.split("T_")[1][:8]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "has no rows"),
        (ROWS, {"formats": {"IoU": "{}"}}, r"formats name \['IoU'\]"),
        (ROWS, {"bold": [3]}, r"bold names rows \[3\], and there are 3"),
    ],
)
def test_errors(rows: list[dict[str, object]], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.show(rows, "Three heads", **options)  # type: ignore[arg-type]


def test_an_interval_is_one_piece_and_other_brackets_are_text() -> None:
    rows = [{"points": "+0.15 [−1.53, +1.23]", "x": "a[0] <b>"}]
    html = tables.show(rows, "made up").to_html()
    assert '+0.15 <span class="interval">[−1.53, +1.23]</span>' in html
    assert "a[0] &lt;b&gt;" in html
