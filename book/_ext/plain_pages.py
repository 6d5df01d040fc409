"""Leaves out of every page what the book does not use, and what makes a browser complain.

Thebe would run cells on a server: its settings come with Jupyter Book, whether wanted or not, and twice, which is an
error in JavaScript. The theme reports a missing color mode as one; "auto" is what it then takes. And Sphinx sets a long
signature as a list of definitions that define nothing, which a screen reader announces line by line.
"""

import re
from typing import Any

_SIGNATURE = re.compile(r'(<dt class="sig .*?</dt>)', re.DOTALL)


def _tidy(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    context["default_mode"] = "auto"
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]
    if "body" in context:
        context["body"] = _SIGNATURE.sub(_as_lines, context["body"])


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
    return {"parallel_read_safe": True, "parallel_write_safe": True}
