"""Which files `emalab predict` and `emalab inspect` are to look at, and how their results are called.

An argument is a file, a folder, which is searched with all its subfolders, or a pattern in quotes. Nothing slow is
imported here: a mistyped name must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from emalab.commands.messages import one_line
from emalab.data.names import RESULTS

__all__ = ["RESULTS", "VIDEOS", "Found", "Photograph", "find_photographs", "require_readable"]

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")


@dataclass(frozen=True)
class Photograph:
    """A file to look at."""

    path: Path
    name: Path
    """Of its results, relative to their folder and without an ending."""


class Found(NamedTuple):
    """What the arguments of a command stand for."""

    photographs: list[Photograph]
    problems: list[str]  # a line for each argument that stands for nothing
    results: int  # files left out because an earlier run wrote them


def find_photographs(arguments: Sequence[str]) -> Found:
    """The photographs that ``arguments`` stand for, each once, no two with results of one name.

    Results are called like their photographs; those of a folder keep its subfolders. Where that gives two of them one
    name, all keep the folders below the one that they have in common; and where a name differs in its ending alone, it
    keeps that as well: ``cat.jpg.mask.png`` beside ``cat.png.mask.png``.
    """
    found: dict[Path, Photograph] = {}
    problems, results = [], 0
    for argument in arguments:
        matches = list(_matches(argument))
        written = [path for path, _ in matches if path.name.lower().endswith(RESULTS)]
        results += len(written)
        for path, root in matches:
            if path not in written:
                found.setdefault(path.resolve(), Photograph(path, path.relative_to(root).with_suffix("")))
        if not matches:
            problems.append(_why_nothing(argument))
    return Found(_named_apart(list(found.values())), problems, results)


def require_readable(photographs: Sequence[Photograph]) -> None:
    """End, with a line on stderr for each, where not one can be opened: none of them needs a network.

    Where one can, the others are reported when their turn comes.
    """
    from emalab.data.bands import read_header

    problems = []
    for photograph in photographs:
        if photograph.path.suffix.lower() in VIDEOS:
            return
        try:
            read_header(photograph.path)
            return
        except ValueError as error:
            problems.append(error)
    for problem in problems:
        print(f"emalab: error: {one_line(problem)}", file=sys.stderr)
    raise SystemExit(1)


def _matches(argument: str) -> Iterator[tuple[Path, Path]]:
    """Files, and for each the folder that its result's name does not repeat."""
    path = Path(argument)
    if path.is_dir():
        for inside in sorted(path.rglob("*")):
            if inside.suffix.lower() in IMAGES + VIDEOS and inside.is_file() and not _hidden(inside.relative_to(path)):
                yield inside, path
    elif path.exists():
        if path.is_file():
            yield path, path.parent
    elif has_magic(argument):
        for match in sorted(glob(argument, recursive=True)):  # noqa: PTH207, pathlib takes no absolute pattern
            inside = Path(match)
            if inside.is_dir():
                yield from _matches(match)
            elif inside.is_file():
                yield inside, inside.parent


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _why_nothing(argument: str) -> str:
    path = Path(argument)
    if path.is_dir():
        return f"{argument}: no photographs in this folder; their names end in {', '.join(IMAGES + VIDEOS)}."
    if path.exists():
        return f"{argument}: is no regular file."
    return f"{argument}: no file matches this pattern." if has_magic(argument) else f"{argument}: no such file."


def _named_apart(photographs: list[Photograph]) -> list[Photograph]:
    if _repeated(photographs):
        resolved = [photograph.path.resolve() for photograph in photographs]
        shared = Path(os.path.commonpath([path.parent for path in resolved]))
        photographs = [
            replace(photograph, name=path.relative_to(shared).with_suffix(""))
            for photograph, path in zip(photographs, resolved, strict=True)
        ]
    twice = _repeated(photographs)
    return [
        replace(each, name=each.name.with_name(each.path.name)) if each.name in twice else each for each in photographs
    ]


def _repeated(photographs: Iterable[Photograph]) -> set[Path]:
    counts = Counter(photograph.name for photograph in photographs)
    return {name for name, count in counts.items() if count > 1}
