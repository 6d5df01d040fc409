"""Recipes in YAML files: what they may say, that they train and are repeated, and one line for each mistake."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_recipe, tiny_segmenter

from emalab.checkpoints import load_training_state, read_recipe
from emalab.cli import main
from emalab.recipes import Recipe, get_recipe, recipe_from_dict, recipe_names, recipe_to_yaml
from emalab.recipes.files import read_recipe_file
from emalab.studies.sources import load_studies

SHORT = """
base: shapes-tiny
optim: {lr: 2e-3, iterations: 2, batch_size: 2, warmup: 0}
data.crop_size: [32, 32]
model:
  ema.num_bases: 3
evaluation:
"""


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file in the working directory, whose recipe trains in a second."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.yaml").write_text(SHORT)
    return "short.yaml"


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("emalab: error: ")
    assert error.count("\n") == 1
    return error


class TestWhatAFileMeans:
    def test_a_base_and_what_it_changes(self, short: str) -> None:
        base = get_recipe("shapes-tiny")
        assert get_recipe(short) == replace(
            base,
            name="short",
            summary="shapes-tiny, changed",
            optim=replace(base.optim, lr=2e-3, iterations=2, batch_size=2, warmup=0),
            data=replace(base.data, crop_size=(32, 32)),
            model=replace(base.model, ema=replace(base.model.ema, num_bases=3)),
        )

    def test_a_base_beside_it(self, short: str, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "more.yaml").write_text("base: ../short.yaml\nname: other\nseed: 4\n")
        recipe = get_recipe(Path("sub/more.yaml"))
        assert recipe == replace(get_recipe(short), name="other", seed=4, summary="../short.yaml, changed")

    def test_scores_that_others_published_are_not_those_of_a_change(self, tmp_path: Path) -> None:
        (tmp_path / "wide.yaml").write_text("base: context-59-r101\nmodel.ema.num_bases: 128\n")
        recipe, base = get_recipe(tmp_path / "wide.yaml"), get_recipe("context-59-r101")
        assert base.published
        assert not recipe.published
        assert recipe.notes == base.notes

    @pytest.mark.parametrize("name", recipe_names())
    def test_every_recipe_can_be_written_and_read(self, name: str, tmp_path: Path) -> None:
        recipe = get_recipe(name)
        text = recipe_to_yaml(recipe)
        (tmp_path / "copy.yaml").write_text(text, encoding="utf-8")
        summary = f"{name}, changed"
        assert get_recipe(tmp_path / "copy.yaml") == replace(recipe, name="copy", summary=summary, published=())
        whole = text.replace(f"base: {name}\n", "")
        (tmp_path / "copy.yaml").write_text(whole, encoding="utf-8")
        assert get_recipe(tmp_path / "copy.yaml") == replace(recipe, name="copy", summary="", notes="", published=())

    def test_a_recipe_of_ones_own_is_written_whole(self, tmp_path: Path) -> None:
        recipe = tiny_recipe(name="mine", summary="§", notes="a\nb")
        (tmp_path / "mine.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
        assert get_recipe(tmp_path / "mine.yaml") == recipe
        assert "base" not in yaml.safe_load(recipe_to_yaml(recipe))


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("base: shapes-tiny\nlr: 1", "a recipe has no field 'lr'; did you mean 'optim.lr'?"),
            ("base: shapes-tiny\noptm: {lr: 1}", "a recipe has no field 'optm'; did you mean 'optim"),
            (
                "base: shapes-tiny\nmodel.ema.num_base: 1",
                "no field 'model.ema.num_base'; did you mean 'model.ema.num_bases'?",
            ),
            ("base: shapes-tiny\ncolor: 1", "a recipe has no field 'color'; `emalab train RECIPE --help` lists all"),
            ("base: shapes-tiny\noptim: {lr: fast}", "recipe.optim.lr must be a number; got 'fast'"),
            ("base: shapes-tiny\noptim.lr: .nan", "recipe.optim.lr must be finite; got nan"),
            ("base: shapes-tiny\noptim.lr: -1", "optim.lr must be at least 0, got -1"),
            ("base: shapes-tiny\noptim: 3", "recipe.optim must be an object with the fields optimizer, lr"),
            ("base: shapes-tiny\noptim.iterations: true", "recipe.optim.iterations must be a whole number; got True"),
            ("base: shapes-tiny\noptim: {lr: 1}\noptim.lr: 2", "recipe.optim.lr is set twice"),
            ("base: shapes-tiny\nseed: 1\nseed: 2", "'seed' occurs twice in one mapping"),
            ("base: shapes-tiny\nname: ../up", "a recipe cannot be called '../up'"),
            ("base: shapes-tny", "no recipe 'shapes-tny'; did you mean shapes-tiny"),
            ("base: [shapes-tiny]", "base must be the name of a recipe, or a .yaml file; got ['shapes-tiny']"),
            ("base: bad.yaml", "is its own base"),
            ("base: gone.yaml", "bad.yaml: its base gone.yaml does not exist"),
            ('base: "\\0.yaml"', "bad.yaml: base must be the name of a recipe, or a .yaml file; got '\\x00.yaml'"),
            ("optim.lr: 1", "has neither a base nor 'data'; name a recipe, as in base: shapes-tiny"),
            ("- a", "contains no recipe; begin, for example, with base: shapes-tiny"),
            ("", "contains no recipe"),
            ("base: shapes-tiny\nmodel: {ema: {scale: !!python/object:os.system {}}}", "cannot be read as YAML"),
            ("a: &a [x, x]\nb: [*a, *a]", "aliases (*name) are not used here"),
            ("[" * 5000, "nested too deeply"),
            ("#" * 1_100_000, "has 1100000 bytes"),
            ("base: shapes-tiny\nmodel.backbone_blocks: [2000000]", "backbone_blocks must be 1 to 1000"),
            ('base: shapes-tiny\nnotes: "\\e[31m"', "recipe.notes must be printable text"),
        ],
    )
    def test_one_line_that_names_the_file(
        self,
        text: str,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bad.yaml").write_text(text)
        error = error_of(capsys, "train", "bad.yaml")
        assert message in error
        assert "bad.yaml" in error or "gone.yaml" in error
        assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]

    def test_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(tmp_path)
        assert "there is no file gone.yaml" in error_of(capsys, "train", "gone.yaml")
        (tmp_path / "mine.yaml").write_text("base: shapes-tiny")
        assert "no recipe 'mine'; did you mean mine.yaml?" in error_of(capsys, "train", "mine")

    def test_bases_without_end(self, tmp_path: Path) -> None:
        """Files in a circle, links in a circle, and a thousand files one on the other."""
        for i in range(1000):
            (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml")
        with pytest.raises(ValueError, match=r"/33\.yaml: more than 32 files are based on one another"):
            read_recipe_file(tmp_path / "0.yaml")
        (tmp_path / "33.yaml").write_text("base: shapes-tiny")
        with pytest.raises(ValueError, match="more than 32 files"):
            read_recipe_file(tmp_path / "0.yaml")
        assert read_recipe_file(tmp_path / "1.yaml").name == "1"
        (tmp_path / "5.yaml").write_text(f"base: ../{tmp_path.name}/3.yaml")
        with pytest.raises(ValueError, match=r"/3\.yaml: is its own base"):
            read_recipe_file(tmp_path / "3.yaml")
        (tmp_path / "loop.yaml").symlink_to("loop.yaml")
        with pytest.raises(OSError, match=r"loop\.yaml"):
            read_recipe_file(tmp_path / "loop.yaml")

    def test_code_needs_leave(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The module would leave a file behind."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "bait.py").write_text(
            "open('caught', 'w').close()\nfrom torch.nn import Identity as Own\nOwn = type('Own', (Own,), {})\n"
        )
        (tmp_path / "own.yaml").write_text(SHORT.replace("model:", "model:\n  context: bait:Own"))
        (tmp_path / "study.yaml").write_text("base: own.yaml\ncells: {base: {}}")
        for words in (["train", "own.yaml"], ["cost", "own.yaml"], ["study", "study.yaml", "--accelerator", "cpu"]):
            assert "the network needs code, bait:Own, which a file may not import by itself" in error_of(capsys, *words)
        with pytest.raises(ValueError, match="allow the module bait"):
            get_recipe("own.yaml")
        main(["recipes", "own.yaml"])
        with contextlib.suppress(SystemExit):
            main(["study", "--list", "study.yaml"])
        assert not (tmp_path / "caught").exists()
        monkeypatch.setitem(sys.modules, "bait", None)  # removed afterwards
        del sys.modules["bait"]
        main(["cost", "own.yaml", "--allow-code", "bait"])
        assert (tmp_path / "caught").exists()

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        content=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["base", "optim", "optim.lr", "model", "ema", "name", "data"])
                    | st.text(max_size=4)
                    | st.integers(),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        )
        | st.text(max_size=60)
    )
    def test_anything_else_is_refused_in_one_line(self, content: Any, tmp_path: Path) -> None:
        path = tmp_path / "any.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        with contextlib.suppress(ValueError, KeyError, FileNotFoundError):
            assert isinstance(read_recipe_file(path), Recipe)


class TestCommands:
    def test_train_then_repeat_without_the_file(
        self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--accelerator", "cpu", "--no-progress", "--seed", "7"]
        main(["train", short, *flags])
        recipe = replace(get_recipe(short), seed=7)
        run = tmp_path / "runs" / "short-seed7"
        record = json.loads((run / "record.json").read_text())
        assert load_training_state(run / "last.pt")[0] == recipe_from_dict(record["recipe"]) == recipe
        Path(short).unlink()
        capsys.readouterr()
        main(["train", "--from-record", str(run / "record.json"), "--out", "again", *flags[:3]])
        assert read_recipe("again/last.pt") == recipe
        assert json.loads(Path("again/record.json").read_text())["weights"] == record["weights"]

    def test_one_to_start_from(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        main(["recipes", "voc-r50", "--write", "mine.yaml"])
        assert "emalab train mine.yaml" in capsys.readouterr().out
        assert get_recipe("mine.yaml").optim == get_recipe("voc-r50").optim
        assert "mine.yaml exists; name a new file" in error_of(capsys, "recipes", "voc-r101", "--write", "mine.yaml")
        assert "a recipe's file ends in .yaml" in error_of(capsys, "recipes", "voc-r101", "--write", "mine.json")
        assert "of which recipe?" in error_of(capsys, "recipes", "--write", "new.yaml")
        main(["recipes", "mine.yaml"])
        assert yaml.safe_load(capsys.readouterr().out)["optim"]["iterations"] == 30_000
        assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]

    def test_cost_and_conversion(self, short: str, capsys: pytest.CaptureFixture[str]) -> None:
        import torch

        main(["cost", short])
        assert "32×32" in capsys.readouterr().out
        torch.save(tiny_segmenter(ema=get_recipe(short).model.ema).state_dict(), "own.pth")
        main(["convert", "state-dict", "own.pth", "own.safetensors", "--recipe", short])
        assert read_recipe("own.safetensors") == get_recipe(short)

    def test_the_base_of_a_study(self, short: str, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text("base: short.yaml\nchanges: {optim.lr: 1e-3}\ncells: {base: {}}")
        study = load_studies(tmp_path / "study.yaml")["study"]
        assert study.base.model == get_recipe(short).model
        assert study.base.optim.lr == 1e-3

    def test_a_folder_goes_by_its_classes(self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "labels.yaml").write_text("classes: [wall, roof]")
        assert "images" in error_of(capsys, "train", "labels.yaml")
