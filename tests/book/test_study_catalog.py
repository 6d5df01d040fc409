"""The book's studies: names, networks and rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiments.studies import STUDIES

from emalab.cli import main
from emalab.recipes import Recipe
from emalab.segmenter import build_segmenter

ROOT = Path(__file__).parents[2]


def test_names_and_recipes_belong_together() -> None:
    """Else two cells would share a record."""
    for family in {study.family for study in STUDIES.values()}:
        recipes: dict[str, Recipe] = {}
        for study in STUDIES.values():
            for run in study.runs() if study.family == family else ():
                assert recipes.setdefault(run.name, run.recipe) == run.recipe
        assert {run.name for run in STUDIES[family].runs()} == recipes.keys()
        assert all("/" not in name and " " not in name for name in recipes)


def test_a_bare_name_is_looked_up_in_the_clone(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main(["study", "--list"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in STUDIES)
    main(["study", "voc-animals-heads", "--dry-run", "--accelerator", "cpu"])
    assert "25 runs, 0 done, 25 missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["study", "voc-animls-heads"])
    assert "did you mean voc-animals-heads" in capsys.readouterr().err


def test_every_network_can_be() -> None:
    """Options that exclude each other would cost a run each."""
    for study in (STUDIES["shapes"], STUDIES["camvid"], STUDIES["cityscapes-256"]):
        for cell in study.cells:
            model = study.recipe(cell).model
            build_segmenter(replace(model, backbone="tiny", backbone_weights=None, output_stride=4, channels=8))


def test_heads_learn_at_their_own_rates() -> None:
    study = STUDIES["voc-animals-heads"]
    assert {cell.label: study.recipe(cell).optim.lr for cell in study.cells} == {
        **{"plain FCN": 1e-3, "non-local": 5e-4, "EMA": 1e-3},
        **{"DeepLabV3": 1e-3, "PSP": 1e-3},
    }
    assert all(cell.seeds == 5 for cell in study.cells)


def test_batches_see_as_many_images() -> None:
    study = STUDIES["camvid-batch"]
    optims = [study.recipe(cell).optim for cell in study.cells]
    assert {optim.iterations * optim.batch_size for optim in optims} == {9600}
