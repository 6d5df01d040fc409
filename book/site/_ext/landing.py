"""What the landing page shows beside its text: a live figure, the findings as cards, and a line for each chapter.

Numbers on the cards come from the book's records when the page is built (`lab.findings`); times and titles of chapters
come from their pages, and their order from _toc.yml.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).parents[2]
sys.path.insert(0, str(BOOK))

from reading_time import minutes_of

if (
    TYPE_CHECKING
):  # the directives import the laboratory: a book without them builds without it
    from lab.findings import Estimate, Finding

logger = logging.getLogger(__name__)
WIDTH, HEIGHT = 120, 14  # of the drawing of an estimate, in its own units


class LiveFigure(SphinxDirective):
    """``{live-figure}``: the figure of the landing page, which computes in the page."""

    def run(self) -> list[nodes.Node]:
        from lab.interactive import landing

        for path in [
            *(BOOK / "site" / "interactive").iterdir(),
            BOOK / "site" / "images" / "landing.json",
        ]:
            self.env.note_dependency(str(path))
        return [nodes.raw("", landing(), format="html")]


class Findings(SphinxDirective):
    """``{findings}``: one card for each finding that the content names, line by line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        from lab.findings import FINDINGS

        cards = []
        for name in self.content:
            finding = FINDINGS[name]()
            link = self.env.app.builder.get_relative_uri(
                self.env.docname, f"book/{finding.page}"
            )
            cards.append(card(finding, link))
        return [
            nodes.raw(
                "", f'<div class="findings">{"".join(cards)}</div>', format="html"
            )
        ]


def card(finding: Finding, link: str) -> str:
    """A finding as HTML: the sentence, which links to its chapter, and a row for each number."""
    timed = all(each.low is None for each in finding.estimates)
    values = [
        value
        for each in finding.estimates
        for value in (each.mean, each.low, each.high)
        if value is not None
    ]
    centered = timed or min(values) <= 0
    low, high = (
        (min(0.0, *values), max(0.0, *values))
        if centered
        else (min(values), max(values))
    )
    rows = "".join(
        _row(each, low, high, signed=centered and not timed)
        for each in finding.estimates
    )
    level = "" if timed else "; 95\u00a0% intervals"
    return (
        f'<section class="finding"><h3><a href="{escape(link)}">{escape(finding.title)}</a></h3>'
        f"<dl>{rows}</dl><p>{escape(finding.quantity)}{level}</p></section>"
    )


def _row(each: Estimate, low: float, high: float, *, signed: bool) -> str:
    interval = ""
    if each.low is not None and each.high is not None:
        interval = f" <span>[{number(each.low, signed=signed)}, {number(each.high, signed=signed)}]</span>"
    shown = "clear" if each.low is None or not signed or each.excludes_zero else "open"
    return (
        f'<div class="{shown}"><dt>{escape(each.label)}</dt><dd>{_drawing(each, low, high)}'
        f"<b>{number(each.mean, signed=signed)}</b>{interval}</dd></div>"
    )


def number(value: float, *, signed: bool) -> str:
    """With a sign and one digit after the point; without one, with two digits if it is below one."""
    if not signed:
        return f"{value:.2f}" if value < 1 else f"{value:.1f}"
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _drawing(each: Estimate, low: float, high: float) -> str:
    """A dot with its interval and a line at zero, or a bar from zero."""

    def at(value: float) -> float:
        return round(6 + (WIDTH - 12) * (value - low) / (high - low), 1)

    middle = HEIGHT / 2
    if each.low is None or each.high is None:
        drawn = f'<rect x="{at(0)}" y="3" width="{at(each.mean) - at(0):.1f}" height="8" rx="1"/>'
    else:
        drawn = f'<path d="M{at(each.low)} {middle}H{at(each.high)}"/><circle cx="{at(each.mean)}" cy="{middle}" r="3.5"/>'
    zero = f'<path class="zero" d="M{at(0)} 0V{HEIGHT}"/>' if low <= 0 <= high else ""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{zero}{drawn}</svg>'


class _Chapters(nodes.General, nodes.Element):
    """Stands for the list of chapters until all pages are read."""


class Chapters(SphinxDirective):
    """``{chapters}``: the parts and chapters of _toc.yml with their times; the content has a line for each chapter.

    A line is the chapter's file, a colon, and a sentence.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = dict(line.split(": ", 1) for line in self.content if line.strip())
        return [_Chapters("", lines=lines, location=self.get_location())]


def _fill(app: Any, doctree: nodes.document, docname: str) -> None:
    for place in list(doctree.findall(_Chapters)):
        toc = yaml.safe_load(
            (Path(app.srcdir) / "_toc.yml").read_text(encoding="utf-8")
        )
        parts = "".join(
            _part(app, docname, part, place["lines"]) for part in toc.get("parts", [])
        )
        place.replace_self(
            nodes.raw("", f'<div class="chapters">{parts}</div>', format="html")
        )


def _part(app: Any, docname: str, part: dict[str, Any], lines: dict[str, str]) -> str:
    rows, total = [], 0
    for entry in part["chapters"]:
        name = entry["file"]
        short, title = name.rsplit("/", 1)[-1], app.env.titles[name].astext()
        link = app.builder.get_relative_uri(docname, name)
        minutes = minutes_of(app.env, name)
        total += minutes or 0
        time = f"<span>{minutes} min</span>" if minutes else ""
        if minutes and short not in lines:
            logger.warning("the landing page has no line for the chapter %s", short)
        rows.append(
            f'<li><a href="{escape(link)}">{escape(title)}</a>{time}<br>{escape(lines.get(short, ""))}</li>'
        )
    whole = f" <span>{length(total)}</span>" if total else ""
    return f"<section><h3>{escape(part['caption'])}{whole}</h3><ol>{''.join(rows)}</ol></section>"


def length(minutes: int) -> str:
    """Minutes as people say them."""
    if minutes < 90:
        return f"{minutes} min"
    halves = round(minutes / 30)
    return f"{halves // 2}½ hours" if halves % 2 else f"{halves // 2} hours"


def setup(app: Any) -> dict[str, bool]:
    app.add_node(_Chapters)
    app.add_directive("live-figure", LiveFigure)
    app.add_directive("findings", Findings)
    app.add_directive("chapters", Chapters)
    app.connect("doctree-resolved", _fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
