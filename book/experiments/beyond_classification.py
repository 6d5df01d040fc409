"""Classify whole images with EM attention: heads on frozen features, compared over seeds.

    python book/experiments/beyond_classification.py --data-root DATA

writes ``book/results/beyond-classification.json``, which the chapter "Beyond segmentation" reads. Twenty minutes on one
core; the features, which take a third of that, are kept in the system's temporary folder.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange, reduce
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from emalab import EMAU, em_attention
from emalab.backbones import LITE2, Backbone, build_backbone
from emalab.bases import initial_bases, make_maintenance
from emalab.commands.environment import default_data_root
from emalab.data import LabeledImages, get_spec, load_dataset
from emalab.data.sbd import convert_sbd
from emalab.em import m_step
from emalab.files import write_atomically
from emalab.modules import Normalize
from emalab.results import environment, git_commit, write_record
from lab import miniature
from lab.ranking import average_precision

SPEC = get_spec("voc-animals")
CLASSES = [name for name in SPEC.report_classes if name != "background"]
STRIDE, SIDE, CHANNELS = 32, 320, 128
POSITIONS = (SIDE // STRIDE) ** 2
BASES = 8
BASELINE = "average"  # pooling that all heads are compared with
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Arguments:
    """What to compare."""

    data_root: Path | None = None
    """Folder with VOCdevkit/VOC2012; $EMALAB_DATA by default, and data/ here without one."""
    out: Path = Path("book/results/beyond-classification.json")
    """The record."""
    cache: Path = Path(tempfile.gettempdir()) / "emalab-beyond"
    """Folder for the features of all images, 90 MB."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the heads' weights and of the order of the images."""
    epochs: int = 12
    """Of every run."""
    tiny: bool = False
    """A few made-up images, two rates, one seed and one epoch: tries the program, measures nothing."""


class Images(NamedTuple):
    """Images as their tokens, and which classes occur in them."""

    tokens: Tensor  # (images, n, c)
    labels: Tensor  # (images, classes), float, 0 or 1

    def take(self, index: Tensor) -> Images:
        """Some of the images."""
        return Images(self.tokens[index], self.labels[index])


class Average(nn.Module):
    """One token, the mean: (b, n, c) → (b, 1, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(x, "b n c -> b 1 c", "mean")


class Maximum(nn.Module):
    """One token, the largest value of each channel: (b, n, c) → (b, 1, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(x, "b n c -> b 1 c", "max")


class Queries(nn.Module):
    """Attention with k learned queries, softmax over the positions: (b, n, c) → (b, k, c)."""

    def __init__(self, channels: int, number: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(initial_bases(number, channels))

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ self.queries.T).softmax(dim=1)
        return rearrange(weights, "b n k -> b k n") @ x


class EMPool(nn.Module):
    """The means that EM ends with, before they are normalized: (b, n, c) → (b, k, c).

    Bases are kept as in `EMAU`: a moving average, with no gradient, or learned, with the gradient through EM.
    """

    bases: Tensor

    def __init__(self, channels: int, number: int, learned: bool) -> None:
        super().__init__()
        self.maintenance = make_maintenance("learned" if learned else "moving_average")
        bases = initial_bases(number, channels)
        if learned:
            self.bases = nn.Parameter(bases)
        else:
            self.register_buffer("bases", bases)

    def forward(self, x: Tensor) -> Tensor:
        grad: Literal["unroll", "stop"] = (
            "unroll" if self.maintenance.learnable else "stop"
        )
        _, responsibilities, bases = em_attention(x, self.bases, grad=grad)
        if self.training:
            updated = self.maintenance.update(self.bases, bases.detach())
            if updated is not None:
                self.bases.copy_(updated)
        return m_step(x, responsibilities)


class Mixer(nn.Module):
    """A map-to-map module between the tokens: (b, n, c) → (b, n, c), with n a square."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        mixed = self.module(rearrange(x, "b (h w) c -> b c h w", h=side))
        return rearrange(mixed, "b c h w -> b (h w) c")


class Unmixed(nn.Module):
    """`EMAU` with its convolutions and without its attention: each position for itself."""

    def __init__(self, channels: int, frozen: bool) -> None:
        super().__init__()
        unit = EMAU(channels, 1, grad="stop" if frozen else "unroll")
        self.conv_in, self.conv_out = unit.conv_in, unit.conv_out

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv_out(self.conv_in(x).relu()))


class Head(nn.Module):
    """Tokens (b, n, c) → logits (b, classes).

    The tokens pass through ``pool``, each of what is left through one linear classifier, and an image's logit is the
    log-mean-exp of its tokens' logits: a soft maximum, "some part of the image shows it". Of one token it is the logit.
    """

    def __init__(self, pool: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = pool
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(self.pool(x))
        return logits.logsumexp(dim=1) - math.log(logits.shape[1])


def heads(channels: int, number: int) -> dict[str, Callable[[], nn.Module]]:
    """How each head pools its tokens, by name; ``number`` is that of bases and queries."""

    def mixed(module: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(Mixer(module()), Average())

    return {
        BASELINE: Average,
        "maximum": Maximum,
        "one query": lambda: Queries(channels, 1),
        "queries": lambda: Queries(channels, number),
        "every position": nn.Identity,
        "EM, mean of bases": lambda: nn.Sequential(
            EMPool(channels, number, learned=False), Average()
        ),
        "EM": lambda: EMPool(channels, number, learned=False),
        "EM, 4 × bases": lambda: EMPool(channels, 4 * number, learned=False),
        "EM, learned": lambda: EMPool(channels, number, learned=True),
        "EMAU": mixed(lambda: EMAU(channels, number)),
        "EMAU, unroll": mixed(lambda: EMAU(channels, number, grad="unroll")),
        "convolutions, first frozen": mixed(lambda: Unmixed(channels, frozen=True)),
        "convolutions": mixed(lambda: Unmixed(channels, frozen=False)),
    }


@torch.inference_mode()
def extract(backbone: Backbone, data: LabeledImages, side: int) -> Images:
    """Features of every image, resized to a square, and the classes in its mask; half precision."""
    normalize, tokens, labels = Normalize(backbone.mean, backbone.std), [], []
    indices = torch.tensor([data.spec.classes.index(name) for name in CLASSES])
    for index in tqdm(range(len(data)), desc="features"):
        sample = data[index]
        image = F.interpolate(
            sample.image.as_subclass(Tensor)[None].float(),
            (side, side),
            mode="bilinear",
            antialias=True,
        )
        features = backbone(normalize(image.round().to(torch.uint8)))
        tokens.append(rearrange(features, "1 c h w -> (h w) c").half())
        present = sample.mask.as_subclass(Tensor).unique()
        labels.append(torch.isin(indices, present).float())
    return Images(torch.stack(tokens), torch.stack(labels))


def cached(file: Path, make: Callable[[], Images]) -> Images:
    """What ``make`` returns, from the file where there is one."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = make()._asdict()
        write_atomically(file, lambda partial: save_file(tensors, partial))
    return Images(**load_file(file))


def project(train: Images, others: Sequence[Images], channels: int) -> list[Images]:
    """All tokens in the principal directions of the training positions, scaled to variance 1 on average.

    First each channel is brought to mean 0 and variance 1 over the training positions.
    """
    flat = rearrange(train.tokens, "i n c -> (i n) c").float()
    mean, deviation = flat.mean(dim=0), flat.std(dim=0) + 1e-6
    flat = (flat - mean) / deviation
    variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
    directions = directions[:, -channels:] / variances[-channels:].mean().sqrt()
    return [
        images._replace(tokens=(images.tokens.float() - mean) / deviation @ directions)
        for images in (train, *others)
    ]


def train_head(
    pool: Callable[[], nn.Module],
    data: Images,
    rate: float,
    seed: int,
    epochs: int,
    batch: int = 64,
) -> Head:
    """AdamW with a cosine schedule on the mean binary cross-entropy of the classes."""
    torch.manual_seed(seed)
    head = Head(pool(), data.tokens.shape[-1], data.labels.shape[-1]).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
    batch = min(batch, len(data.tokens))
    steps = len(data.tokens) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        for index in torch.randperm(len(data.tokens))[: steps * batch].split(batch):
            logits = head(data.tokens[index])
            loss = F.binary_cross_entropy_with_logits(logits, data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.inference_mode()
def scores_of(head: Head, data: Images) -> NDArray[np.float64]:
    """Logits of all images, (images, classes)."""
    return (
        torch.cat([head(tokens) for tokens in data.tokens.split(64)]).double().numpy()
    )


def precisions(
    scores: NDArray[np.float64], labels: Tensor, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precision of each class: (samples, classes)."""
    return np.stack(
        [
            average_precision(of_class, truth, weights)
            for of_class, truth in zip(scores.T, labels.double().numpy().T, strict=True)
        ],
        axis=1,
    )


def cost(pool: Callable[[], nn.Module], channels: int) -> dict[str, int]:
    """Multiply-adds for an image, and numbers that training keeps (stored bases included)."""
    head = Head(pool(), channels, len(CLASSES)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        head(torch.zeros(1, POSITIONS, channels))
    kept: list[Tensor] = [p for p in head.parameters() if p.requires_grad]
    kept += [buffer for name, buffer in head.named_buffers() if "bases" in name]
    return {
        "multiply_adds": flops.get_total_flops() // 2,
        "parameters": sum(tensor.numel() for tensor in kept),
    }


def compare(
    train: Images,
    val: Images,
    pools: dict[str, Callable[[], nn.Module]],
    seeds: Sequence[int],
    epochs: int,
    rates: Sequence[float] = RATES,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Choose each head's learning rate on a tenth of the training images, train it from every seed, score it on val.

    Returns:
        By head: the grid, the rate chosen, average precisions by seed and class, and the interval of its lead over the
        baseline, the seeds' mean, when the validation images are drawn anew (bootstrap).
    """
    order = torch.randperm(
        len(train.tokens), generator=torch.Generator().manual_seed(0)
    )
    held_out, rest = (
        train.take(part)
        for part in (order[: len(order) // 10], order[len(order) // 10 :])
    )
    once = np.ones((1, len(held_out.tokens)))
    every = np.ones((1, len(val.tokens)))
    drawn = (
        np.random.default_rng(0)
        .multinomial(
            len(val.tokens), [1 / len(val.tokens)] * len(val.tokens), size=resamples
        )
        .astype(np.float64)
    )
    rows: dict[str, Any] = {}
    resampled: dict[str, NDArray[np.float64]] = {}
    for name, pool in pools.items():
        grid = {}
        for rate in rates:
            chosen = scores_of(train_head(pool, rest, rate, 0, epochs), held_out)
            grid[rate] = float(precisions(chosen, held_out.labels, once).mean())
        best = max(grid, key=lambda rate: grid[rate])
        of_seeds, of_classes = [], []
        for seed in seeds:
            scores = scores_of(train_head(pool, train, best, seed, epochs), val)
            of_classes.append(precisions(scores, val.labels, every)[0].tolist())
            of_seeds.append(np.nanmean(precisions(scores, val.labels, drawn), axis=1))
        resampled[name] = np.mean(of_seeds, axis=0)
        lead = resampled[name] - resampled[next(iter(pools))]
        rows[name] = {
            "rates": {str(rate): score for rate, score in grid.items()},
            "rate": best,
            "average_precision": of_classes,
            "over_images": np.quantile(lead, (0.025, 0.975)).tolist(),
            **cost(pool, train.tokens.shape[-1]),
        }
        print(f"{name}: rate {best:g}, mAP {np.mean(of_classes):.4f}", flush=True)
    return rows


def tiny(arguments: Arguments, folder: Path) -> Arguments:
    """The smallest run of everything, on a miniature of VOC in that folder."""
    miniature.write_voc(folder, train=8, val=8, more=8)
    convert_sbd(folder)
    return replace(
        arguments, data_root=folder, cache=folder / "features", seeds=(0,), epochs=1
    )


def main(arguments: Arguments) -> None:
    """Make the record."""
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            measure(tiny(arguments, Path(folder)), RATES[-2:])
    else:
        root = arguments.data_root or default_data_root()
        measure(replace(arguments, data_root=root), RATES)


def measure(arguments: Arguments, rates: Sequence[float]) -> None:
    """Extract the features, compare the heads, and write the record."""
    sets = []
    for split in ("trainaug", "val"):
        data = load_dataset(SPEC.name, split, arguments.data_root)
        file = (
            arguments.cache / f"{LITE2}-{STRIDE}-{SIDE}-{split}-{len(data)}.safetensors"
        )

        def make(data: LabeledImages = data) -> Images:
            backbone = build_backbone(LITE2, STRIDE, weights="imagenet").eval()
            return extract(backbone, data, SIDE)

        sets.append(cached(file, make))
    train, val = project(sets[0], sets[1:], CHANNELS)
    record = {
        "what": "Which classes occur in an image? Linear heads on frozen ImageNet features of EfficientNet-Lite2 that "
        "differ in how they pool the positions. Average precision of each class on val, in one row per seed. Rates: "
        "mean average precision on a held-out tenth of the training images, seed 0, for each learning rate. Over images: 95 % "
        "interval of the lead over the first head, mean of the seeds, from 2000 bootstrap draws of the val images.",
        "data": f"{SPEC.name} trainaug, {len(train.tokens)} images, and val, {len(val.tokens)}, resized to "
        f"{SIDE}×{SIDE}; {POSITIONS} positions with {CHANNELS} principal channels",
        "classes": CLASSES,
        "positives": val.labels.sum(dim=0).int().tolist(),
        "seeds": arguments.seeds,
        "epochs": arguments.epochs,
        "bases": BASES,
        "heads": compare(
            train,
            val,
            heads(CHANNELS, BASES),
            arguments.seeds,
            arguments.epochs,
            rates,
        ),
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
