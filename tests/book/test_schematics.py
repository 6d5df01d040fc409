"""The schematics: SVG that anybody can read, in any theme and at any width, and that says what the code does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from lab import schematics
from lab.schematics import network
from lab.schematics.drawing import PHONE, Drawing
from lab.schematics.paths import TEXTBOOK
from playwright.sync_api import Page, sync_playwright
from torch import nn

from emalab import build_segmenter, get_recipe

SVG = "{http://www.w3.org/2000/svg}"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NAMES = schematics.__all__


def panels(name: str) -> list[ElementTree.Element]:
    html = getattr(schematics, name)()._repr_html_()
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


@pytest.mark.parametrize("name", NAMES)
def test_panels_describe_themselves(name: str) -> None:
    assert panels(name)
    for panel in panels(name):
        title, description = (panel.find(f"{SVG}{tag}") for tag in ("title", "desc"))
        assert title is not None
        assert description is not None
        assert panel.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert len((description.text or "").split()) >= 12
        assert (description.text or "").endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_panels_take_their_colors_from_the_page(name: str) -> None:
    """Elements have classes only, and text has the color of the page's text."""
    for panel in panels(name):
        for element in panel.iter():
            assert not {"fill", "stroke", "style", "color"} & element.attrib.keys(), element.attrib
    assert not re.search(r"\b(black|white)\b|#(000|fff)(000|fff)?\b", getattr(schematics, name)()._repr_html_(), re.I)


def test_identifiers_are_unique_on_a_page() -> None:
    found = [element.get("id") for name in NAMES for panel in panels(name) for element in panel.iter()]
    identifiers = [identifier for identifier in found if identifier]
    assert len(identifiers) == len(set(identifiers))


def test_a_panel_wider_than_a_phone_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels wide"):
        Drawing("Title", "Words.", PHONE + 1, 10)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on PATH: {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


# Sizes of the text as displayed, and every pair of texts that meet, or text that leaves its panel.
_TEXTS = """() => [...document.querySelectorAll("svg")].map(svg => {
    const outer = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent).map(t => ({
        words: t.textContent, box: t.getBoundingClientRect(),
        size: parseFloat(getComputedStyle(t).fontSize) * outer.width / svg.viewBox.baseVal.width}));
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom - 3 <= b.top || b.bottom - 3 <= a.top;
    const faults = texts.filter(t => t.box.left < outer.left - 1 || t.box.right > outer.right + 1
        || t.box.top < outer.top - 4 || t.box.bottom > outer.bottom + 4).map(t => `outside: ${t.words}`);
    texts.forEach((t, i) => texts.slice(0, i).forEach(
        u => apart(t.box, u.box) || faults.push(`${t.words} on ${u.words}`)));
    const sizes = texts.map(t => t.size), right = outer.right;
    return {smallest: Math.min(...sizes), right, faults};
})"""


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", NAMES)
def test_text_is_readable_at_any_width(name: str, width: int, page: Page) -> None:
    """At least 12 pixels, inside its panel, and not on other text; panels stack where the page is narrow."""
    page.set_viewport_size({"width": width, "height": 900})
    markup = getattr(schematics, name)()._repr_html_()
    page.set_content(f"<!doctype html><body style='margin: 1rem; font-family: sans-serif'>{markup}")
    for panel in page.evaluate(_TEXTS):
        assert panel["smallest"] >= 12
        assert panel["right"] <= width
        assert not panel["faults"]


def test_emanet_is_drawn_as_it_is_built() -> None:
    """Channels, positions, strides and dilations are those of the network on PyTorch's meta device."""
    config = replace(get_recipe("voc-r50").model, backbone_weights=None)
    with torch.device("meta"):
        model = build_segmenter(config).eval()
        x = torch.empty(1, 3, 513, 513)
    resnet = model.backbone.network
    stages = [resnet.get_submodule(f"layer{i}") for i in range(1, 5)]
    parts: list[nn.Module] = [
        nn.Identity(), nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1), resnet.maxpool, *stages,
        model.reduction, model.context, model.classifier,
    ]  # fmt: skip
    drawn = (*network.BACKBONE, *network.HEAD[:-1])
    for part, (name, channels, side, stride) in zip(parts, drawn, strict=True):
        x = part(x)
        assert x.shape == (1, channels, side, side), name
        assert stride == 512 // (side - 1), name
    for number, stage in ((3, stages[2]), (4, stages[3])):
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert all(conv.stride == (1, 1) for conv in convs)
        found = {int(n) for n in re.findall(r"\d+", network.NOTES[f"stage {number}"])}
        assert found == {conv.dilation[0] for conv in convs} - {1}


def test_traffic_is_drawn_as_it_is_counted() -> None:
    """The textbook loop reads the features twice and moves matrices of the responsibilities' size seven times."""
    moved = "".join(reads + writes for _, reads, writes in TEXTBOOK)
    assert moved.count("X") == 2
    assert moved.count("Z") == 7
