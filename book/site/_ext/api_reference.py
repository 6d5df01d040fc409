"""Fills the API page: every public module of the package, with what it defines.

The page's source holds one marker line; this extension replaces it before the page is parsed, so that a new
module or a new public name appears without anybody listing it.
"""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

MARKER = "<!-- every public module -->"

# Reading order: the mathematics first, the shells around it after. Modules not named here follow.
READING_ORDER = [
    *("em", "kernels", "bases", "modules", "fastops"),
    *("segmenter_config", "backbones", "contexts", "segmenter"),
    *("data", "recipes"),
    *(
        "optim",
        "trainer",
        "runlog",
        "views",
        "inference",
        "evaluation",
        "metrics",
        "prediction",
        "submission",
        "viz",
        "inspection",
    ),
    "studies",
    *("cost", "bench", "files", "checkpoints", "convert", "results", "cli", "commands"),
]


def public_modules(package: ModuleType) -> list[ModuleType]:
    """Return the package's importable modules without a leading underscore, in reading order."""
    names = [
        module.name
        for module in pkgutil.walk_packages(
            package.__path__, prefix=f"{package.__name__}."
        )
        if not any(part.startswith("_") for part in module.name.split("."))
    ]

    def rank(name: str) -> tuple[int, str]:
        top = name.split(".")[1]
        return (
            READING_ORDER.index(top) if top in READING_ORDER else len(READING_ORDER),
            name,
        )

    return [importlib.import_module(name) for name in sorted(names, key=rank)]


def public_members(module: ModuleType) -> list[str]:
    """Return the names that a module offers and defines itself: what it re-exports is described at its origin."""
    names = getattr(
        module, "__all__", [name for name in vars(module) if not name.startswith("_")]
    )
    commented = {
        name
        for scope, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
        if not scope
    }

    def is_own(name: str) -> bool:
        thing = getattr(module, name)
        defined = inspect.isclass(thing) or inspect.isfunction(thing)
        return thing.__module__ == module.__name__ if defined else name in commented

    return [name for name in names if is_own(name)]


def summary(thing: object) -> str:
    """Return the first sentence of a docstring on one line."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def reference(package: ModuleType) -> str:
    """Return the MyST source of the reference: a table of the package's own names, then one section per module."""
    rows = []
    for name in getattr(package, "__all__", []):
        thing = getattr(package, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            rows.append(
                f"| {{py:obj}}`{name} <{thing.__module__}.{thing.__qualname__}>` | {summary(thing)} |"
            )
    table = (
        [
            f"## Directly from `{package.__name__}`",
            "",
            "| name | what it is |",
            "|---|---|",
            *rows,
            "",
        ]
        if rows
        else []
    )

    sections = []
    for module in public_modules(package):
        members = public_members(module)
        if members or module.__doc__:
            sections += [
                f"## `{module.__name__}`",
                "",
                "```{eval-rst}",
                f".. automodule:: {module.__name__}",
            ]
            sections += ["   :ignore-module-all:"]
            sections += [f"   :members: {', '.join(members)}"] if members else []
            sections += ["```", ""]
    return "\n".join(table + sections)


def fill_page(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx ``source-read`` handler: replace the marker by the reference."""
    if MARKER in source[0]:
        source[0] = source[0].replace(
            MARKER, reference(importlib.import_module("emalab"))
        )


def read_plain_text(
    app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Sphinx ``autodoc-process-docstring`` handler: habits of plain text that reStructuredText misreads.

    A suffix may touch a name, as in "`Sample`s"; a lone letter with a full stop, as in "num_bases: K.", begins no
    list; and a block that follows a colon and a blank line, indented, keeps its line breaks.
    """
    for i, line in enumerate(lines):
        lines[i] = re.sub(r"(?<=[\w)\]])(`+)(?=\w)", r"\1\\ ", line)
        lines[i] = re.sub(r"(?<=\s)([A-Za-z]\.)$", r"\\\1", lines[i])
    for i in reversed(range(len(lines) - 2)):
        line, indented = lines[i], re.compile(r"\s{2,}\S").match(lines[i + 2])
        if (
            line[:1].isalpha()
            and line.endswith(":")
            and not line.endswith("::")
            and not lines[i + 1]
            and indented
        ):
            lines[i + 1 : i + 1] = ["", ".. code-block:: text"]


def skip_member(
    app: Any, what: str, name: str, member: object, skip: bool, options: Any
) -> bool | None:
    """Leave out the docstrings that ``NamedTuple`` invents for its fields."""
    return (
        True
        if (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
        else None
    )


def setup(app: Any) -> dict[str, bool]:
    """Register the handlers."""
    app.connect("source-read", fill_page)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", read_plain_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
