import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "matrix"
DRAW = """
import random
import numpy as np, torch
from emalab.data.shapes import ShapesDataset, scenes_of
for seed in (5, 1005):
    random.seed(seed)
    torch.manual_seed(seed)
    own = torch.Generator().manual_seed(seed)
    image = ShapesDataset(scenes_of("shapes-pooled"), "val", seed=seed)[0].image
    spawned = np.random.SeedSequence(seed, spawn_key=(1,)).spawn(1)[0]
    print(random.random(), torch.rand(1).item(), torch.rand(1, generator=own).item(),
        np.random.default_rng(seed).random(), np.random.default_rng((seed, 3)).random(), spawned.entropy,
        isinstance(spawned, np.random.SeedSequence), image.sum().item())
"""


def draw(shift: str) -> list[list[str]]:
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "EMALAB_SEED_SHIFT": shift}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_every_seed_is_shifted_and_the_data_set_is_not() -> None:
    plain_5, plain_1005 = draw("")
    shifted_5, shifted_1005 = draw("1000")
    assert shifted_5[:6] == plain_1005[:6]
    assert all(a != b for a, b in zip(shifted_1005[:6], plain_1005[:6], strict=True))
    assert shifted_5[6:] == plain_5[6:]
    assert shifted_1005[6:] == plain_1005[6:]


@pytest.mark.parametrize("shift", ["x", "1.5"])
def test_another_shift_than_a_whole_number_stops_the_process(shift: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "EMALAB_SEED_SHIFT": shift}
    done = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"EMALAB_SEED_SHIFT is {shift!r}; expected a whole number" in done.stderr
