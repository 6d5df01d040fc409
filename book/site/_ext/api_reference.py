"""Fills the API pages: what the package exports, and every public module with what it defines.

The pages hold marker lines, which this extension replaces before a page is parsed, so that a new public name appears
without anybody listing it. (autosummary writes its pages into the source folder, where `only_build_toc_files` leaves
them out.)
"""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

NAMES = "<!-- names of the package -->"
MODULES = re.compile(r"^<!-- modules: (.*) -->$", re.MULTILINE)  # and all below them


def public_modules(package: ModuleType) -> list[ModuleType]:
    """Return the package's importable modules without a leading underscore."""
    found = pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    names = [module.name for module in found if "._" not in module.name]
    return [importlib.import_module(name) for name in sorted(names)]


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


def list_of(things: dict[str, Any]) -> list[str]:
    """Return a table of classes and functions, each with a link and its first sentence."""
    rows = [
        f"| {{py:obj}}`{name} <{thing.__module__}.{thing.__qualname__}>` | {summary(thing)} |"
        for name, thing in things.items()
        if inspect.isclass(thing) or inspect.isfunction(thing)
    ]
    return ["| name | what it is |", "|:--|:--|", *rows, ""] if rows else []


def names_of(package: ModuleType) -> str:
    """Return the MyST source of a table of what the package exports."""
    names = getattr(package, "__all__", [])
    return "\n".join(list_of({name: getattr(package, name) for name in names}))


def section(module: ModuleType) -> str:
    """Return the MyST source of a module's section: what it is for, a list of its names, and their descriptions."""
    members = public_members(module)
    lines = [f"## `{module.__name__}`", "", "```{eval-rst}"]
    lines += [f".. automodule:: {module.__name__}", "   :no-members:", "```", ""]
    lines += list_of({name: getattr(module, name) for name in members})
    if members:
        lines += ["```{eval-rst}", f".. currentmodule:: {module.__name__}", ""]
        for name in members:
            directive = _directive(getattr(module, name))
            lines += [f".. {directive}:: {name}"]
            lines += ["   :members:"] if directive == "autoclass" else []
        lines += ["```", ""]
    return "\n".join(lines)


def _directive(thing: object) -> str:
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if inspect.isfunction(thing) else "autodata"


def on_page(source: str, package: ModuleType) -> list[ModuleType]:
    """Return the modules that a page describes: those that its markers name, in this order, and all below them."""
    prefixes = [
        f"{package.__name__}.{name}"
        for found in MODULES.findall(source)
        for name in found.split()
    ]
    modules = public_modules(package)
    return [
        module
        for prefix in prefixes
        for module in modules
        if f"{module.__name__}.".startswith(f"{prefix}.")
    ]


def fill(source: str, package: ModuleType) -> str:
    """Replace the markers of a page by the reference."""
    sections = "\n".join(section(module) for module in on_page(source, package))
    filled = MODULES.sub(lambda _: sections, source, count=1)
    return filled.replace(NAMES, names_of(package))


def fill_page(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx ``source-read`` handler."""
    if docname.startswith("book/api"):
        source[0] = fill(source[0], importlib.import_module("emalab"))


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
