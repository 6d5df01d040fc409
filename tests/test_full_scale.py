"""The training chapter with ``EMALAB_FULL=1``: every cell runs as it would on real data, on files made here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from tiny_data import make_camvid

from emalab import recipes
from emalab.recipes import Recipe

CHAPTER = Path(__file__).parents[1] / "book/first_training_run.ipynb"


def test_every_cell_of_the_training_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = recipes.get_recipe

    def shortened(name: str) -> Recipe:
        recipe = original(name)
        return replace(
            recipe,
            precision="32-true",
            data=replace(recipe.data, crop_size=(64, 64)),
            model=replace(recipe.model, backbone_weights=None),
            optim=replace(recipe.optim, iterations=2, batch_size=6, warmup=1),
        )

    make_camvid(tmp_path / "data", per_split=4)
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(recipes, "get_recipe", shortened)
    monkeypatch.setenv("EMALAB_FULL", "1")
    monkeypatch.setenv("EMALAB_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path / "book")
    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(CHAPTER.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        f"camvid-lite2{suffix}-seed0" for suffix in ("", "-fcn", "-non-local")
    }
