"""Look at the bases of the shipped network over the validation images of VOC animals, and keep what they do.

    python book/measure_bases.py --data-root DATA

writes ``book/results/voc-animals-bases.json``, which the chapter "What the bases see" reads. Half a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from emalab import Segmenter
from emalab.data import Sample, load_dataset
from emalab.inspection import (
    contingency,
    distinct_bases,
    effective_rank,
    error_up_to_scale,
    labels_at_positions,
    look_inside,
    merge,
    perplexity,
    rank_errors,
    shift,
)
from emalab.results import environment, git_commit, write_record
from emalab.segmenter import DEFAULT_WEIGHTS

THRESHOLD = 0.95


@dataclass(frozen=True)
class Arguments:
    """What to look at."""

    data_root: Path
    """Folder with VOCdevkit/VOC2012."""
    out: Path = Path("book/results/voc-animals-bases.json")
    """The record."""
    seed: int = 0
    """Of the shifts."""


def look(
    model: Segmenter, sample: Sample, groups: Tensor, generator: torch.Generator
) -> tuple[dict[str, float], dict[str, Tensor], Tensor]:
    """Figures, tables (groups, classes) and mean responsibilities (bases,) of one image."""
    image, mask = (t.as_subclass(Tensor) for t in (sample.image, sample.mask))
    inside = look_inside(model, image[None])
    x, (rebuilt, z, bases) = inside.x[0], (t[0] for t in inside.attended)
    error, best = error_up_to_scale(x, rebuilt), rank_errors(x)
    figures = {
        "perplexity": perplexity(z.mean(dim=0)).item(),
        "perplexity_of_groups": perplexity(merge(z, groups).mean(dim=0)).item(),
        "distinct_bases": int(distinct_bases(bases, THRESHOLD).max()) + 1,
        "error_up_to_scale": error.item(),
        "best_rank_64": best[len(bases)].item(),
        "rank_as_good": int((best > error).sum()),
        "effective_rank": effective_rank(rebuilt).item(),
    }
    labels = labels_at_positions(mask, inside.size)
    columns = {
        "labels": labels,
        "shifted": shift(labels, generator),
        "predictions": inside.logits[0].argmax(dim=0),
    }
    assigned = merge(z, groups).argmax(dim=1)
    count = int(groups.max()) + 1, model.config.num_classes
    tables = {
        name: contingency(assigned, values.flatten(), *count)
        for name, values in columns.items()
    }
    predicted = columns["predictions"].flatten()
    tables["confusion"] = contingency(predicted, labels.flatten(), count[1], count[1])
    return figures, tables, z.mean(dim=0)


def main(arguments: Arguments) -> None:
    """Make the record."""
    model = Segmenter.from_pretrained()
    groups = distinct_bases(model.context.bases, THRESHOLD)
    data = load_dataset("voc-animals", "val", arguments.data_root)
    generator = torch.Generator().manual_seed(arguments.seed)
    found = [look(model, sample, groups, generator) for sample in tqdm(data)]
    figures, tables, shares = zip(*found, strict=True)

    def table(name: str) -> list[list[int]]:
        return sum(of_image[name] for of_image in tables).long().tolist()

    record: dict[str, Any] = {
        "what": "The bases of the shipped network over whole images: figures of each image, and how often each group "
        "of bases claims a position of each class.",
        "checkpoint": DEFAULT_WEIGHTS,
        "data": f"{data.spec.name} val, {len(data)} images, each at its own size",
        "threshold": THRESHOLD,
        "seed": arguments.seed,
        "groups": groups.tolist(),
        "mean_responsibilities": torch.stack(shares).mean(dim=0).tolist(),
        "figures": {name: [f[name] for f in figures] for name in figures[0]},
        "tables": {name: table(name) for name in tables[0]},
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
