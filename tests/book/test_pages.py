"""The rendered book in a browser: every page that `make book` built, on a wide screen and on a phone."""

from __future__ import annotations

import gzip
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from page_metrics import Metrics, measure
from playwright.sync_api import Browser, Page, Request, ViewportSize, sync_playwright
from table_of_contents import toc_entries

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
PAGES = toc_entries(yaml.safe_load((ROOT / "_toc.yml").read_text()))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MEGABYTES = 3  # that a page may weigh, with all it loads
COMPRESSED = {".css", ".html", ".js", ".json", ".svg"}
PHONE: ViewportSize = {"width": 390, "height": 844}
DESK: ViewportSize = {"width": 1300, "height": 900}

pytestmark = pytest.mark.skipif(
    not (HTML / "index.html").exists(), reason="the book is not rendered; `make book` does it"
)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(HTML))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on PATH: {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


class Visit:
    """A page opened in a fresh profile, and all that went wrong on the way."""

    def __init__(self, browser: Browser, address: str, name: str, **viewport: int) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme="light")
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.bytes = 0
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfinished", self._weigh)
        self.page.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(address) else self._refuse(route)
        )
        self.page.goto(f"{address}/{name}.html", wait_until="load")
        self.page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
        self.page.evaluate("window.MathJax && MathJax.startup.promise")

    def _refuse(self, route: Any) -> None:
        self.errors.append(f"asks the network for {route.request.url}")
        route.abort()

    def _weigh(self, request: Request) -> None:
        """What a server sends, which compresses text."""
        path = HTML / unquote(urlsplit(request.url).path).lstrip("/")
        if path.is_file():
            content = path.read_bytes()
            self.bytes += len(gzip.compress(content) if path.suffix in COMPRESSED else content)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


# More of the same, which takes axe a minute a page: formulas, code after the first cells, entries of the API page.
_REPEATS = """
for (const [kind, kept] of [["mjx-container", 0], [".highlight", 6], ["dl.py", 30]])
    [...document.querySelectorAll(kind)].slice(kept).forEach(node => node.remove())
"""

# Contrast takes axe most of its time: it is asked about three texts of each look, a look being colors, size, weight
# and all backgrounds behind.
_SAMPLE = """
() => {
  document.querySelectorAll("[data-sample]").forEach((node) => delete node.dataset.sample);
  const seen = {};
  for (const node of document.body.querySelectorAll("*")) {
    const speaks = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!speaks || !node.checkVisibility()) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(node);
    const look = [color, fontSize, fontWeight];
    for (let behind = node; behind; behind = behind.parentElement) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(behind);
      look.push(...[backgroundColor, backgroundImage, opacity].filter((value) => !PLAIN.includes(value)));
    }
    seen[look] = (seen[look] || 0) + 1;
    if (seen[look] <= 3) node.dataset.sample = "";
  }
}
""".replace("PLAIN", '["rgba(0, 0, 0, 0)", "none", "1"]')
_STILL = "* { transition: none !important; animation: none !important; }"  # colors change at once


def _axe(page: Page, within: str = "html", **options: Any) -> list[str]:
    """Serious violations of the rules of axe-core."""
    found = page.evaluate("([within, options]) => axe.run(within, options)", [within, options])["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]


class Report(NamedTuple):
    """All that one visit of a page finds."""

    errors: list[str]
    megabytes: float
    raw_formulas: int
    overflow: dict[int, int]  # by width of the window, pixels
    cut_formulas: list[str]  # on a phone
    violations: list[str]  # of axe's rules, in the light and in the dark
    metrics: Metrics


_RAW = """[...document.querySelectorAll('.math')].filter(math => !math.querySelector('mjx-container')).length
    + document.querySelectorAll('mjx-merror').length"""
_CUT = """[...document.querySelectorAll('mjx-container[display=true]')]
    .filter(node => node.checkVisibility({ visibilityProperty: true }) && node.scrollWidth > node.clientWidth + 1)
    .map(node => `${node.scrollWidth - node.clientWidth} pixels: ${node.closest('[id]')?.id}`)"""


def visit(browser: Browser, address: str, name: str) -> Report:
    """Open a page once, and look at it on a wide screen, on a phone, and in the dark."""
    with Visit(browser, address, name, **DESK) as opened:
        page, overflow = opened.page, {}
        metrics, raw = measure(page), page.evaluate(_RAW)
        for viewport in (DESK, PHONE):
            page.set_viewport_size(viewport)
            overflow[viewport["width"]] = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        cut = page.evaluate(_CUT)
        errors = list(opened.errors)  # axe looks for style sheets where there are none
        page.set_viewport_size(DESK)
        page.evaluate(f"() => {{{_REPEATS}}}")
        page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
        violations = _axe(page, rules={"color-contrast": {"enabled": False}})
        page.add_style_tag(content=_STILL)
        for theme in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
            page.evaluate(_SAMPLE)
            violations += _axe(page, "[data-sample]", runOnly=["color-contrast"])
        return Report(errors, opened.bytes / 2**20, raw, overflow, cut, violations, metrics)


@pytest.fixture(scope="module")
def report(browser: Browser, address: str) -> Callable[[str], Report]:
    """What a visit of a page finds; each page is opened once for all tests."""
    return cache(partial(visit, browser, address))


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_readable(name: str, report: Callable[[str], Report]) -> None:
    """Nothing complains, formulas are typeset without a network, all fits, and color and markup shut nobody out."""
    found = report(name)
    assert not found.errors
    assert found.megabytes < MEGABYTES
    assert found.raw_formulas == 0, "formulas are not typeset"
    assert {width: pixels for width, pixels in found.overflow.items() if pixels > 0} == {}
    assert not found.violations


@pytest.mark.parametrize("name", PAGES)
def test_page_is_told_well(name: str, report: Callable[[str], Report]) -> None:
    """Code is short and rare, the first screen has a figure, and text in figures is legible; see `page_metrics`."""
    found = report(name)
    faults = found.metrics.faults(chapter=(ROOT / f"{name}.ipynb").exists())
    faults += [f"a formula is cut on a phone, {formula}" for formula in found.cut_formulas]
    assert not faults


def search(browser: Browser, page: str, query: str) -> list[str]:
    """Where the results of a search lead, the best first."""
    opened = browser.new_page()
    opened.goto(f"{page}?q={query}")
    opened.wait_for_function("document.querySelector('#search-results h2')?.innerText === 'Search Results'")
    found = opened.locator("ul.search li > a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    opened.close()
    return [str(link) for link in found]


def test_search_puts_the_chapter_with_the_term_in_a_heading_first(browser: Browser, address: str) -> None:
    assert search(browser, f"{address}/search.html", "K-means")[0].startswith("book/em_attention.html")


def test_search_works_on_pages_opened_as_files(browser: Browser) -> None:
    assert search(browser, (HTML / "search.html").as_uri(), "K-means")[0].startswith("book/em_attention.html")


def test_search_finds_prose_and_no_code(browser: Browser, address: str) -> None:
    assert any("em_attention" in link for link in search(browser, f"{address}/search.html", "responsibilities"))
    assert not search(browser, f"{address}/search.html", "set_yticks")
