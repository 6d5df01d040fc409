"""Do bases carried over from the last frame save iterations of EM? Measured on the clips of CamVid.

    python book/experiments/beyond_video.py --data-root DATA

writes ``book/results/beyond-video.json``, which the chapter "Beyond segmentation" reads. Twelve minutes on one core.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from emalab import EMAU, Segmenter, em_attention
from emalab.backbones import LITE2, build_backbone
from emalab.bases import MovingAverage, initial_bases
from emalab.commands.environment import default_data_root
from emalab.data import LabeledImages, load_dataset
from emalab.inspection import distinct_bases
from emalab.modules import Normalize
from emalab.results import environment, git_commit, write_record
from emalab.segmenter import DEFAULT_WEIGHTS
from lab import miniature
from lab.frames import LONG, carried, climb, objective

FRAMES_PER_SECOND = 30  # of the camera; numbers in CamVid's file names count its frames
BUDGETS = (1, 2, 3, 5, 10)
BLOCK = 10
STEPS_APART = {
    2: (1, 3, 15),
    30: (1, 10),
}  # by the camera's frames between two of a clip


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    data_root: Path | None = None
    """Folder with camvid/; $EMALAB_DATA by default, and data/ here without one."""
    out: Path = Path("book/results/beyond-video.json")
    """The record."""
    seed: int = 0
    """Of random bases and of the shuffled order."""
    tiny: bool = False
    """Two made-up drives of 20 small frames: tries the program, measures nothing."""


@dataclass(frozen=True)
class Clip:
    """Frames of one drive, at even distances."""

    name: str
    spacing: int
    """The camera's frames from one to the next."""
    indices: tuple[int, ...]
    """Places in the data set."""


def clips(names: Sequence[str]) -> list[Clip]:
    """The clips that file names like ``0016E5_07959`` and ``Seq05VD_f00030`` tell of, frames in order.

    Raises:
        ValueError: a name without a number, or frames of a drive that are not at even distances.
    """
    of_drive: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, name in enumerate(names):
        parts = re.fullmatch(r"(\w+?)_f?(\d+)", name)
        if not parts:
            raise ValueError(f"{name!r} names no frame; expected one like 0016E5_07959")
        of_drive[parts[1]].append((int(parts[2]), index))
    found = []
    for drive, frames in of_drive.items():
        numbers, indices = zip(*sorted(frames), strict=True)
        apart = {b - a for a, b in pairwise(numbers)}
        if len(apart) != 1:
            raise ValueError(f"frames of {drive} are {sorted(apart)} apart, not even")
        found.append(Clip(drive, apart.pop(), indices))
    return found


def blocks(values: Sequence[float]) -> list[float]:
    """Means over ten frames in a row; frames that do not fill a block are left out."""
    whole = torch.tensor(values[: len(values) // BLOCK * BLOCK], dtype=torch.float64)
    return [
        round(v, 6) for v in rearrange(whole, "(b t) -> b t", t=BLOCK).mean(1).tolist()
    ]


def measure(
    frames: Sequence[Tensor],
    stored: Tensor,
    steps_apart: Sequence[int],
    generator: torch.Generator,
) -> dict[str, dict[str, list[float]]]:
    """Every way to start on one clip: the objective after each budget, and what becomes of the bases after three.

    The first frames of the clip, to which bases cannot be carried over from far enough, do not count.

    Returns:
        By start: block means of the objective under the number of iterations, and, after three iterations, of
        ``distinct`` (how many bases differ) and ``settled`` (the share of positions whose strongest base is still the
        same after 50 iterations more).
    """
    order = torch.randperm(len(frames), generator=generator).tolist()
    counted = slice(max(steps_apart), None)

    def fresh() -> Tensor:
        random = torch.randn(stored.shape, generator=generator)
        return random / random.norm(dim=1, keepdim=True)

    at_random = [fresh() for _ in frames]

    def shuffled(budget: int) -> list[Tensor]:
        found = carried([frames[i] for i in order], stored, budget)
        return [found[order.index(i)] for i in range(len(frames))]

    starts: dict[str, Callable[[int], list[Tensor]]] = {
        "stored": lambda budget: [climb(x, stored, budget) for x in frames],
        "random": lambda budget: [
            climb(x, start, budget) for x, start in zip(frames, at_random, strict=True)
        ],
        "any other frame": shuffled,
    }
    for steps in steps_apart:
        starts[f"{steps} before"] = partial(carried, frames, stored, steps=steps)
    result: dict[str, dict[str, list[float]]] = {}
    for name, run in starts.items():
        rows: dict[str, list[float]] = {}
        for budget in BUDGETS:
            found = run(budget)
            pairs = list(zip(frames, found, strict=True))[counted]
            rows[str(budget)] = blocks([objective(x, bases) for x, bases in pairs])
            if budget == 3:
                rows["settled"] = blocks([settled(x, bases) for x, bases in pairs])
                rows["distinct"] = blocks(
                    [int(distinct_bases(b).max()) + 1 for _, b in pairs]
                )
        result[name] = rows
    limits = [objective(x, climb(x, stored, LONG)) for x in frames[counted]]
    result["stored"][str(LONG)] = blocks(limits)
    return result


def settled(x: Tensor, bases: Tensor) -> float:
    """Share of positions whose strongest base stays the same over many more iterations."""
    now, later = ((x @ b.T).argmax(dim=1) for b in (bases, climb(x, bases, LONG)))
    return (now == later).double().mean().item()


def shipped() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """What EM sees in the shipped network, image (3, h, w) → (n, c); and the bases that it has stored."""
    model = Segmenter.from_pretrained()
    unit = model.context
    assert isinstance(unit, EMAU)

    def features(image: Tensor) -> Tensor:
        return rearrange(
            unit.conv_in(model.features(image[None])), "1 c h w -> (h w) c"
        )

    return features, unit.bases


def imagenet(
    training: LabeledImages, num_bases: int = 64
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Features of ImageNet weights, each channel of mean 0 and variance 1 over frames for training, and bases for them.

    The bases are kept over these frames by the paper's moving average, which takes no labels: two passes, in batches of
    four frames, three iterations of EM each.
    """
    backbone = build_backbone(LITE2, 16, weights="imagenet").eval()
    normalize = Normalize(backbone.mean, backbone.std)

    def raw(image: Tensor) -> Tensor:
        return rearrange(backbone(normalize(image[None])), "1 c h w -> (h w) c")

    seen = torch.stack(
        [raw(training.image(i)[0].as_subclass(Tensor)) for i in range(len(training))]
    )
    deviation, mean = torch.std_mean(seen, dim=(0, 1))
    seen = (seen - mean) / deviation
    maintenance, bases = MovingAverage(), initial_bases(num_bases, seen.shape[-1])
    for _ in range(2):
        for batch in seen[torch.randperm(len(seen))].split(4):
            bases = maintenance.update(bases, em_attention(batch, bases).bases)
    return lambda image: (raw(image) - mean) / deviation, bases


def main(arguments: Arguments) -> None:
    """Make the record."""
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            miniature.write_camvid(Path(folder))
            measure_all(replace(arguments, data_root=Path(folder)))
    else:
        root = arguments.data_root or default_data_root()
        measure_all(replace(arguments, data_root=root))


@torch.inference_mode()
def measure_all(arguments: Arguments) -> None:
    """Measure both networks on the drives of val and test, and write the record."""
    torch.manual_seed(arguments.seed)
    splits = {
        split: load_dataset("camvid", split, arguments.data_root)
        for split in ("train", "val", "test")
    }
    networks = {
        "shipped network": shipped(),
        "ImageNet features": imagenet(splits["train"]),
    }
    found: dict[str, list[Mapping[str, object]]] = {name: [] for name in networks}
    for split in ("val", "test"):
        shown, names = zip(
            *map(splits[split].image, range(len(splits[split]))), strict=True
        )
        for clip in clips(names):
            for name, (features, stored) in networks.items():
                frames = [
                    features(shown[i].as_subclass(Tensor))
                    for i in tqdm(clip.indices, desc=clip.name)
                ]
                generator = torch.Generator().manual_seed(arguments.seed)
                apart = STEPS_APART[clip.spacing]
                row = {
                    "clip": clip.name,
                    "split": split,
                    "frames": len(frames),
                    "positions": len(frames[0]),
                    "seconds": clip.spacing / FRAMES_PER_SECOND,
                    "starts": measure(frames, stored, apart, generator),
                }
                found[name].append(row)
    record = {
        "what": "EM on the frames of CamVid's clips, from stored bases, random ones, those of the frame so many steps before, "
        "or those of any other frame (one random order). Numbers are means over blocks of ten frames in a row: the objective in "
        "nats per position after so many iterations per frame; after three, distinct: how many bases differ "
        "(cosine 0.95), and settled: share of positions whose strongest base is still the same after 50 iterations "
        "more. Seconds: between two frames of the clip.",
        "checkpoint": DEFAULT_WEIGHTS,
        "seed": arguments.seed,
        "budgets": BUDGETS,
        "clips": found,
        "bases": len(networks["shipped network"][1]),
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
