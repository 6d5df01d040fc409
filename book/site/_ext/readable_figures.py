"""Keeps the text of figures readable: where the page is narrow, a wide figure scrolls inside its own box.

`lab.style` writes into each figure how large its smallest text is. Once the pages are written, each picture gets its
width in inches and that size as attributes, and the width in pixels below which the text would become too small. On a
phone, emalab.css keeps the picture at least that wide; tests/book/test_pages.py reads the attributes on a wide screen.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

LEAST = 9.5  # pixels of text as displayed, on a phone
NARROW = 340  # pixels that a phone shows of a figure
_IMAGE = re.compile(r'<img (?P<before>[^>]*?)src="(?P<src>[^"]*_images/[^"]+)"')
_SMALLEST = re.compile(r"smallest text ([\d.]+) pt")
_WIDTH = re.compile(r'<svg [^>]*?width="([\d.]+)pt"', re.DOTALL)


class Size(NamedTuple):
    """Of a figure: its width in inches, and its smallest text in points."""

    inches: float
    points: float

    @property
    def pixels(self) -> int:
        """The width at which the smallest text is as large as ``LEAST``."""
        return round(LEAST * 72 / self.points * self.inches)


def size_of(path: Path) -> Size | None:
    """What `lab.style` has noted in a figure; None for other pictures."""
    if path.suffix == ".svg":
        text = path.read_text(encoding="utf-8")
        note, width = _SMALLEST.search(text), _WIDTH.search(text)
        return Size(float(width[1]) / 72, float(note[1])) if note and width else None
    with Image.open(path) as picture:
        comment = picture.info.get("Description") or picture.info.get("comment") or ""
        text = comment if isinstance(comment, str) else comment.decode("latin-1")
        note, density = _SMALLEST.search(text), picture.info.get("dpi", (0, 0))[0]
        if not note or not density:
            return None
        return Size(picture.width / float(density), float(note[1]))


def with_sizes(page: str, sizes: dict[str, Size]) -> str:
    """The HTML of a page in which pictures carry their sizes."""

    def add(found: re.Match[str]) -> str:
        size = sizes.get(found["src"].rsplit("/", 1)[-1])
        if size is None:
            return found[0]
        kind = "sized wide" if size.pixels > NARROW else "sized"
        return (
            f'<img class="{kind}" data-inches="{size.inches:.2f}" data-smallest="{size.points:g}"'
            f' style="--readable: {size.pixels}px" {found["before"]}src="{found["src"]}"'
        )

    return _IMAGE.sub(add, page)


def _note(app: Any, exception: Exception | None) -> None:
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir)
    pictures = [path for path in (out / "_images").glob("*") if path.is_file()]
    sizes = {path.name: size for path in pictures if (size := size_of(path))}
    for page in out.rglob("*.html"):
        page.write_text(
            with_sizes(page.read_text(encoding="utf-8"), sizes), encoding="utf-8"
        )


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", _note, priority=400)  # before plain_pages makes WebP
    return {"parallel_read_safe": True, "parallel_write_safe": True}
