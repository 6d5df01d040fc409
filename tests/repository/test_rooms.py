"""Imports point one way: tests → pages → laboratory → package, and experiments → laboratory; no cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Where the modules of each room lie, under which first names they are imported, and what they may import of ours.
FOLDERS = {
    "package": ("emalab", ["emalab"]),
    "lab": ("book/lab", ["lab"]),
    "experiments": ("book/experiments", ["experiments"]),
    "site": (
        "book/site",
        [
            "build",
            "chapters",
            "api_reference",
            "launch",
            "plain_pages",
            "readable_figures",
            "reading_time",
            "search_prose",
        ],
    ),
    "pages": ("book/*.ipynb", []),
    "tests": ("tests", [path.stem for path in (ROOT / "tests").rglob("*.py")]),
}
MAY_IMPORT = {
    "package": {"package"},
    "lab": {"package", "lab"},
    "experiments": {"package", "lab", "experiments"},
    "site": {"package", "lab", "site"},
    "pages": {"package", "lab"},
}
ROOM_OF = {name: room for room, (_, names) in FOLDERS.items() for name in names} | {"book": "pages", "tests": "tests"}


def imports(source: str, package: str = "") -> Iterator[str]:
    """Dotted names that a module imports, inside functions too, as `a.b.name` for ``from a.b import name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(part for part in (above, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def files(room: str) -> list[Path]:
    place = ROOT / FOLDERS[room][0]
    return sorted(place.rglob("*.py") if place.is_dir() else place.parent.glob(place.name))


CASES = [(room, path) for room in MAY_IMPORT for path in files(room)]


@pytest.mark.parametrize(("room", "path"), CASES, ids=[str(path.relative_to(ROOT)) for _, path in CASES])
def test_nothing_is_imported_upward(room: str, path: Path) -> None:
    found = {name: ROOM_OF.get(name.split(".")[0]) for name in imports(code_of(path))}
    upward = {name for name, other in found.items() if other is not None and other not in MAY_IMPORT[room]}
    assert not upward, f"{room} may import of ours: {', '.join(sorted(MAY_IMPORT[room]))}"


def test_every_room_has_files_that_import_something() -> None:
    """Otherwise the test above would see nothing. The site's modules need none of ours."""
    for room in MAY_IMPORT.keys() - {"site"}:
        assert any(ROOM_OF.get(name.split(".")[0]) for path in files(room) for name in imports(code_of(path))), room


@cache
def graph_of_package() -> dict[str, set[str]]:
    """Each module of the package, and the modules of the package that it imports."""
    modules = {}
    for path in files("package"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        named = imports(code_of(path), package)
        origins = {name if name in modules else name.rpartition(".")[0] for name in named}
        graph[module] = (origins & modules.keys()) - {module}
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle, the first again at the end; none if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_package_has_no_import_cycle() -> None:
    assert not cycle_in(graph_of_package())


def test_a_cycle_would_be_found() -> None:
    graph = graph_of_package()
    graph = graph | {"emalab.em": graph["emalab.em"] | {"emalab.trainer"}}
    assert "emalab.em" in cycle_in(graph)
