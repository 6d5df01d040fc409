"""Says in each page's head what the page is about, for search engines and for sites that show a link to it.

The description is the beginning of the page's text. The social card needs an address: it is named as soon as the build
knows that the pages are published on GitHub (see `launch`).
"""

import os
from html import escape
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from launch import published_at

MOST = 200  # characters of a description
CARD = "_static/social.png"


def description_of(doctree: nodes.document) -> str:
    """The first sentences of a page, as many as fit, or the beginning of the first one."""
    skipped = {"reading-time"}
    texts = [
        " ".join(node.astext().split())
        for node in doctree.findall(nodes.paragraph)
        if not skipped & set(node["classes"])
    ]
    text = next((text for text in texts if len(text) > 40), "")
    if len(text) <= MOST:
        return text
    end = text.rfind(". ", 0, MOST)
    return text[: end + 1] if end > 0 else text[: text.rfind(" ", 0, MOST)] + " …"


def pages_address(repository: str) -> str | None:
    """Where GitHub publishes the pages of a repository; None for other hosts."""
    place = urlsplit(repository)
    if place.netloc != "github.com":
        return None
    owner, name = place.path.strip("/").split("/")[:2]
    return f"https://{owner.lower()}.github.io/{name}"


def tags(title: str, description: str, address: str | None) -> str:
    """The elements for a page's head."""
    properties = {
        "og:type": "article",
        "og:title": title,
        "og:description": description,
    }
    if address:
        properties["og:image"] = f"{address}/{CARD}"
    found = [f'<meta name="description" content="{escape(description)}" />']
    found += [
        f'<meta property="{name}" content="{escape(value)}" />'
        for name, value in properties.items()
    ]
    if address:
        found.append('<meta name="twitter:card" content="summary_large_image" />')
    return "\n".join(found)


def _add(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    if doctree is None:
        return
    place = published_at(os.environ)
    address = pages_address(place[0]) if place else None
    title = app.env.titles[pagename].astext()
    context["metatags"] = context.get("metatags", "") + tags(
        title, description_of(doctree), address
    )


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", _add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
