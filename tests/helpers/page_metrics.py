"""What a reader meets on a rendered page: words, code, figures, and how large their text is."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from playwright.sync_api import Page

SCREEN = 900  # pixels of the first screen
MOST_LINES, MEDIAN_LINES, MOST_CODE = 30, 10, 0.25  # of visible code: a cell, the median, share of the height
LEAST_TEXT, LEAST_DENSITY = 9.0, 1.5  # pixels of text in figures; pixels of an image for one of the page

_MEASURE = """() => {
    const article = document.querySelector(".bd-article");
    const seen = node => node.checkVisibility({ visibilityProperty: true }) && node.getBoundingClientRect().height > 0;
    const all = selector => [...article.querySelectorAll(selector)].filter(seen);
    const middle = node => {
        const box = node.getBoundingClientRect();
        return scrollY + (box.top + box.bottom) / 2;
    };
    const code = all(".cell_input pre");
    const figures = all("figure, .emalab-schematic, .emalab-figure, .cell_output img").map(middle);
    const images = all("img.sized");
    const fontSize = node => parseFloat(getComputedStyle(node).fontSize);
    const scale = text => text.ownerSVGElement.clientWidth / text.ownerSVGElement.viewBox.baseVal.width;
    const texts = [
        ...images.map(image => image.dataset.smallest * image.clientWidth / (72 * image.dataset.inches)),
        ...all(".emalab-schematic text").map(text => fontSize(text) * scale(text)),
        ...all(".emalab-figure :is(label, p, output, .emalab-title)").map(fontSize),
    ];
    const pixels = images.filter(image => !image.currentSrc.endsWith(".svg"));
    const prose = article.cloneNode(true);
    prose.querySelectorAll("pre, .cell_output, mjx-container, script, style").forEach(node => node.remove());
    const minutes = article.querySelector(".reading-time")?.innerText.match(/\\d+/);
    return {
        words: prose.textContent.split(/\\s+/).filter(Boolean).length,
        minutes: minutes ? Number(minutes[0]) : null,
        code_lines: code.map(node => node.textContent.trimEnd().split("\\n").length),
        code_share: all(".cell_input").reduce((sum, n) => sum + n.getBoundingClientRect().height, 0)
            / article.getBoundingClientRect().height,
        first_figure: figures.length ? Math.min(...figures) : null,
        smallest_text: texts.length ? Math.min(...texts) : null,
        density: pixels.length ? Math.min(...pixels.map(image => image.naturalWidth / image.clientWidth)) : null,
    };
}"""


class Metrics(NamedTuple):
    """Of a page on a screen 1300 pixels wide; lengths in pixels, None where there is nothing to measure."""

    words: int
    minutes: int | None
    code_lines: list[int]
    code_share: float
    first_figure: float | None
    smallest_text: float | None
    density: float | None

    def faults(self, *, chapter: bool) -> list[str]:
        """What keeps the page from reading well, in words; chapters need a time and a figure on the first screen."""
        lines = self.code_lines or [0]
        found = {
            f"the longest visible cell has {max(lines)} lines": max(lines) > MOST_LINES,
            f"the median visible cell has {median(lines):g} lines": median(lines) > MEDIAN_LINES,
            f"{self.code_share:.0%} of the height is code": self.code_share >= MOST_CODE,
            f"text of {self.smallest_text or 0:.1f} pixels in a figure": (self.smallest_text or 99) < LEAST_TEXT,
            f"an image has {self.density or 0:.1f} pixels for one": (self.density or 99) < LEAST_DENSITY,
            "no reading time": chapter and self.minutes is None,
            f"the middle of the first figure is at {self.first_figure or 0:.0f} pixels": chapter
            and (self.first_figure or 1e6) > SCREEN,
        }
        return [fault for fault, holds in found.items() if holds]


def measure(page: Page) -> Metrics:
    """Measure a page that is loaded, and shown 1300 pixels wide."""
    return Metrics(**page.evaluate(_MEASURE))
