"""Boxes, arrows and labeled matrices as SVG, in the text color of the page and the colors of `lab.style`.

A figure is a row of panels. Each panel is drawn at its own size, never wider than a phone, and panels stack where the
page is narrow: text has the same size everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lab.style import SYMBOLS

TEXT, SMALL = 14, 12.5  # font sizes, pixels as displayed
PHONE = 320  # the widest panel, pixels

__all__ = ["Drawing", "Schematic"]

Point = tuple[float, float]

_STYLE = """
.emalab-schematic {
  --ink: var(--pst-color-text-base, var(--jp-ui-font-color1, CanvasText));
  color: var(--ink); display: flex; flex-wrap: wrap; gap: 1.25rem 1rem; justify-content: center;
}
.emalab-schematic > div { flex: 0 1 auto; max-width: 100%; }
.emalab-schematic p { font-size: 0.95rem; font-weight: 600; margin: 0 0 0.25rem; text-align: center; }
.emalab-schematic svg { display: block; height: auto; margin: auto; max-width: 100%; overflow: visible; }
.emalab-schematic text { fill: currentColor; font-family: inherit; font-size: SIZEpx; }
.emalab-schematic .small { font-size: SMALLpx; }
.emalab-schematic .symbol { font-style: italic; font-weight: 600; }
.emalab-schematic .shape { fill: none; stroke: currentColor; stroke-width: 1.5; }
.emalab-schematic .solid { fill-opacity: 1 !important; }
.emalab-schematic .line { fill: none; stroke: currentColor; stroke-width: 1.5; }
.emalab-schematic .head { fill: currentColor; stroke: none; }
.emalab-schematic .dashed { stroke-dasharray: 5 4; }
.emalab-schematic .heavy { stroke-width: 3; }
html[data-theme="dark"] .bd-content div.cell_output .text_html:has(.emalab-schematic) { background: none; padding: 0; }
"""


def _stylesheet() -> str:
    rules = [_STYLE.replace("SIZE", f"{TEXT}").replace("SMALL", f"{SMALL}")]
    for role, color in SYMBOLS.items():
        of = f".emalab-schematic .{role}"
        rules.append(
            f"{of}.shape {{ fill: {color}; fill-opacity: 0.18; stroke: {color}; }}"
        )
        rules.append(f"{of}.line {{ stroke: {color}; }} {of}.head {{ fill: {color}; }}")
    return "\n".join(rules)


class Drawing:
    """One panel: a title above it, a description for those who do not see it, and what is drawn, in pixels.

    Args:
        title: stands above the panel, and names it for screen readers.
        description: what the panel shows, in words.
        width, height: pixels.

    Raises:
        ValueError: a panel wider than a phone.
    """

    def __init__(
        self, title: str, description: str, width: float, height: float
    ) -> None:
        if width > PHONE:
            raise ValueError(
                f"panel {title!r} is {width} pixels wide, a phone shows {PHONE}; make two panels of it"
            )
        self.title, self.description = title, description
        self.width, self.height = width, height
        self._parts: list[str] = []

    def text(
        self,
        at: Point,
        *lines: str,
        kind: str = "",
        anchor: str = "middle",
        color: str = "",
    ) -> None:
        """Lines of text, centered vertically on a point; ``kind``: "", "small" or "symbol"."""
        leading = 17 if kind != "small" else 15
        top = at[1] - (len(lines) - 1) * leading / 2 + 4.5
        for index, line in enumerate(lines):
            self._parts.append(
                f'<text x="{at[0]:g}" y="{top + index * leading:g}" text-anchor="{anchor}"'
                f' class="{f"{kind} {color}".strip()}">{escape(line)}</text>'
            )

    def box(
        self,
        at: Point,
        size: Point,
        *lines: str,
        role: str = "",
        kind: str = "",
        rounded: float = 5,
    ) -> None:
        """A rectangle by its top left corner, with text in its middle."""
        (x, y), (width, height) = at, size
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rounded:g}"'
            f' class="{f"shape {role}".strip()}"/>'
        )
        self.text((x + width / 2, y + height / 2), *lines, kind=kind)

    def matrix(
        self, at: Point, size: Point, name: str, shape: str = "", *, role: str = ""
    ) -> None:
        """A matrix with its symbol inside and its shape below; ``role`` may end in "solid", for a thin one."""
        self.box(at, size, name, role=role, kind="symbol", rounded=0)
        self.text(
            (at[0] + size[0] / 2, at[1] + size[1] + 12),
            *([shape] if shape else []),
            kind="small",
        )

    def line(
        self, *points: Point, role: str = "", dashed: bool = False, heavy: bool = False
    ) -> None:
        """A line through points."""
        path = " ".join(
            f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(points)
        )
        marks = f"{' dashed' if dashed else ''}{' heavy' if heavy else ''}"
        self._parts.append(
            f'<path d="{path}" class="{f"line {role}".strip()}{marks}"/>'
        )

    def arrow(
        self, *points: Point, role: str = "", dashed: bool = False, heavy: bool = False
    ) -> None:
        """A line through points with a head at its end."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        long, wide = (11, 5.5) if heavy else (9, 4.5)
        neck = (x1 - long * ux, y1 - long * uy)
        left = (neck[0] - wide * uy, neck[1] + wide * ux)
        right = (neck[0] + wide * uy, neck[1] - wide * ux)
        self.line(*points[:-1], neck, role=role, dashed=dashed, heavy=heavy)
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x1, y1), left, right))
        self._parts.append(
            f'<polygon points="{corners}" class="{f"head {role}".strip()}"/>'
        )

    def svg(self, name: str) -> str:
        """The panel as an SVG element with identifiers that begin with ``name``."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{self.width:g}" height="{self.height:g}"'
            f' viewBox="0 0 {self.width:g} {self.height:g}" aria-labelledby="{name}-title {name}-desc">'
            f'<title id="{name}-title">{escape(self.title)}</title>'
            f'<desc id="{name}-desc">{escape(self.description)}</desc>'
            f"{''.join(self._parts)}</svg>"
        )


class Schematic:
    """A figure of one or more panels, shown by Jupyter and in the book; ``name`` is unique on a page."""

    def __init__(self, name: str, panels: Sequence[Drawing]) -> None:
        self.name, self.panels = name, tuple(panels)

    def _repr_html_(self) -> str:
        panels = "".join(
            f"<div><p>{escape(panel.title)}</p>{panel.svg(f'{self.name}-{index}')}</div>"
            for index, panel in enumerate(self.panels)
        )
        return f'<style>{_stylesheet()}</style><div class="emalab-schematic">{panels}</div>'

    def __repr__(self) -> str:
        return "\n".join(f"{panel.title}: {panel.description}" for panel in self.panels)
