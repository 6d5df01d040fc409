"""Figures that readers drive, in the page and in Jupyter alike: pictures and data in, one piece of HTML out.

A figure is a JavaScript function that runs the package's own algorithm in double precision (``core.js``, compared with
`emalab` by ``tests/book/test_interactive.py``). What it needs travels in the cell's output, scripts included, so that it
works from a file, without a network, and in a notebook that runs. Where scripts do not run, the picture remains.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

FOLDER = Path(__file__).parents[1] / "site" / "interactive"
LANDING = FOLDER.parent / "images" / "landing.json"
FIGURES = (
    "step-em",
    "pixel-attention",
    "mixture",
    "moving-average",
    "landing",
    "roofline",
    "settings",
    "gradient-paths",
)
MOST_BYTES = 400_000  # of data in one figure

__all__ = [
    "FIGURES",
    "Interactive",
    "interactive",
    "landing",
    "pack",
    "photograph",
    "unpack",
]


def pack(matrix: ArrayLike) -> dict[str, Any]:
    """A matrix (n, c) as 8-bit integers with one step size per column, for JSON.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = np.asarray(matrix, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(
            f"pack takes a matrix (n, c) of finite values; got shape {values.shape}"
        )
    steps = np.abs(values).max(axis=0) / 127
    steps[steps == 0] = 1.0
    integers = np.rint(values / steps).astype(np.int8)
    text = base64.b64encode(integers.tobytes()).decode()
    return {"shape": list(values.shape), "steps": steps.tolist(), "base64": text}


def unpack(packed: Mapping[str, Any]) -> NDArray[np.float64]:
    """What `pack` has kept of a matrix, and what the figure computes with: (n, c)."""
    integers = np.frombuffer(base64.b64decode(packed["base64"]), np.int8)
    return integers.reshape(packed["shape"]) * np.array(packed["steps"])


def photograph(image: Image.Image) -> str:
    """A photograph as a data URI, JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return _uri("image/jpeg", buffer.getvalue())


class Interactive(NamedTuple):
    """What a cell returns to show a figure: HTML, and a PNG for where there is none."""

    html: str
    png: bytes

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
        }


def interactive(
    name: str, data: Mapping[str, Any], picture: Figure, alt: str
) -> Interactive:
    """A figure that the reader drives, in place of a picture of what it shows.

    Args:
        name: one of ``FIGURES``; the script of that name says what its data are. Once per page.
        data: what the script gets; see `pack` and `photograph`.
        picture: shown, with ``alt``, where scripts do not run.
        alt: what the picture shows, in words.

    Raises:
        ValueError: an unknown name, data that JSON does not know (NaN, infinity), or more than 400 kB of it.
    """
    if name not in FIGURES:
        raise ValueError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"the data of {name!r} take {len(text):,} bytes, more than {MOST_BYTES:,}; use fewer positions or channels"
        )
    png = _png(picture)
    return Interactive(_page(name, text, _uri("image/png", png), alt), png)


def landing() -> str:
    """The figure of the landing page, as HTML; its data are made by ``experiments/landing_figure.py``."""
    text = LANDING.read_text(encoding="utf-8")
    alt = "A photograph of an astronaut."
    return _page("landing", text, json.loads(text)["photograph"], alt)


def _page(name: str, data: str, picture: str, alt: str) -> str:
    """A figure as HTML that needs nothing else: style, picture, data (JSON) and scripts."""
    identifier = f"interactive-{name}"
    scripts = ("core", "controls", name.replace("-", "_"))
    script = "\n".join(
        (FOLDER / f"{each}.js").read_text(encoding="utf-8") for each in scripts
    )
    return (
        f"<style>{(FOLDER / 'figures.css').read_text(encoding='utf-8')}</style>\n"
        f'<div class="emalab-figure" id="{identifier}" data-figure="{name}">'
        f'<img src="{picture}" alt="{html.escape(alt)}">'
        f'<script type="application/json">{data}</script></div>\n'
        f'<script>{script}\nemalab.mount("{identifier}");</script>'
    )


def _png(picture: Figure) -> bytes:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    plt.close(picture)  # or Jupyter would show it once more
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
