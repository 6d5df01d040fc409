"""Lets the search find prose: code is not indexed, and a page with the query in a heading comes first.

``book/site/search/scorer.js`` weighs the results; it also makes the search work where pages are opened as files.
"""

from pathlib import Path
from typing import Any

import sphinx.search
from docutils import nodes

SCORER = Path(__file__).parents[1] / "search" / "scorer.js"


class ProseIndex(sphinx.search.IndexBuilder):
    """Sphinx's index of words, without those of programs and of what they print."""

    def feed(
        self, docname: str, filename: str, title: str, doctree: nodes.document
    ) -> None:
        super().feed(docname, filename, title, without_code(doctree))


def without_code(doctree: nodes.document) -> nodes.document:
    """A copy of a page that has no blocks of code."""
    prose: nodes.document = doctree.deepcopy()
    for block in list(prose.findall(nodes.literal_block)):
        block.parent.remove(block)
    return prose


def _choose_scorer(app: Any, config: Any) -> None:
    config.html_search_scorer = str(SCORER)


def setup(app: Any) -> dict[str, bool]:
    sphinx.search.IndexBuilder = ProseIndex  # type: ignore[misc]  # the builder imports it by this name
    app.connect("config-inited", _choose_scorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
