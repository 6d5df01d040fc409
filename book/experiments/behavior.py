"""What today's code computes for the recipes of the headline records: the losses of a few training steps, exactly.

    python book/experiments/behavior.py

writes ``book/results/behavior.json``, which a test compares with what the code computes now. Weights, images and labels
are drawn by numpy and everything is computed in float64 on the CPU, so the numbers are the same on every machine but for
rounding. They change with the network, the loss, EM attention, the optimizer or the schedule: records that are older
than such a change no longer tell what the code does. The record also has, for the commit of each headline, how far its
package is from this one: the largest relative difference of these numbers.

What the numbers do not see: the backbone, which is a small one here, augmentation and order of the images, and rounding
in bfloat16.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
import tyro

from emalab.recipes import Recipe, recipe_from_dict
from emalab.results import environment, git_commit, write_record
from emalab.trainer import RunOptions, Trainer

RESULTS = Path(__file__).resolve().parents[1] / "results"
HEADLINES = {
    "CamVid, EM": "camvid-lite2-seed0.json",
    "CamVid, non-local": "camvid-lite2-non-local-seed0.json",
    "CamVid, FCN": "camvid-lite2-fcn-seed0.json",
    "VOC animals, EM": "studies/voc-animals-heads/heads/records/voc-animals-heads-seed0.json",
    "Cityscapes, EM": "studies/cityscapes-256/records/cityscapes-256-study-seed0.json",
    "Cityscapes, unroll": "studies/cityscapes-256/records/cityscapes-256-study-grad-unroll-seed0.json",
    "Cityscapes, learned": "studies/cityscapes-256/records/"
    "cityscapes-256-study-maintenance-learned-grad-unroll-seed0.json",
    "Cityscapes, per image": "studies/cityscapes-256/records/cityscapes-256-study-maintenance-per-image-seed0.json",
}
"""What a headline is called → one of its records, for the recipe."""

STEPS, IMAGES, SIDE, CLASSES = 3, 2, 64, 5


@dataclass(frozen=True)
class Arguments:
    """What to compute, and where to."""

    out: Path = RESULTS / "behavior.json"
    """File to write."""
    tiny: bool = False
    """One recipe: tries the program."""


def losses(recipe: Recipe) -> list[float]:
    """The loss of each training step, and last the mean square of the trained network's logits, in float64.

    Args:
        recipe: its head, on a small backbone, without dropout and with few classes, its optimizer and its schedule are
            used; its data are not.
    """
    small = replace(
        recipe,
        data=replace(
            recipe.data,
            name="shapes-pooled",
            train_split="train",
            eval_split="val",
            crop_size=(SIDE, SIDE),
        ),
        model=replace(
            recipe.model,
            num_classes=CLASSES,
            backbone="tiny",
            backbone_weights=None,
            output_stride=4,
            dropout=0.0,
        ),
        optim=replace(recipe.optim, batch_size=IMAGES, warmup=1),
        precision="64-true",
        execution="eager",
    )
    options = RunOptions(accelerator="cpu", progress=False, num_workers=0, commit="-")
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(small, Path(folder) / "run", options)
        _draw_weights(trainer.model, generator)
        trainer.model.train()
        found = []
        for _ in range(STEPS):
            size = (IMAGES, 3, SIDE, SIDE)
            images = torch.from_numpy(
                generator.integers(256, size=size, dtype=np.uint8)
            )
            masks = torch.from_numpy(
                generator.integers(CLASSES, size=(IMAGES, SIDE, SIDE), dtype=np.uint8)
            )
            masks[:, :4] = 255
            found.append(float(trainer.step(images, masks)))
        trainer.model.eval()
        with torch.no_grad():
            found.append(float(trainer.model(images).square().mean()))
    return found


def _draw_weights(model: torch.nn.Module, generator: np.random.Generator) -> None:
    """Every floating-point tensor anew, in order of names; variances and scales of norms stay what they are."""
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point() and tensor.dim() > 1:
                width = 1 / np.sqrt(tensor[0].numel())
                drawn = generator.normal(scale=width, size=tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(drawn).to(tensor))


def headline_losses(tiny: bool = False) -> dict[str, list[float]]:
    """Of every headline."""
    names = list(HEADLINES)[:1] if tiny else list(HEADLINES)
    return {
        name: losses(
            recipe_from_dict(
                _known_fields(Recipe, read_headline(HEADLINES[name])["recipe"])
            )
        )
        for name in names
    }


def read_headline(path: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / path).read_text(encoding="utf-8")))


def _known_fields(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that this package does not have, for an older one; their defaults are what it does."""
    hints = get_type_hints(kind)
    return {
        name: _known_fields(hints[name], value) if is_dataclass(hints[name]) else value
        for name, value in values.items()
        if name in hints
    }


def farthest(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> float:
    """The largest relative difference between two results, over all headlines that both have."""
    return max(
        abs(a - b) / abs(b)
        for name in one.keys() & other.keys()
        for a, b in zip(one[name], other[name], strict=True)
    )


def main(arguments: Arguments) -> None:
    """Compute, compare with the commits of the headlines, and write the record."""
    found = headline_losses(arguments.tiny)
    commits = sorted({read_headline(path)["commit"][:7] for path in HEADLINES.values()})
    record: dict[str, Any] = {
        "what": __doc__,
        "losses": found,
        "farthest": {
            commit: farthest(_at(commit), found)
            for commit in commits
            if not arguments.tiny
        },
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


def _at(commit: str) -> dict[str, list[float]]:
    """`headline_losses` by the package as it was at a commit, in a process of its own."""
    code = (
        "import json, experiments.behavior as b; print(json.dumps(b.headline_losses()))"
    )
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "archive", "--output", f"{folder}/emalab.tar", commit, "emalab"]
        subprocess.run(git, cwd=RESULTS.parents[1], check=True)
        shutil.unpack_archive(f"{folder}/emalab.tar", folder, filter="data")
        path = os.pathsep.join([folder, str(RESULTS.parent)])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
