"""What the book links to when it is built from a published repository, and that it links nowhere otherwise."""

from pathlib import Path

import launch
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ADDRESS, REF = "https://github.com/someone/emalab", "v0.1.0"


def test_a_book_of_no_address_links_nowhere() -> None:
    assert launch.published_at({}) is None
    assert launch.published_at({"BOOK_REPOSITORY": "", "BOOK_REF": ""}) is None


@pytest.mark.parametrize("spelling", [ADDRESS, ADDRESS + "/", ADDRESS + ".git"])
def test_address_and_ref_come_from_the_environment(spelling: str) -> None:
    assert launch.published_at({"BOOK_REPOSITORY": spelling, "BOOK_REF": REF}) == (ADDRESS, REF)


@pytest.mark.parametrize(
    ("address", "ref", "wrong"),
    [
        (ADDRESS, "", "BOOK_REF is ''"),
        ("", REF, "BOOK_REPOSITORY is ''"),
        ("someone/emalab", REF, "https://HOST/OWNER/NAME"),
        (f"{ADDRESS}; rm -r ~", REF, "BOOK_REPOSITORY"),
        (ADDRESS, "--orphan", "tag or a commit"),
        (ADDRESS, "v1 && rm -r ~", "tag or a commit"),
    ],
)
def test_half_an_address_is_an_error(address: str, ref: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        launch.published_at({"BOOK_REPOSITORY": address, "BOOK_REF": ref})


def test_only_github_gets_a_button_for_colab() -> None:
    options = launch.theme_options(ADDRESS, REF)
    assert options["repository_url"] == ADDRESS
    assert options["repository_branch"] == REF
    assert options["launch_buttons"]["colab_url"].startswith("https://")
    assert options["use_repository_button"]
    assert options["use_edit_page_button"]
    assert launch.theme_options("https://git.example.org/someone/emalab", REF) == {}


def test_pages_are_edited_on_a_branch() -> None:
    edit = f"{ADDRESS}/edit/{REF}/book/pixels.ipynb"
    assert launch.on_branch(edit, REF, "main") == f"{ADDRESS}/edit/main/book/pixels.ipynb"
    colab = f"https://colab.research.google.com/github/someone/emalab/blob/{REF}/book/pixels.ipynb"
    assert launch.on_branch(colab, REF, "main") == colab


def test_the_page_names_the_address_in_its_cell() -> None:
    text = (ROOT / f"{launch.PAGE}.md").read_text(encoding="utf-8")
    filled = launch.with_place(text, ADDRESS, REF)
    assert f"!git clone {ADDRESS} emalab && git -C emalab checkout {REF}" in filled


def test_published_pages_name_the_commit_that_they_are_built_from() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))
    environment = workflow["jobs"]["publish"]["env"]
    assert environment["BOOK_REPOSITORY"] == "${{ github.server_url }}/${{ github.repository }}"
    assert environment["BOOK_REF"] == "${{ github.sha }}"
