"""What the page on notation calls a parameter is one, and its tables are whole."""

import inspect
import re
from pathlib import Path

from emalab import EMAU, em_attention
from emalab.metrics import SegmentationMetric

PAGE = (Path(__file__).resolve().parents[2] / "book" / "notation.md").read_text(encoding="utf-8")
CALLED = (em_attention, EMAU, EMAU.forward, SegmentationMetric)


def test_names_in_code_are_parameters() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| $")]
    names = {name for row in rows for name in re.findall(r"(?<!\})`(\w{2,})`", row[-1])}
    known = {name for called in CALLED for name in inspect.signature(called).parameters}
    assert {"num_bases", "num_iters", "scale", "momentum", "eps"} <= names
    assert not names - known


def test_rows_have_as_many_cells_as_their_heading() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        heading, *rows = table.splitlines()
        assert [row for row in rows if row.count("|") != heading.count("|")] == []
