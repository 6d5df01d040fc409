"""What a study is, and what its summary says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_studies import FROZEN, base, tiny_study

from emalab.studies import Cell, Study, family, load_studies, override
from emalab.studies.statistics import student_interval
from emalab.studies.summary import format_summary, score, summarize, summary_to_dict


class TestStudy:
    def test_override(self) -> None:
        changed = override(base(), {"model.ema.num_bases": 16, "optim.lr": 0.5})
        assert (changed.model.ema.num_bases, changed.optim.lr) == (16, 0.5)
        assert replace(changed, optim=base().optim, model=base().model) == base()
        for path in ("model.ema.bases", "model.nothing.at", "optim.lr.peak", "speed"):
            with pytest.raises(ValueError, match=f"a recipe has no field '{path}'"):
                override(base(), {path: 1})
        with pytest.raises(ValueError, match="must be one of stop, last, unroll"):
            override(base(), {"model.ema.grad": "full"})

    def test_names_of_many_changes_stay_names_of_files(self) -> None:
        """Windows takes paths of 260 characters, and two cells that differ at the end keep two names."""
        many = {"optim.lr": 0.0123456, "optim.weight_decay": 0.0123456, "optim.head_lr_factor": 1.23456}
        many |= {"optim.bias_lr_factor": 1.23456, "optim.clip_norm": 1.23456, "model.ema.num_bases": 4}
        study = tiny_study(Cell("base"), *(Cell(f"T={t}", many | {"model.ema.num_iters": t}) for t in (1, 2)))
        names = {run.recipe.name for run in study.runs()}
        assert len(names) == 3
        assert max(map(len, names)) == 120
        assert study.recipe(study.cells[1]).name[:100] == study.recipe(study.cells[2]).name[:100]

    def test_seed_0_of_every_cell_comes_first(self) -> None:
        study = tiny_study(
            Cell("base", seeds=3), Cell("frozen", FROZEN, seeds=1), Cell("K=4", {"model.ema.num_bases": 4})
        )
        assert [(run.cell.label, run.recipe.seed) for run in study.runs()] == [
            *(("base", 0), ("frozen", 0), ("K=4", 0)),
            *(("base", 1), ("K=4", 1), ("base", 2), ("K=4", 2)),
        ]
        assert [run.name for run in study.runs(["K=4"])] == [f"tiny-num-bases-4-seed{seed}" for seed in range(3)]
        with pytest.raises(ValueError, match="no cell 'frosen'; did you mean 'frozen'"):
            study.runs(["frosen"])

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            ([Cell("a", FROZEN)], "needs a cell without changes"),
            ([Cell("a"), Cell("a", FROZEN)], "two cells with the label 'a'"),
            ([Cell("a"), Cell("b", {"model.ema.num_bases": 8})], "two cells with the recipe"),
            ([Cell("a", seeds=0)], "a has 0 seeds"),
            ([Cell("a", seeds=10**9)], "a has 1000000000 seeds"),
            ([Cell("a", evaluations={"x": {"optim.lr": 1}})], "evaluation 'x' of a changes optim.lr"),
            ([Cell("a", evaluations={"x": {"model.size": 1}})], "no field 'model.size'"),
        ],
    )
    def test_refuses_what_cannot_be_compared(self, cells: list[Cell], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tiny_study(*cells)

    @pytest.mark.parametrize("name", ["../a", "a/b", "a\\b", "a\n", ".a", "", "C:a"])
    def test_names_are_those_of_files(self, name: str) -> None:
        """Records lie in the folder of their study, whatever a file of studies says."""
        cells = (Cell("base"),)
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study(name, "", base(), cells)
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study("a", "", base(), cells, name or "/")
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study("a", "", replace(base(), name=name), cells)

    def test_a_family_trains_a_recipe_once(self) -> None:
        """K=8 is the base of this network: one run, with the seeds and evaluations of both axes."""
        at_test = {"T=1": {"model.ema.num_iters": 1}}
        cells = [Cell(f"K={k}", {"model.ema.num_bases": k}, seeds=1) for k in (4, 8)]
        whole, bases, iterations = family(
            "tiny", "", base(), {"bases": ("", cells), "iterations": ("", [Cell("T=3", evaluations=at_test, seeds=5)])}
        )
        assert [study.name for study in (whole, bases, iterations)] == ["tiny", "tiny-bases", "tiny-iterations"]
        assert {run.name for run in whole.runs()} == {run.name for s in (bases, iterations) for run in s.runs()}
        shared = bases.baseline
        assert (shared.label, shared.seeds, shared.evaluations) == ("K=8", 5, at_test)
        assert iterations.recipe(iterations.baseline) == bases.recipe(shared) == whole.recipe(whole.baseline)


class TestPythonFile:
    STUDY = 'STUDY = Study("own", "", get_recipe("shapes-tiny"), (Cell("base"), FROZEN))'

    @pytest.mark.parametrize("package", ["", "own_experiments_of_a_test"], ids=["beside", "in a package"])
    def test_may_import_modules_beside_it(self, package: str, tmp_path: Path) -> None:
        """And leaves the path of imports as it was."""
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        if package:
            (folder / "__init__.py").touch()
        module = f"cells_{'in' if package else 'beside'}_a_test"
        cell = 'FROZEN = Cell("frozen", {"model.ema.maintenance": "frozen"})'
        (folder / f"{module}.py").write_text(f"from emalab.studies import Cell\n{cell}\n")
        lines = ("from emalab.recipes import get_recipe", "from emalab.studies import Cell, Study")
        lines += (f"from {package + '.' * bool(package)}{module} import FROZEN", self.STUDY)
        (folder / "studies.py").write_text("\n".join(lines))
        before = list(sys.path)
        assert [cell.label for cell in load_studies(folder / "studies.py")["own"].cells] == ["base", "frozen"]
        assert sys.path == before


def record(name: str, seed: int, miou: float | None, **evaluations: float) -> dict[str, Any]:
    return {
        "recipe": {"name": name},
        "seed": seed,
        "scores": {"single scale": {"miou": miou}},
        "evaluations": {label: {"miou": value} for label, value in evaluations.items()},
        "commit": "abc",
        "device": "pocket calculator",
    }


class TestSummary:
    def test_of_a_study(self) -> None:
        at_test = {"T=9": {"model.ema.num_iters": 9}}
        study = tiny_study(Cell("base", evaluations=at_test, seeds=2), Cell("frozen", FROZEN, seeds=3))
        frozen = "tiny-maintenance-frozen"
        records = [
            *(record("tiny", 0, 0.5, **{"T=9": 0.6}), record("tiny", 1, 0.6, **{"T=9": 0.8})),
            *(record(frozen, 1, 0.7), {**record(frozen, 2, 0.0), "diverged": "the loss became nan"}),
            record("of-another-study", 0, 0.0),
        ]
        base_row, row = summarize(study, records, failed=[f"{frozen}-seed0"]).rows
        assert base_row.mean == pytest.approx(student_interval([50.0, 60.0]))
        assert np.isnan(base_row.difference.mean)
        assert (row.scores, row.missing, row.diverged, row.failed) == ({1: 70.0}, [0], [2], [0])
        assert (row.difference.mean, row.difference.num_values) == (pytest.approx(10), 1)
        (at_nine,) = summarize(study, records, "T=9").rows
        assert at_nine.scores == {0: 60.0, 1: 80.0}
        table = format_summary([base_row, row]).splitlines()
        assert table[1].split() == ["base", "2", "55.00", "±", "63.53"]
        assert table[2].split()[:5] == ["frozen", "1", "70.00", "+10.00", "+10.00"]
        assert table[2].endswith("diverged: seed 2; failed: seed 0")
        with pytest.raises(ValueError, match="no evaluation 'T=8'; there are: T=9"):
            summarize(study, records, "T=8")
        plain = json.loads(json.dumps(summary_to_dict(study, records), allow_nan=False))
        assert plain["scores"]["T=9"][0]["mean"]["mean"] == pytest.approx(70)
        assert plain["scores"]["single scale"][0]["difference"]["mean"] is None

    def test_score(self) -> None:
        assert score(record("tiny", 0, 0.5, a=0.25)) == 50
        assert score(record("tiny", 0, 0.5, a=0.25), "a") == 25
        assert score(record("tiny", 0, 0.5), "b") is None
        assert score(record("tiny", 0, None)) is None
