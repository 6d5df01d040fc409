"""Writes below the title of each chapter how long it takes to read: 200 words and 10 lines of code a minute.

Only what the page shows at once counts. Folded boxes, solutions, hidden cells and the outputs of cells do not; a
formula in a sentence is a word. The time is rounded to five minutes, and `minutes_of` gives it to other pages.
"""

from dataclasses import dataclass
from typing import Any

from docutils import nodes

WORDS_A_MINUTE, LINES_A_MINUTE, STEP = 200, 10, 5
_FOLDED = {"dropdown", "solution", "tag_hide-cell", "tag_remove-cell", "sd-dropdown"}
_HIDDEN_INPUT = {"tag_hide-input", "tag_remove-input"}


@dataclass(frozen=True)
class Amount:
    """What there is to read: words of prose, and lines of code that are not blank."""

    words: int
    lines: int

    @property
    def minutes(self) -> int:
        """Rounded to ``STEP``, and never less."""
        exact = self.words / WORDS_A_MINUTE + self.lines / LINES_A_MINUTE
        return max(STEP, STEP * round(exact / STEP))


def amount_of(node: nodes.Node) -> Amount:
    """Words and lines of code below a node of a page."""
    if isinstance(node, nodes.literal_block):
        return Amount(0, sum(bool(line.strip()) for line in node.astext().splitlines()))
    if isinstance(node, nodes.math):
        return Amount(1, 0)
    if isinstance(node, nodes.Text):
        return Amount(len(node.astext().split()), 0)
    if _is_skipped(node):
        return Amount(0, 0)
    parts = [amount_of(child) for child in node.children]
    return Amount(sum(part.words for part in parts), sum(part.lines for part in parts))


def _is_skipped(node: nodes.Node) -> bool:
    if not isinstance(node, nodes.Element):
        return True
    if isinstance(node, nodes.math_block | nodes.raw | nodes.comment | nodes.target):
        return True
    element = node.get("nb_element", "")
    hidden = element == "cell_code_source" and _HIDDEN_INPUT & set(
        node.parent.get("classes", ())
    )
    folded = (
        _FOLDED & set(node.get("classes", ()))
        or node.get("design_component") == "dropdown"
    )
    return bool(hidden or folded or element == "cell_code_output")


def minutes_of(env: Any, docname: str) -> int | None:
    """Minutes that a chapter takes; None for other pages. Known once all pages are read."""
    amount = _amounts(env).get(docname)
    return amount.minutes if amount else None


def _amounts(env: Any) -> dict[str, Amount]:
    if not hasattr(env, "emalab_amounts"):
        env.emalab_amounts = {}
    amounts: dict[str, Amount] = env.emalab_amounts
    return amounts


def _write(app: Any, doctree: nodes.document) -> None:
    env = app.env
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is None or env.doc2path(env.docname).endswith(".md"):
        return
    amount = _amounts(env)[env.docname] = amount_of(doctree)
    text = f"About {amount.minutes} minutes to read"
    line = nodes.paragraph("", text, classes=["reading-time"])
    title.parent.insert(title.parent.index(title) + 1, line)


def _forget(app: Any, env: Any, docname: str) -> None:
    _amounts(env).pop(docname, None)


def _merge(app: Any, env: Any, docnames: set[str], other: Any) -> None:
    _amounts(env).update(_amounts(other))


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-read", _write)
    app.connect("env-purge-doc", _forget)
    app.connect("env-merge-info", _merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
