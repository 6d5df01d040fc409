"""What the build adds to pages: the landing page's cards and times, names of buttons, and the head of each page."""

from __future__ import annotations

import about_pages
import identity
import landing
import plain_pages
import pytest
from docutils import nodes
from lab.findings import FINDINGS, Estimate, Finding
from PIL import Image


class TestCards:
    def test_a_card_has_the_numbers_the_interval_and_the_link(self) -> None:
        finding = Finding("A < B", "cost", "points", [Estimate("one", -1.25, -2.0, -0.5), Estimate("two", 0.5, -1, 2)])
        card = landing.card(finding, "cost.html")
        assert '<a href="cost.html">A &lt; B</a>' in card
        assert "<b>−1.2</b> <span>[−2.0, −0.5]</span>" in card
        assert card.index('class="clear"') < card.index('class="open"')  # the second one includes zero

    @pytest.mark.parametrize("name", FINDINGS)
    def test_no_drawing_leaves_its_box(self, name: str) -> None:
        card = landing.card(FINDINGS[name](), "")
        places = [float(part.split('"')[0]) for part in card.split('cx="')[1:]]
        assert all(0 < place < landing.WIDTH for place in places)

    @pytest.mark.parametrize(
        ("value", "signed", "text"),
        [
            (-13.76, True, "−13.8"),
            (0.04, True, "0.0"),
            (-0.03, True, "0.0"),
            (0.179, False, "0.18"),
            (70.2, False, "70.2"),
        ],
    )
    def test_numbers_have_few_digits(self, value: float, signed: bool, text: str) -> None:
        assert landing.number(value, signed=signed) == text


@pytest.mark.parametrize(("minutes", "text"), [(45, "45 min"), (100, "1½ hours"), (470, "8 hours")])
def test_long_times_are_hours(minutes: int, text: str) -> None:
    assert landing.length(minutes) == text


class TestAboutPages:
    def test_the_description_is_the_first_text_in_whole_sentences(self) -> None:
        time = nodes.paragraph("", "About 45 minutes to read, which is no description.", classes=["reading-time"])
        sentence = "This sentence has fifty characters, give or take a few. "
        page = nodes.section("", nodes.title("", "Title"), time, nodes.paragraph("", 5 * sentence))
        assert about_pages.description_of(page) == (3 * sentence).strip()

    def test_the_card_is_named_where_pages_have_an_address(self) -> None:
        address = about_pages.pages_address("https://github.com/Someone/emalab")
        assert address == "https://someone.github.io/emalab"
        assert about_pages.pages_address("https://git.example.org/someone/emalab") is None
        assert f'content="{address}/_static/social.png"' in about_pages.tags("Title", "Text", address)
        assert "og:image" not in about_pages.tags("Title", "Text", None)
        assert "&quot;" in about_pages.tags("Title", 'a "quoted" word', None)


def test_buttons_of_the_table_of_contents_have_names() -> None:
    page = (
        '<li><a class="reference" href="api.html">API</a><details open="open"><summary><i></i></summary></details></li>'
    )
    named = plain_pages.named(page)
    assert named == page.replace("<summary>", '<summary aria-label="Pages of API">')


def test_the_identity_is_what_its_script_draws() -> None:
    assert (identity.FOLDER / "logo.svg").read_text() == identity.logo()
    with Image.open(identity.FOLDER / "social.png") as card:
        assert card.size == (1200, 630)
