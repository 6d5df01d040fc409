"""Leads from the pages to where their notebooks can be run, if the build knows where the repository is published.

BOOK_REPOSITORY is its address, BOOK_REF the tag or commit that the book is built from; both or neither. Every page then
links to the repository and to its own source, to be edited on the branch BOOK_BRANCH (main). Every chapter gets a button
that opens its notebook in Colab, which takes notebooks from GitHub alone, and the page on running the book names both
in its first cell for Colab, so that notebook and package fit each other.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

COLAB = "https://colab.research.google.com"
PAGE = "book/running"
# They end up in a shell's command.
_ADDRESS = re.compile(r"https://[\w.:-]+(/[\w.~-]+)+")
_REF = re.compile(r"\w[\w./-]*")


def published_at(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Address and tag or commit of the published repository; None if there is none, `ValueError` for half of it."""
    address = environ.get("BOOK_REPOSITORY", "").rstrip("/").removesuffix(".git")
    ref = environ.get("BOOK_REF", "")
    if not address and not ref:
        return None
    if not _ADDRESS.fullmatch(address):
        raise ValueError(
            f"BOOK_REPOSITORY is {address!r}: give the address of the published repository, https://HOST/OWNER/NAME"
        )
    if not _REF.fullmatch(ref):
        raise ValueError(f"BOOK_REF is {ref!r}: give a tag or a commit of {address}")
    return address, ref


def theme_options(address: str, ref: str) -> dict[str, Any]:
    """The theme's options for buttons: repository, edit, Colab; none if the repository is not on GitHub."""
    if urlsplit(address).netloc != "github.com":
        return {}
    return {
        "repository_url": address,
        "repository_branch": ref,
        "path_to_docs": "",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "launch_buttons": {"colab_url": COLAB},
    }


def _configure(app: Any, config: Any) -> None:
    if place := published_at(os.environ):
        app.tags.add("published")
        if options := theme_options(*place):
            app.tags.add("colab")
        config.html_theme_options = {**config.html_theme_options, **options}


def _edit_branch(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Lets the edit button lead to a branch, where a page can be edited: the theme takes the commit."""
    place = published_at(os.environ)
    if place is None:
        return
    buttons = list(context.get("header_buttons", []))
    while buttons:
        button = buttons.pop()
        buttons += button.get("buttons", [])
        if "url" in button:
            button["url"] = on_branch(
                button["url"], place[1], os.environ.get("BOOK_BRANCH", "main")
            )


def on_branch(address: str, ref: str, branch: str) -> str:
    """The address of an edit button, for a branch; other addresses as they are."""
    return address.replace(f"/edit/{ref}/", f"/edit/{branch}/")


def _fill_in(app: Any, docname: str, source: list[str]) -> None:
    if docname == PAGE and (place := published_at(os.environ)):
        source[0] = with_place(source[0], *place)


def with_place(text: str, address: str, ref: str) -> str:
    """The page's text with the address and the tag or commit in the commands that want them."""
    return text.replace("clone REPOSITORY emalab", f"clone {address} emalab").replace(
        "checkout REF", f"checkout {ref}"
    )


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", _configure)
    app.connect("source-read", _fill_in)
    app.connect(
        "html-page-context", _edit_branch, priority=901
    )  # after the theme has made its buttons
    return {"parallel_read_safe": True, "parallel_write_safe": True}
