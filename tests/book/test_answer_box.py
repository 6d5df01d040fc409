"""The box on a chapter's first screen: one sentence, whose numbers have a sign and an interval."""

from lab import answer_box

from emalab.studies.statistics import Interval


def test_an_interval_in_words() -> None:
    found = Interval(mean=-0.25, low=-1.04, high=0.54, num_values=5)
    assert answer_box.phrase(found) == "−0.2 points (95 % interval −1.0 to +0.5)"
    assert answer_box.phrase(found, "ms", digits=2) == "−0.25 ms (95 % interval −1.04 to +0.54)"


def test_the_box_has_title_and_sentence() -> None:
    html = answer_box.show("Copies are weights.", title="In short").data
    assert "admonition" in html
    assert html.index("In short") < html.index("Copies are weights.")
