"""What the repository promises about itself: notebooks, table of contents, links, API page, wheel, Makefile."""

import ast
import pydoc
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import api_reference
import nbformat
import pytest
import yaml
from PIL import Image
from skimage import data
from table_of_contents import toc_entries
from tracked import tracked_files

import emalab

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
API_PAGES = sorted((ROOT / "book" / "api").glob("*.md"))
PAGES = sorted([*NOTEBOOKS, *(ROOT / "book").glob("*.md"), *API_PAGES])

# Character classes keep these patterns from matching their own source.
MACHINE_PATHS = r"/wor[k]/|/hom[e]/\w|/User[s]/\w|/roo[t]/|[A-Z]:\\User[s]"
REGISTRY_HOSTS = r"pyp[i]\.org|pythonhoste[d]\.org|download\.pytorc[h]\.org|anacond[a]\.(org|com)|npmj[s]\.(org|com)"


def tracked_text_files() -> list[Path]:
    binary = {".npz", ".png", ".jpg", ".safetensors"}
    paths = [ROOT / name for name in tracked_files(ROOT)]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_valid_and_runs_on_the_default_kernel(self, path: Path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"

    def test_has_no_outputs(self, path: Path):
        code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]

    def test_starts_with_its_title(self, path: Path):
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown"
        assert re.search(r"^# \S", first.source, re.MULTILINE)


def test_table_of_contents_is_complete():
    entries = toc_entries(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    assert sorted(entries) == sorted(str(page.relative_to(ROOT).with_suffix("")) for page in PAGES)


def prose(path: Path) -> str:
    """What a page says, without what its cells do."""
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@cache
def names_of_tests() -> dict[str, set[str]]:
    """Classes and tests of each file under tests/, a method also as `Class.method`."""
    names = {}
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        names[path.relative_to(ROOT).as_posix()] = found
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
class TestWhatAPageRefersTo:
    def test_its_tests_exist(self, page: Path):
        files = set(re.findall(r"`(tests/[\w/]+\.py)`", prose(page)))
        assert not files - names_of_tests().keys()
        named = set(re.findall(r"`((?:Test\w+)(?:\.test_\w+)?|test_\w+)`", prose(page)))
        known = set().union(*(names_of_tests()[file] for file in files))
        assert not named - known, f"in none of the files that the page names: {', '.join(sorted(files))}"

    def test_its_functions_exist(self, page: Path):
        """Sphinx says nothing of a role that leads nowhere."""
        for target in re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?([\w.]+)>?`", prose(page)):
            assert pydoc.locate(target) is not None, target


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRY_HOSTS], ids=["machine paths", "registry hosts"])
def test_no_tracked_file_names(pattern: str):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked_text_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert not found


def test_readme_links_exist():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    relative = [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]
    assert relative
    assert not [target for target in relative if not (ROOT / target).exists()]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(data.chelsea()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_each_module_is_on_one_api_page():
    pages = [api_reference.on_page(path.read_text(), emalab) for path in API_PAGES]
    found = [module.__name__ for page in pages for module in page]
    assert sorted(found) == [module.__name__ for module in api_reference.public_modules(emalab)]
    named = [
        name for path in API_PAGES for line in api_reference.MODULES.findall(path.read_text()) for name in line.split()
    ]
    assert not [name for name in named if f"emalab.{name}" not in found], "named on a page, and no module"
    assert api_reference.NAMES in (ROOT / "book" / "api.md").read_text().splitlines()


@pytest.mark.parametrize("page", API_PAGES, ids=lambda path: path.stem)
def test_example_of_an_api_page_runs(page: Path):
    """A comment behind an expression is its value."""
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        names: dict[str, object] = {}
        exec(compile(code, page.name, "exec"), names)
        for expression, value in re.findall(r"^([^=#\n]+)  # (.+)$", code, re.MULTILINE):
            found, expected = eval(expression, names), ast.literal_eval(value)
            assert found == expected or found == pytest.approx(expected, abs=0.005), expression


@pytest.mark.parametrize("name", emalab.__all__)
def test_public_name_is_described(name: str):
    thing = getattr(emalab, name)
    if not callable(thing):
        return
    assert thing.__doc__
    home = sys.modules[thing.__module__]
    assert thing.__name__ in api_reference.public_members(home)
    assert f"`{name} <{home.__name__}.{name}>`" in api_reference.names_of(emalab)
    assert f":: {thing.__name__}\n" in api_reference.section(home)


def test_wheel_holds_the_package_and_its_weights(tmp_path: Path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [p for p in (ROOT / "emalab").rglob("*") if p.is_file() and p.suffix in {".py", ".safetensors", ".typed"}]
    assert ROOT / "emalab" / "py.typed" in sources
    assert not {str(path.relative_to(ROOT)) for path in sources} - names
    assert not [name for name in names if name.startswith(("tests/", "book/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize(
    ("broken", "message"),
    [("version_info", "emalab needs Python 3.11 or newer"), ("ensurepip", "apt install python3-venv")],
    ids=["too old", "no venv"],
)
def test_make_says_what_is_wrong_with_python(broken: str, message: str, tmp_path: Path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *{broken}*) exit 1;; esac\necho Python 3.x\n')
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "test", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert made.returncode != 0
    assert message in made.stderr
    assert str(python) in made.stderr
    assert not (tmp_path / ".venv").exists()
