"""Leaves out of every page what the book does not use, and what makes a browser complain.

Thebe would run cells on a server: its settings come with Jupyter Book, whether wanted or not, and twice, which is an
error in JavaScript. The theme reports a missing color mode as one; "auto" is what it then takes. And Sphinx sets a long
signature as a list of definitions that define nothing, which a screen reader announces line by line; the bibliography
says that it is a list, and has no items. The button that unfolds a part of the table of contents is an icon; it gets
a name here.

Once written, pages lose the theme's script of all icons (1.5 MB; emalab.css takes the dozen in use from the font), and
figures become WebP, which weighs a quarter of PNG where there are photographs.
"""

import re
from pathlib import Path
from typing import Any

from PIL import Image

_ICONS = re.compile(r"\s*<script [^>]*scripts/fontawesome\.js[^>]*></script>")
_LARGE = 30_000  # bytes of a PNG that is worth converting
_PHOTOGRAPHIC = 80_000  # bytes that no drawing of lines needs without loss
_TOGGLE = re.compile(r"(<a [^>]*>([^<]*)</a><details[^>]*>)<summary>")
_SIGNATURE = re.compile(r'(<dt class="sig .*?</dt>)', re.DOTALL)


def _tidy(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    context["default_mode"] = "auto"
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]
    if "body" in context:
        body = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
        context["body"] = _SIGNATURE.sub(_as_lines, body)


def _slim(app: Any, exception: Exception | None) -> None:
    if exception or app.builder.name != "html":
        return
    out = Path(app.outdir)
    lighter = {}
    for path in (out / "_images").glob("*.png"):
        if path.stat().st_size > _LARGE:
            small = path.with_suffix(".webp")
            with Image.open(path) as picture:
                picture.save(small, lossless=True)
                if small.stat().st_size > _PHOTOGRAPHIC:
                    picture.save(small, quality=92)
            lighter[path.name] = small.name
            path.unlink()
    for page in out.rglob("*.html"):
        text = named(_ICONS.sub("", page.read_text(encoding="utf-8")))
        for name, new in lighter.items():
            text = text.replace(f"_images/{name}", f"_images/{new}")
        page.write_text(text, encoding="utf-8")


def named(page: str) -> str:
    """The HTML of a page whose buttons in the table of contents have a name for screen readers."""
    return _TOGGLE.sub(r'\1<summary aria-label="Pages of \2">', page)


def _as_lines(signature: re.Match[str]) -> str:
    text = signature[0]
    for tag, new in (("dl", "sig-lines"), ("dd", "sig-line")):
        text = text.replace(f"<{tag}>", f'<span class="{new}">').replace(
            f"</{tag}>", "</span>"
        )
    return text


def _is_thebe(file: Any) -> bool:
    body = getattr(file, "attributes", {}).get("body") or ""
    return "THEBE" in body or "sphinx-thebe" in str(getattr(file, "filename", file))


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", _tidy, priority=900)
    app.connect("build-finished", _slim)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
