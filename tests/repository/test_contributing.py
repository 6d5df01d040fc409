"""The examples of CONTRIBUTING.md run as they stand; changelog and release workflow know the package's version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import torch
import yaml
from PIL import Image

import emalab
from emalab.recipes import Recipe

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the example under the heading that is the parameter defines, run in an empty folder."""
    section = GUIDE.split(f"\n## {request.param}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) < 20
    monkeypatch.chdir(tmp_path)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where dataclasses look for it
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    return vars(module)


@pytest.mark.parametrize("example", ["A chapter"], indirect=True)
def test_chapter(example: dict[str, Any]) -> None:
    notebook = nbformat.read("feature_length.ipynb", as_version=4)
    nbformat.validate(notebook)
    exec(notebook.cells[1].source, {})


@pytest.mark.parametrize("example", ["A recipe"], indirect=True)
def test_recipe(example: dict[str, Any]) -> None:
    assert isinstance(example["wide"], Recipe)
    changed = [f.name for f in fields(Recipe) if getattr(example["wide"], f.name) != getattr(example["base"], f.name)]
    assert set(changed) == {"name", "summary", "model", "published"}


@pytest.mark.parametrize("example", ["A data set"], indirect=True)
def test_data_set(example: dict[str, Any], tmp_path: Path) -> None:
    for kind, mode, suffix in (("images", "RGB", "jpg"), ("masks", "L", "png")):
        folder = tmp_path / "roofs" / kind / "train"
        folder.mkdir(parents=True)
        Image.new(mode, (8, 6)).save(folder / f"a.{suffix}")
    (sample,) = example["load_roofs"]("train", tmp_path)
    assert sample.mask.shape == (6, 8)


@pytest.mark.parametrize("example", ["A head"], indirect=True)
def test_head(example: dict[str, Any]) -> None:
    x = torch.randn(2, 8, 4, 4)
    assert example["Gate"](8)(x).shape == x.shape


@pytest.mark.parametrize("example", ["An experiment"], indirect=True)
def test_experiment(example: dict[str, Any], tmp_path: Path) -> None:
    example["main"](example["Arguments"](out=tmp_path / "record.json", tiny=True))
    assert (tmp_path / "record.json").stat().st_size > 0


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == emalab.__version__


@pytest.mark.parametrize(("tag", "accepted"), [(f"v{emalab.__version__}", True), ("v9.9.9", False)])
def test_release_takes_the_tag_of_this_version_alone(tag: str, accepted: bool) -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    (check,) = [s["run"] for s in workflow["jobs"]["release"]["steps"] if s.get("name", "").startswith("Refuse")]
    environment = os.environ | {"GITHUB_REF_NAME": tag}
    done = subprocess.run(["bash", "-e", "-c", check], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is accepted
    assert accepted or emalab.__version__ in done.stderr
