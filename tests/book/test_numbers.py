"""Numbers of runs come from records: the prose of the chapters types none by hand."""

import json
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").glob("*.md"), ROOT / "README.md"])

# What a run would measure: a number with one of these units.
MEASURED = re.compile(
    r"(?<![\w.{/])(\d+(?:\.\d+)?)\s*(?:mIoU|(?:percentage )?points?\b|ms\b|µs\b|img/s|images (?:a|per) second|%"
    r"|[KMG]i?B\b|times (?:faster|slower|as fast)|(?:seconds?|minutes?|hours?)\b)"
)

# Numbers that no run of ours has made: text around them, and where they come from.
ELSEWHERE = {
    "(95 %)": "a level of confidence",
    "at 95 %": "a level of confidence",
    "95 % confidence": "a level of confidence",
    "97.5 % quantile": "a level of confidence",
    "at most 5 % of such studies": "a level of confidence",
    "± 0.5 points": "a question",
    "90 % of the pixels are ignored": "an exercise's assumption",
    "the goal of 0.13 ms": "a goal",
    "above 100 %": "a bound",
    "an accuracy of 70 % is an IoU of 54 %": "arithmetic",
    "one shape gives 69 %, twenty give 98.7 %": "arithmetic: a normal quantile",
    "its matrix takes 68 MiB": "arithmetic",
    "a strip of 64 MiB": "arithmetic",
    "132 processors with 227 KB": "the data sheet",
    "have 78.52 mIoU": "published",
    "one fused kernel: 0.18 ms": "the record; see below",
    "FlashAttention takes 0.53 ms": "the record; see below",
    "improves by 17 points": "arithmetic",
    "less than 1.7 points": "arithmetic",
    "gains 0.32 points": "the paper, table 2",
    "own 0.32 points": "the paper, table 2",
    "kills them 30 seconds": "what torchrun does",
    "11 MB": "the size of a file that a test weighs",
}


def typed_numbers(text: str) -> list[str]:
    """Every number with a unit of measurement that `ELSEWHERE` does not explain, with the text before it."""
    known = [(match.start(), match.end()) for snippet in ELSEWHERE for match in re.finditer(re.escape(snippet), text)]
    return [
        text[max(0, match.start() - 60) : match.end()].replace("\n", " ")
        for match in MEASURED.finditer(text)
        if not any(first <= match.start() and match.end() <= last for first, last in known)
    ]


def prose(path: Path) -> str:
    if path.suffix == ".md":
        text = path.read_text()
    else:
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", lambda m: m[0] if m[0].startswith("```{") else "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_prose_types_no_measurement(path: Path) -> None:
    assert not typed_numbers(prose(path)), "let a cell print it from its record, or say in ELSEWHERE who measured it"


def test_a_typed_number_is_found() -> None:
    assert typed_numbers("Training took 12.5 ms a step.") == ["Training took 12.5 ms"]
    assert typed_numbers("It meets the goal of 0.13 ms, with 0.17 ms.") == [
        "It meets the goal of 0.13 ms, with 0.17 ms"
    ]
    assert not typed_numbers("with intervals (95 %) and 64 bases")


def test_the_readme_quotes_the_record() -> None:
    rows = json.loads((ROOT / "book" / "results" / "bench-cards-h200.json").read_text())["rows"]
    size = {"b": 16, "n": 65**2, "k": 64, "c": 512, "iterations": 3, "dtype": "bfloat16"}
    replayed = {row["method"]: 1000 * median(row["replayed"]) for row in rows if row["size"] == size}
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"one fused kernel: {replayed['em-fused']:.2f} ms for 16 × 65² positions" in text
    assert f"FlashAttention takes {replayed['non-local-flash']:.2f} ms for non-local attention" in text


def test_every_exception_is_in_use() -> None:
    book = "\n".join(map(prose, PAGES))
    assert not [snippet for snippet in ELSEWHERE if snippet not in book]
