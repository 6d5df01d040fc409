"""Look at the bases of the shipped network over the validation images of VOC animals, and keep what they do.

    python book/experiments/voc_animals_bases.py --data-root DATA

writes ``book/results/voc-animals-bases.json``, which the chapter "What the bases see" reads. Two minutes on one core.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from emalab import EMAU, Segmenter, em_attention
from emalab.bases import initial_bases
from emalab.commands.environment import default_data_root
from emalab.data import Sample, load_dataset
from emalab.inspection import (
    contingency,
    distinct_bases,
    effective_rank,
    entropy,
    error_up_to_scale,
    labels_at_positions,
    look_inside,
    merge,
    outward,
    perplexity,
    rank_errors,
    shift,
)
from emalab.results import environment, git_commit, write_record
from emalab.segmenter import DEFAULT_WEIGHTS
from lab import miniature

THRESHOLD = 0.95
NUMBERS = (4, 8, 16, 32, 64, 128, 256)
SCALES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Arguments:
    """What to look at."""

    data_root: Path | None = None
    """Folder with VOCdevkit/VOC2012; $EMALAB_DATA by default, and data/ here without one."""
    out: Path = Path("book/results/voc-animals-bases.json")
    """The record."""
    seed: int = 0
    """Of the shifts."""
    tiny: bool = False
    """Six made-up images: tries the program, measures nothing."""


@dataclass
class Found:
    """What is found in one image."""

    figures: dict[str, float]
    tables: dict[str, Tensor]
    """Counts, (groups or bases or classes, classes)."""
    share: Tensor
    """Mean responsibilities, (bases,)."""
    outline: Tensor
    """Sums over positions, weighted with responsibilities, (groups, 5); see the record's words."""
    labels: Tensor
    """(n,)"""
    relabeled: dict[str, Tensor]
    """Positions whose predicted label changes with other bases, (n,) bool."""
    inputs: dict[str, Tensor]
    """What a class may be read from, (n, c) each."""


def look(
    model: Segmenter, sample: Sample, groups: Tensor, generator: torch.Generator
) -> Found:
    """Everything about one image."""
    image, mask = (t.as_subclass(Tensor) for t in (sample.image, sample.mask))
    inside = look_inside(model, image[None])
    x, (rebuilt, z, bases) = inside.x[0], (t[0] for t in inside.attended)
    error, best = error_up_to_scale(x, rebuilt), rank_errors(x)
    figures = {
        "perplexity": perplexity(z.mean(dim=0)).item(),
        "perplexity_of_groups": perplexity(merge(z, groups).mean(dim=0)).item(),
        "distinct_bases": int(distinct_bases(bases, THRESHOLD).max()) + 1,
        "error_up_to_scale": error.item(),
        "best_rank_64": best[min(len(bases), len(best) - 1)].item(),
        "rank_as_good": int((best > error).sum()),
        "effective_rank": effective_rank(rebuilt).item(),
    }
    labels = labels_at_positions(mask, inside.size)
    columns = {
        "labels": labels,
        "shifted": shift(labels, generator),
        "predictions": inside.logits[0].argmax(dim=0),
    }
    merged = merge(z, groups)
    assigned = merged.argmax(dim=1)
    away = outward(columns["predictions"] > 0).flatten(0, 1)
    length = away.norm(dim=1)
    directions = [torch.ones_like(length), length > 0, length, *away.T]
    outline = merged.T.double() @ torch.stack(directions, dim=1).double()
    count = int(groups.max()) + 1, model.config.num_classes
    tables = {
        name: contingency(assigned, values.flatten(), *count)
        for name, values in columns.items()
    }
    flat, predicted = labels.flatten(), columns["predictions"].flatten()
    tables["labels_of_bases"] = contingency(z.argmax(dim=1), flat, len(bases), count[1])
    tables["confusion"] = contingency(predicted, flat, count[1], count[1])
    inputs = {"responsibilities": z.log(), "reconstruction": rebuilt, "features": x}
    unit = model.context
    assert isinstance(unit, EMAU)
    stored, changed = unit.bases, {}
    one_of_each = torch.stack(
        [stored[groups == g].mean(dim=0) for g in groups.unique()]
    )
    others = {"exact copies": one_of_each[groups], "one of each": one_of_each}
    for name, substitute in others.items():
        unit.bases = substitute
        again = look_inside(model, image[None]).logits[0].argmax(dim=0)
        changed[name] = again.flatten() != predicted
    unit.bases = stored
    return Found(figures, tables, z.mean(dim=0), outline, flat, changed, inputs)


def readable(inputs: Tensor, labels: Tensor, fold: Tensor, classes: int) -> list[float]:
    """Nats that a linear readout knows about the class, and about foreground or background, of positions held out.

    Logistic regression on inputs (n, c), fitted to one half of the images and judged on the other, and the other way
    round: entropy less cross-entropy, a lower bound of the mutual information.
    """
    inputs = (inputs - inputs.mean(dim=0)) / (inputs.std(dim=0) + 1e-6)
    probabilities = torch.empty(len(inputs), classes)
    for held_out in (0, 1):
        fit, judge = fold != held_out, fold == held_out
        weight = torch.zeros(inputs.shape[1] + 1, classes, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight], max_iter=60, line_search_fn="strong_wolfe"
        )

        def loss(
            fit: Tensor = fit,
            weight: Tensor = weight,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> Tensor:
            optimizer.zero_grad()
            logits = inputs[fit] @ weight[1:] + weight[0]
            penalty = 5e-4 * weight[1:].square().sum()
            value = F.cross_entropy(logits, labels[fit]) + penalty
            value.backward()
            return value

        optimizer.step(loss)
        with torch.no_grad():
            probabilities[judge] = (inputs[judge] @ weight[1:] + weight[0]).softmax(1)
    of_class = probabilities.gather(1, labels[:, None])[:, 0]
    foreground = labels > 0
    of_side = torch.where(foreground, 1 - probabilities[:, 0], probabilities[:, 0])
    uncertainty = (entropy(t.bincount().double()) for t in (labels, foreground.long()))
    return [
        (before + after.log().mean()).item()
        for before, after in zip(uncertainty, (of_class, of_side), strict=True)
    ]


def sweep(images: list[Tensor], num_iters: int = 10) -> list[dict[str, float]]:
    """EM from so many random bases with each λ: means over the features (n, c) of several images."""
    torch.manual_seed(0)
    start = initial_bases(max(NUMBERS), images[0].shape[-1])
    rows = []
    for scale in SCALES:
        for number in NUMBERS:
            distinct, errors = [], []
            for x in images:
                output = em_attention(
                    x[None], start[:number], num_iters=num_iters, scale=scale
                )
                found = distinct_bases(output.bases[0], THRESHOLD)
                distinct.append(int(found.max()) + 1)
                errors.append(error_up_to_scale(x, output.reconstruction[0]).item())
            row = {"scale": scale, "bases": number, "images": len(images)}
            row["distinct_bases"] = sum(distinct) / len(images)
            row["error_up_to_scale"] = sum(errors) / len(images)
            rows.append(row)
    return rows


def main(arguments: Arguments) -> None:
    """Make the record."""
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            miniature.write_voc(Path(folder), train=1, val=6, more=0)
            measure(replace(arguments, data_root=Path(folder)))
    else:
        root = arguments.data_root or default_data_root()
        measure(replace(arguments, data_root=root))


def measure(arguments: Arguments) -> None:
    """Look at every image, and write the record."""
    model = Segmenter.from_pretrained()
    assert isinstance(model.context, EMAU)
    groups = distinct_bases(model.context.bases, THRESHOLD)
    data = load_dataset("voc-animals", "val", arguments.data_root)
    generator = torch.Generator().manual_seed(arguments.seed)
    found = [look(model, sample, groups, generator) for sample in tqdm(data)]
    labels = torch.cat([image.labels for image in found]).long()
    fold = torch.cat([torch.full((len(f.labels),), i % 2) for i, f in enumerate(found)])
    valid = labels != data.spec.ignore_index

    def table(name: str) -> list[list[int]]:
        tables = torch.stack([image.tables[name] for image in found])
        return tables.sum(dim=0).long().tolist()

    def nats(name: str) -> list[float]:
        inputs = torch.cat([image.inputs[name] for image in found])[valid]
        return readable(inputs, labels[valid], fold[valid], data.spec.num_classes)

    record: dict[str, Any] = {
        "what": "The bases of the shipped network over whole images: figures of each image, and how often each group "
        "of bases claims a position of each class. Readable: nats that a linear readout knows about the class, and "
        "about foreground or background; fitted to every other image, judged on the rest, and the other way round. Outline: of each group, "
        "the sum over positions of its responsibility, of that where the mask of the predicted foreground has a "
        "gradient, of responsibility times the gradient's length, and times its part to the right and down, outwards. "
        "Relabeled: share of positions whose predicted label changes if the stored bases of each group are replaced by "
        "copies of their mean, and if the mean alone is kept. Sweep: every tenth image, ten iterations of EM from "
        "random bases.",
        "checkpoint": DEFAULT_WEIGHTS,
        "data": f"{data.spec.name} val, {len(data)} images, each at its own size",
        "threshold": THRESHOLD,
        "seed": arguments.seed,
        "groups": groups.tolist(),
        "mean_responsibilities": torch.stack([f.share for f in found])
        .mean(dim=0)
        .tolist(),
        "figures": {
            name: [image.figures[name] for image in found] for name in found[0].figures
        },
        "tables": {name: table(name) for name in found[0].tables},
        "relabeled": {
            name: torch.cat([f.relabeled[name] for f in found]).double().mean().item()
            for name in found[0].relabeled
        },
        "sweep": sweep([image.inputs["features"] for image in found[::10]]),
        "outline": torch.stack([image.outline for image in found]).sum(dim=0).tolist(),
        "readable": {name: nats(name) for name in found[0].inputs},
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
