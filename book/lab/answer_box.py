"""What a measured chapter found, in a box for its first screen."""

from __future__ import annotations

from IPython.display import HTML

from emalab.studies.statistics import Interval

__all__ = ["phrase", "show"]


def phrase(found: Interval, unit: str = "points", digits: int = 1) -> str:
    """A difference with its 95 % interval, in words: ``+2.8 points (95 % interval +2.4 to +3.2)``."""
    mean, low, high = (
        f"{value:+.{digits}f}".replace("-", "−")
        for value in (found.mean, found.low, found.high)
    )
    return f"{mean} {unit} (95 % interval {low} to {high})"


def show(sentence: str, title: str = "The answer") -> HTML:
    """A box with one sentence, HTML, for the last line of a cell; its numbers come from records."""
    return HTML(
        f'<div class="admonition important"><p class="admonition-title">{title}</p>'
        f"<p>{sentence}</p></div>"
    )
