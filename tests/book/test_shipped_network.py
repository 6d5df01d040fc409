"""How a successor of the shipped network was to be chosen: the design, its effects and records, the whole program."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from experiments import shipped_network as program
from lab import figures_shipped_network as figures

from emalab import Segmenter, get_recipe
from emalab.checkpoints import read_metadata
from emalab.recipes import recipe_to_dict
from emalab.results import load_records, read_record
from emalab.studies import StudyFolder, override
from emalab.studies.statistics import Interval, least_squares

SIGNS = {name: np.array([1 if row[name] else -1 for row in program.design()]) for name in program.FACTORS}


class TestDesign:
    def test_changes_are_balanced_and_independent(self) -> None:
        assert all(signs.sum() == 0 and len(signs) == 16 for signs in SIGNS.values())
        assert all(one @ other == 0 for one, other in combinations(SIGNS.values(), 2))

    def test_no_effect_is_mixed_with_what_two_changes_do_together(self) -> None:
        for signs in SIGNS.values():
            assert all(signs @ (one * other) == 0 for one, other in combinations(SIGNS.values(), 2))

    def test_its_first_run_is_todays_recipe(self) -> None:
        study = program.design_study(program.base_recipe(tiny=False))
        today = get_recipe("voc-animals-lite2")
        assert (study.base.model, study.base.optim) == (today.model, today.optim)
        assert study.cells[0].changes == {}

    def test_all_are_scored_on_the_same_images_of_voc(self) -> None:
        study = program.design_study(program.base_recipe(tiny=False))
        splits = {(recipe.data.name, recipe.data.eval_split) for recipe in map(study.recipe, study.cells)}
        assert splits == {("voc-animals", "trainaug/held-out"), ("voc-animals-streets", "animals/held-out")}

    def test_a_larger_batch_sees_as_many_images(self) -> None:
        study = program.design_study(program.base_recipe(tiny=False))
        for cell in study.cells:
            optim = study.recipe(cell).optim
            assert optim.iterations * optim.batch_size == (64_000 if "length" in cell.label else 32_000)


class TestEffects:
    def scores(self, true: dict[str, float], noise: float = 0.0) -> dict[str, float]:
        generator = np.random.default_rng(0)
        return {
            program._label(row): 70 + sum(true.get(name, 0) * row[name] for name in row) + noise * generator.normal()
            for row in program.design()
        }

    def test_are_found(self) -> None:
        true = {"average": 1.5, "crop": -2.0}
        found = program.effects(self.scores(true))
        assert {name: effect.mean for name, effect in found.items()} == pytest.approx(
            {name: true.get(name, 0.0) for name in program.FACTORS}, abs=1e-9
        )

    def test_intervals_are_students_with_eight_degrees_of_freedom(self) -> None:
        """In a balanced design of 16, the half width is t(8) · 2 s/√16; by hand from the contrasts."""
        scores = self.scores({"rate": 1.0}, noise=1.0)
        values = np.array([scores[program._label(row)] for row in program.design()])
        contrasts = {name: signs @ values / 8 for name, signs in SIGNS.items()}
        fitted = values.mean() + sum(contrasts[name] * signs / 2 for name, signs in SIGNS.items())
        deviation = np.sqrt(((values - fitted) ** 2).sum() / 8)
        for name, effect in program.effects(scores).items():
            assert effect.mean == pytest.approx(contrasts[name])
            assert effect.half_width == pytest.approx(2.306004 * deviation / 2, rel=1e-6)

    def test_follow_from_the_runs_that_were_made(self) -> None:
        scores = dict(list(self.scores({"streets": 1.0}).items())[:12])
        assert program.effects(scores)["streets"].mean == pytest.approx(1.0)
        with pytest.raises(ValueError, match="7 runs do not determine 8 coefficients"):
            program.effects(dict(list(scores.items())[:7]))


def test_street_scenes_need_an_interval_above_zero() -> None:
    base = program.base_recipe(tiny=False)
    found = {name: Interval(0.5, -0.5, 1.5, 16) for name in program.FACTORS}
    assert set(program.choose(found, {}, base)[1]["taken"]) == set(program.FACTORS) - {"streets"}
    found = {**found, "streets": Interval(0.5, 0.1, 0.9, 16), "crop": Interval(-0.1, -1.0, 0.8, 16)}
    final, record = program.choose(found, {}, base)
    assert set(record["taken"]) == set(program.FACTORS) - {"crop"}
    assert final.base.data.name == "voc-animals-streets"


def test_the_final_network_has_what_helps() -> None:
    base = program.base_recipe(tiny=False)
    everything = program.final_study(base, dict.fromkeys(program.FACTORS, True)).base
    assert (everything.data.name, everything.data.train_split) == ("voc-animals-streets", "trainaug")
    assert (everything.data.eval_split, everything.data.crop_size) == ("val", (416, 416))
    assert everything.optim.iterations * everything.optim.batch_size == 160_000
    assert (everything.optim.average, everything.model.channels) == (0.996, 512)
    nothing = program.final_study(base, dict.fromkeys(program.FACTORS, False)).base
    assert nothing == override(base, {"name": nothing.name})


class TestRecords:
    FOLDER = figures.FOLDER
    BASE = program.base_recipe(tiny=False)
    RECORD = read_record(FOLDER / "effects.json")

    def test_scores_are_those_of_the_sixteen_runs(self) -> None:
        records = load_records(self.FOLDER / "design" / "records")
        assert len(records) == 16
        scores = {record["cell"]: 100 * record["scores"]["single scale"]["miou"] for record in records}
        assert scores == self.RECORD["scores"]
        study = program.design_study(self.BASE)
        for cell in study.cells:
            recipe = json.loads(json.dumps(recipe_to_dict(study.recipe(cell))))
            (record,) = (record for record in records if record["cell"] == cell.label)
            assert {**record["recipe"], "name": recipe["name"]} == recipe

    def test_effects_and_choice_follow_from_the_scores(self) -> None:
        found = program.effects(self.RECORD["scores"])
        _, again = program.choose(found, self.RECORD["scores"], self.BASE)
        assert again["taken"] == self.RECORD["taken"]
        for name, effect in found.items():
            assert self.RECORD["effects"][name] == pytest.approx(effect._asdict())
            assert figures.effects()[name] == pytest.approx(effect)
        assert figures.CHANGES.keys() == found.keys()

    def test_the_final_runs_have_the_chosen_recipe(self) -> None:
        final = program.final_study(self.BASE, {name: name in self.RECORD["taken"] for name in program.FACTORS})
        records = load_records(self.FOLDER / "final" / "records")
        assert len(records) == 2
        assert json.loads(json.dumps(recipe_to_dict(final.base))) == self.RECORD["recipe"]
        assert [{**record["recipe"], "seed": 0} for record in records] == [self.RECORD["recipe"]] * 2

    def test_the_goal_is_that_of_the_plan(self) -> None:
        assert (
            f"reach {figures.GOAL} VOC-animals-7"
            in program.final_study(self.BASE, dict.fromkeys(program.FACTORS, True)).question
        )
        assert program.__doc__ is not None
        assert f"at least {figures.GOAL} VOC-animals-7 on val" in program.__doc__

    def test_several_effects_together_are_the_difference_of_fitted_scores(self) -> None:
        """With a change of variables, least squares gives the sum of two effects as one coefficient."""
        scores = self.RECORD["scores"]
        columns = np.array([[1.0, *(row[name] - 0.5 for name in program.FACTORS)] for row in program.design()])
        first, second = (1 + list(program.FACTORS).index(name) for name in ("length", "crop"))
        columns[:, second] -= columns[:, first]  # then the coefficient of length is the sum
        found = least_squares(columns, np.array([scores[program._label(row)] for row in program.design()]))
        assert figures.together(["length", "crop"]) == pytest.approx(found[first])


def test_the_whole_program_runs(tmp_path: Path) -> None:
    program.main(program.Arguments(out=tmp_path, tiny=True))
    record = json.loads((tmp_path / "effects.json").read_text(encoding="utf-8"))
    assert {"what", "commit", "device", "versions", "date", "effects", "scores", "recipe"} <= record.keys()
    assert len(record["scores"]) == 16
    final = program.final_study(
        program.base_recipe(tiny=True), {name: name in record["taken"] for name in program.FACTORS}
    )
    assert len(StudyFolder(tmp_path / "final").records(final)) == 2
    metadata = read_metadata(tmp_path / "candidate.safetensors")
    assert (metadata["seed"], metadata["recipe"].name) == (0, final.base.name)
    assert Segmenter.from_pretrained(tmp_path / "candidate.safetensors").config == final.base.model
