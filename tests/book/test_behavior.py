"""Records of headlines age with the code: it must still compute what it computed when they were made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from experiments import behavior

from emalab.recipes import recipe_from_dict

RECORD = json.loads((behavior.RESULTS / "behavior.json").read_text(encoding="utf-8"))

# Instruction sets and threads move the numbers by at most 9e-7, a weight decay of 0.051 in place of 0.05 by 1e-4.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", behavior.HEADLINES)
def test_the_code_behaves_as_when_the_headlines_were_measured(name: str) -> None:
    recipe = recipe_from_dict(behavior.read_headline(behavior.HEADLINES[name])["recipe"])
    found = behavior.losses(recipe)
    assert found == pytest.approx(RECORD["losses"][name], rel=TOLERANCE), (
        f"the code no longer computes what the runs of {name} computed: run them again, or mend the change; then "
        "python book/experiments/behavior.py"
    )


def test_a_small_change_is_seen() -> None:
    recipe = recipe_from_dict(behavior.read_headline(behavior.HEADLINES["Cityscapes, EM"])["recipe"])
    known = RECORD["losses"]["Cityscapes, EM"]
    ema = recipe.model.ema
    changed = (
        replace(recipe, optim=replace(recipe.optim, weight_decay=0.051)),
        replace(recipe, optim=replace(recipe.optim, clip_norm=4.9)),
        replace(recipe, model=replace(recipe.model, ema=replace(ema, momentum=0.89))),
        replace(recipe, model=replace(recipe.model, ema=replace(ema, num_iters=2))),
    )
    for other in changed:
        assert behavior.farthest({"": behavior.losses(other)}, {"": known}) > TOLERANCE, other


def test_the_commits_of_all_headlines_were_compared() -> None:
    commits = {behavior.read_headline(path)["commit"][:7] for path in behavior.HEADLINES.values()}
    assert RECORD["farthest"].keys() == commits
    # Of the oldest, which rounded normalized images to float32 in a float64 network too: see the record's program.
    assert max(RECORD["farthest"].values()) < 1e-3
