"""environment.yml and pyproject.toml ask for the same packages, in the same versions."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import emalab

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))


def versions(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Package name -> allowed versions; a package named twice must satisfy both."""
    allowed: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        allowed[name] = allowed.get(name, SpecifierSet()) & requirement.specifier
    return allowed


def test_same_packages_and_versions():
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [r for group in extras.values() for r in group]
    wanted = [r for r in wanted if Requirement(r).name != PROJECT["name"]]
    assert versions([r for r in PIP if not r.startswith("-e")]) == versions(wanted)


def test_dev_extra_names_every_other_extra():
    extras = PROJECT["optional-dependencies"]
    (dev,) = map(Requirement, extras["dev"])
    assert dev.name == PROJECT["name"]
    assert dev.extras == set(extras) - {"dev"}


def test_same_python():
    (python,) = [Requirement(r) for r in CONDA if isinstance(r, str) and r.startswith("python")]
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])


def test_conda_installs_the_package_itself():
    assert "-e ." in PIP


def test_who_cites_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == emalab.__version__
    assert f"version = {{{emalab.__version__}}}" in (ROOT / "book/citing.md").read_text(encoding="utf-8")
