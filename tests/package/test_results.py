"""Result records."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

import emalab
from emalab import results
from emalab.data.shapes import POOLED
from emalab.metrics import SegmentationScores, scores_from_confusion
from emalab.recipes import get_recipe, recipe_from_dict
from emalab.results import checksum, find_origin, git_commit, load_records, make_record, read_record, write_record

CPU = torch.device("cpu")
RECORDS = Path(__file__).parents[2] / "book" / "results"


def some_scores() -> SegmentationScores:
    return scores_from_confusion(torch.diag(torch.tensor([3, 2, 1, 0, 0])), POOLED, images=4)


def test_a_record_says_how_to_run_again(tmp_path: Path) -> None:
    recipe = tiny_recipe(seed=7)
    record = make_record(
        recipe, {"single scale": some_scores()}, origin=find_origin(CPU, "abc"), seconds={"training": 1.5}
    )
    write_record(tmp_path / "run.json", record)
    (read,) = load_records(tmp_path)
    assert read.pop("checksum") == checksum(record)
    assert read == json.loads(json.dumps(record, allow_nan=False))
    assert recipe_from_dict(read["recipe"]) == recipe
    assert (read["seed"], read["commit"], read["seconds"]) == (7, "abc", {"training": 1.5})
    assert read["scores"]["single scale"] == some_scores().to_dict()
    assert read["versions"].keys() == {"emalab", "torch", "torchvision", "timm"}
    assert read["device"]


def test_an_argument_that_is_no_text(tmp_path: Path) -> None:
    """A file name of other bytes than UTF-8, as Python hands it to programs."""
    record = {"program": "emalab", "arguments": ["predict", os.fsdecode(b"caf\xe9.jpg")]}
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path / "run.json")["arguments"] == record["arguments"]


def test_versions_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that PYTHONPATH names say their version themselves."""

    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(results, "version", missing)
    found = results.environment(CPU)["versions"]
    assert (found["emalab"], found["torch"]) == (emalab.__version__, torch.__version__)
    assert all(found.values())


def test_records_come_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_record(tmp_path / f"{name}.json", {"name": name})
    assert [record["name"] for record in load_records(tmp_path)] == ["a", "b", "c"]
    assert [record["name"] for record in load_records(tmp_path, "[bc].json")] == ["b", "c"]


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    write_record(tmp_path / "good.json", {})
    (tmp_path / "half.json").write_text('{"recipe": ')
    with pytest.raises(ValueError, match=r"half\.json is not a result record"):
        load_records(tmp_path)


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    """A score of 0.61 that became 0.91; spaces do not matter, and a record without a checksum is an old one."""
    path = tmp_path / "run.json"
    write_record(path, {"scores": {"single scale": {"miou": 0.61}}, "note": "λ", 1: (2, 3)})
    written = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(written)), encoding="utf-8")
    assert read_record(path)["scores"]["single scale"]["miou"] == 0.61
    path.write_text(written.replace("0.61", "0.91"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json was changed after it was written"):
        read_record(path)
    old = {key: value for key, value in json.loads(written).items() if key != "checksum"}
    path.write_text(json.dumps(old), encoding="utf-8")
    assert "checksum" not in read_record(path)


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, '{"a": '], ids=["list", "number", "nested", "cut"])
def test_what_is_no_object_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is not a result record"):
        read_record(tmp_path / "run.json")


def test_a_record_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(results.__file__).parents[1]
    for program, expected in (
        (root / "emalab" / "__main__.py", "emalab"),
        (Path(sys.prefix) / "Scripts" / "emalab.exe", "emalab"),
        (root / "book" / "experiments" / "heads.py", "book/experiments/heads.py"),
        ("/elsewhere/mine.py", "mine.py"),
    ):
        monkeypatch.setattr(sys, "argv", [str(program), "--tiny"])
        where = results.environment(CPU)
        assert (where["program"], where["arguments"]) == (expected, ["--tiny"])
        assert re.fullmatch(r"\d\d:\d\d:\d\dZ", where["time"])


def test_a_record_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["heads.py", "--out", str(tmp_path / "heads"), "--data-root", "data/voc"])
    assert results.environment(CPU)["arguments"] == ["--out", "heads", "--data-root", "data/voc"]


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no result record matches"):
        load_records(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git on PATH")
class TestGitCommit:
    @pytest.fixture
    def checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A repository with one commit, whose package the running source is said to be."""

        def git(*arguments: str) -> None:
            identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
            subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

        source = tmp_path / "emalab" / "results.py"
        source.parent.mkdir()
        source.write_text("original")
        git("init", "-q")
        git("add", ".")
        git("commit", "-q", "-m", "First")
        monkeypatch.setattr(results, "__file__", str(source))
        return source

    def test_names_the_commit(self, checkout: Path) -> None:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout.parent, capture_output=True, text=True)
        assert git_commit() == head.stdout.strip()

    def test_marks_an_edited_tree(self, checkout: Path) -> None:
        clean = git_commit()
        checkout.write_text("edited")
        assert git_commit() == f"{clean}+"

    def test_is_not_that_of_a_repository_around_an_installed_package(
        self, checkout: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed = checkout.parents[1] / ".venv" / "emalab" / "results.py"
        installed.parent.mkdir(parents=True)
        installed.write_text("installed")
        monkeypatch.setattr(results, "__file__", str(installed))
        assert git_commit() is None

    def test_is_none_outside_of_a_checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
        assert git_commit() is None


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*-seed*.json")), ids=lambda path: path.stem)
def test_records_of_the_book_are_of_the_recipes_that_they_name(path: Path) -> None:
    """So that `emalab train RECIPE --seed N` makes the same run again."""
    record = json.loads(path.read_text(encoding="utf-8"))
    ran = recipe_from_dict(record["recipe"])
    assert path.stem == f"{ran.name}-seed{record['seed']}"
    named = get_recipe(ran.name)
    assert ran == replace(named, seed=record["seed"], summary=ran.summary, notes=ran.notes, published=ran.published)
    assert re.fullmatch(r"[0-9a-f]{40}\+?", record["commit"])
