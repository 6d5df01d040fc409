"""Score a network on photographs from packages, by a protocol that was fixed before a second network existed.

    python book/experiments/photographs.py --folder FOLDER --out book/results/photographs-lite2.json
    python book/experiments/photographs.py --folder FOLDER --checkpoint NEW.safetensors \\
        --against book/results/photographs-lite2.json --out book/results/photographs-NEW.json

``photographs.json``, beside this program, names the packages with their versions and every picture with its digest,
license and class; the pictures themselves are not in the repository, and nothing is downloaded. scikit-image is installed with
the book; for the others, on Debian 12:

    apt-get download tuxpaint-stamps-default scratch gcompris-qt-data plasma-workspace-data gnome-control-center-data \\
        lomiri-wallpapers-16.04
    for package in *.deb; do dpkg-deb -x "$package" FOLDER; done

Protocol. A *scene* is a photograph with an outline drawn by hand; it is reduced to a longer side of 480 pixels, as
`emalab predict` does. A *cut-out* is a photograph with an alpha channel, whose outline is exact; it is laid onto four
photographs without animals and people (480×360), at a size and a place that a seeded generator draws. Pixels within 3
of an outline do not count. Labels are those of `emalab predict`: the photograph and its mirror image, at stride 16.
Every photograph has the same weight, and the four pictures of a cut-out share one. The IoU of each of the seven classes
of VOC-animals-7, and their mean, follow from the pooled confusion matrix. A photograph is *named* rightly if its class
has more pixels than any other except background. Intervals are 95 % percentiles of 10 000 bootstrap samples of the photographs, drawn
within each class; two networks are compared on the same samples. On the backgrounds without cut-outs, all that is not
labeled background is wrong. One network is better than another here if the interval of the difference of the means excludes zero.

Pictures were assigned to classes by eye. Left out are drawings, pictures under 100 pixels, second poses of one person,
and animals that VOC does not label, or not consistently (donkeys, zebras, bison, yaks, goats, foxes, wild cats).
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from emalab import Segmenter, get_spec, predict
from emalab.results import environment, git_commit, read_record, write_record
from emalab.shipped import DEFAULT_WEIGHTS, find_checkpoint

MANIFEST = Path(__file__).with_suffix(".json")
SPEC = get_spec("voc-animals")
SIDE = 480  # pixels
BACKGROUNDS = 4
BORDER = 3  # pixels on either side of an outline that do not count
SAMPLES = 10_000

Picture = Mapping[str, Any]  # an entry of the manifest
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Arguments:
    """What to score."""

    folder: Path | None = None
    """Where the packages are unpacked, all into one folder."""
    checkpoint: str = DEFAULT_WEIGHTS
    """A .safetensors or .pt file, or the name of a shipped network."""
    against: Path | None = None
    """Record of another network, to be compared with."""
    out: Path = Path("book/results/photographs-lite2.json")
    """The record."""
    tiny: bool = False
    """The two scenes that scikit-image ships, and made cut-outs: tries the program, measures nothing."""


class Photograph(NamedTuple):
    """What a network gets, and what it should say."""

    image: Image.Image
    labels: NDArray[np.uint8]  # (h, w); 255 does not count


class Collection(NamedTuple):
    """The photographs of the comparison."""

    photographs: list[tuple[Picture, list[Photograph]]]
    backgrounds: list[Image.Image]


def read_picture(folder: Path | None, entry: Picture) -> Image.Image:
    """A picture of the manifest, checked against its digest.

    A Qt resource file (.rcc) stores pictures in WebP as they are: the one with the digest is found by its RIFF header.

    Raises:
        FileNotFoundError: its package is not unpacked in ``folder``.
        ValueError: it is another file than that of the manifest.
    """
    if entry["package"] == "scikit-image":
        folder = Path(skimage.__file__).parents[1]
    path = Path(folder or "") / entry["path"]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; unpack the package {entry['package']} into --folder (see --help)"
        )
    content = path.read_bytes()
    for candidate in _webp_pictures(content) if path.suffix == ".rcc" else [content]:
        if hashlib.sha256(candidate).hexdigest() == entry["sha256"]:
            return Image.open(io.BytesIO(candidate))
    raise ValueError(
        f"{path} is another file than that of {MANIFEST.name}; take the version of {entry['package']} named there"
    )


def _webp_pictures(content: bytes) -> Iterator[bytes]:
    start = content.find(b"RIFF")
    while start >= 0:
        length = 8 + int.from_bytes(content[start + 4 : start + 8], "little")
        yield content[start : start + length]
        start = content.find(b"RIFF", start + 4)


def without_border(labels: Image.Image) -> Image.Image:
    """Labels (mode L) with 255 where another label is at most `BORDER` pixels away, in rows, columns or diagonally."""
    size = 2 * BORDER + 1
    largest, smallest = (
        labels.filter(kind(size))
        for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    found = np.asarray(labels).copy()
    found[np.asarray(largest) != np.asarray(smallest)] = SPEC.ignore_index
    return Image.fromarray(found)


def scene(picture: Image.Image, entry: Picture) -> Photograph:
    """A photograph with an outline drawn by hand, reduced to `SIDE`."""
    image = picture.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    labels = Image.new("L", image.size)
    draw = ImageDraw.Draw(labels)
    for outline in entry["outlines"]:
        draw.polygon(outline, fill=SPEC.classes.index(entry["class"]))
    labels = without_border(labels)
    draw = ImageDraw.Draw(labels)
    for region in entry["ignored"]:
        draw.polygon(region, fill=SPEC.ignore_index)
    return Photograph(image, np.asarray(labels))


def composite(
    cutout: Image.Image, label: int, background: Image.Image, generator: random.Random
) -> Photograph:
    """A cut-out on a background: its longer side is 40 to 85 % of the background's shorter, its place is anywhere."""
    cutout = cutout.convert("RGBA")
    cutout = cutout.crop(cutout.getchannel("A").getbbox())
    image = background.convert("RGB")
    longer = (0.4 + 0.45 * generator.random()) * min(image.size)
    scale = longer / max(cutout.size)
    width, height = (max(1, round(scale * side)) for side in cutout.size)
    cutout = cutout.resize((width, height), Image.Resampling.LANCZOS)
    place = (
        int(generator.random() * (image.width - width + 1)),
        int(generator.random() * (image.height - height + 1)),
    )
    image.paste(cutout, place, cutout)
    labels = Image.new("L", image.size)
    labels.paste(
        label, place, cutout.getchannel("A").point(lambda alpha: 255 * (alpha >= 128))
    )
    return Photograph(image, np.asarray(without_border(labels)))


def collect(folder: Path | None) -> Collection:
    """All photographs of the manifest."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    backgrounds = [
        read_picture(folder, entry).convert("RGB") for entry in manifest["backgrounds"]
    ]
    photographs = [
        (entry, [scene(read_picture(folder, entry), entry)])
        for entry in manifest["scenes"]
    ]
    for entry in manifest["cutouts"]:
        photographs.append(
            (entry, _composites(read_picture(folder, entry), entry, backgrounds))
        )
    return Collection(photographs, backgrounds)


def _composites(
    cutout: Image.Image, entry: Picture, backgrounds: Sequence[Image.Image]
) -> list[Photograph]:
    """One for each of `BACKGROUNDS` backgrounds; all that is random follows from the picture's digest."""
    generator, label = (
        random.Random(entry["sha256"]),
        SPEC.classes.index(entry["class"]),
    )
    order = sorted(range(len(backgrounds)), key=lambda _: generator.random())
    return [
        composite(cutout, label, backgrounds[i], generator) for i in order[:BACKGROUNDS]
    ]


def made() -> Collection:
    """scikit-image's two scenes and two disks, for `Arguments.tiny`."""
    entries = json.loads(MANIFEST.read_text(encoding="utf-8"))["scenes"]
    entries = [entry for entry in entries if entry["package"] == "scikit-image"]
    photographs = [
        (entry, [scene(read_picture(None, entry), entry)]) for entry in entries
    ]
    disk = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(disk).ellipse((5, 5, 54, 54), fill=(230, 220, 200, 255))
    gray = Image.new("RGB", (120, 90), (90, 120, 80))
    for name in ("sheep", "horse"):
        entry = {"path": f"disk-{name}", "sha256": name, "class": name}
        photographs.append((entry, _composites(disk, entry, [gray])))
    return Collection(photographs, [gray])


def shares(model: Segmenter, photographs: Sequence[Photograph]) -> Shares:
    """Shares of the counted pixels, (classes, classes): rows are labels, columns predictions; they add up to 1."""
    classes = SPEC.num_classes
    counts = np.zeros((classes, classes))
    for image, labels in photographs:
        predicted = predict(model, image, max_side=SIDE)
        counted = labels != SPEC.ignore_index
        cells = classes * labels[counted].astype(int) + predicted[counted]
        table = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        counts += table / counted.sum() / len(photographs)
    return counts


def class_scores(tables: Shares) -> Shares:
    """IoU of the headline's classes and their mean, in percent: (..., classes, classes) -> (..., headline + 1).

    A class that no photograph shows and no pixel is given is left out of the mean.
    """
    hits = np.diagonal(tables, axis1=-2, axis2=-1)
    union = tables.sum(-1) + tables.sum(-2) - hits
    with np.errstate(invalid="ignore"):
        iou = 100 * (hits / union)[..., list(SPEC.report_indices)]
    return np.concatenate([iou, np.nanmean(iou, axis=-1, keepdims=True)], axis=-1)


def bootstrap(classes: Sequence[str], samples: int = SAMPLES) -> Shares:
    """How often each photograph is drawn, (samples, photographs), when those of each class are drawn with repetition."""
    generator = np.random.default_rng(0)
    weights = np.zeros((samples, len(classes)))
    for name in sorted(set(classes)):
        members = np.flatnonzero(np.array(classes) == name)
        even = np.full(len(members), 1 / len(members))
        weights[:, members] = generator.multinomial(len(members), even, samples)
    return weights


def summarize(values: Shares, sampled: Shares) -> dict[str, Any]:
    """Each score with its interval: values (scores,) and the same over samples (samples, scores); none without one."""
    names = [*(SPEC.classes[i] for i in SPEC.report_indices), "mean"]
    return {
        name: dict(
            zip(
                ("score", "low", "high"),
                [float(value), *np.nanpercentile(column, [2.5, 97.5]).tolist()],
                strict=True,
            )
        )
        for name, value, column in zip(names, values, sampled.T, strict=True)
        if not np.isnan(value)
    }


def named(row: Mapping[str, Any]) -> bool:
    """Whether the photograph's class has more pixels than any other except background."""
    predicted = table_of(row).sum(0)
    return SPEC.classes[1 + int(predicted[1:].argmax())] == row["class"]


def table_of(row: Mapping[str, Any]) -> Shares:
    """The shares that a row of the record holds, (classes, classes)."""
    table = np.zeros((SPEC.num_classes, SPEC.num_classes))
    for label, prediction, share in row["shares"]:
        table[label, prediction] = share
    return table


def score(rows: Sequence[Mapping[str, Any]]) -> tuple[Shares, Shares]:
    """Scores (scores,) and those of the bootstrap samples (samples, scores)."""
    tables = np.stack([table_of(row) for row in rows])
    weights = bootstrap([row["class"] for row in rows])
    pooled = (weights @ tables.reshape(len(rows), -1)).reshape(-1, *tables.shape[1:])
    return class_scores(tables.sum(0)), class_scores(pooled)


def compare(rows: Sequence[Mapping[str, Any]], other: Path) -> dict[str, Any]:
    """Our scores less those in the record ``other``, on the same samples of the same photographs.

    Raises:
        ValueError: the other record is of other photographs.
    """
    theirs = read_record(other)
    if [row["sha256"] for row in theirs["rows"]] != [row["sha256"] for row in rows]:
        raise ValueError(f"{other} is of other photographs; score its network again")
    (ours, sampled), (base, base_sampled) = score(rows), score(theirs["rows"])
    return {
        "record": other.name,
        "network": theirs["network"],
        "iou": summarize(ours - base, sampled - base_sampled),
    }


def _row(entry: Picture, table: Shares) -> dict[str, Any]:
    found = zip(*(axis.tolist() for axis in np.nonzero(table)), strict=True)
    return {
        "picture": entry.get("picture") or Path(entry["path"]).name,
        **{
            key: entry[key]
            for key in ("package", "license", "sha256", "class")
            if key in entry
        },
        "shares": [[i, j, round(float(table[i, j]), 6)] for i, j in found],
    }


def main(arguments: Arguments) -> None:
    """Make the record."""
    torch.set_num_threads(1)
    collection = made() if arguments.tiny else collect(arguments.folder)
    model = Segmenter.from_pretrained(arguments.checkpoint)
    rows = [
        _row(entry, shares(model, photographs))
        for entry, photographs in tqdm(collection.photographs)
    ]
    empty = [
        float((predict(model, image, max_side=SIDE) == 0).mean())
        for image in tqdm(collection.backgrounds)
    ]
    weights = find_checkpoint(arguments.checkpoint).read_bytes()
    values, sampled = score(rows)
    right = {
        name: [sum(map(named, group)), len(group)]
        for name in SPEC.report_classes[1:]
        if (group := [row for row in rows if row["class"] == name])
    }
    record = {
        "what": "A network on photographs that packages ship, on a CPU: IoU in percent of the classes of VOC-animals-7 "
        f"with 95 % intervals from {SAMPLES} bootstrap samples of {len(rows)} photographs; photographs of each class "
        "named rightly, of how many; share of background in photographs that show no class, mean and lowest. Rows "
        "hold, for each photograph, [label, prediction, share of its counted pixels].",
        "network": {
            "name": Path(arguments.checkpoint).name,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
        },
        "manifest": hashlib.sha256(MANIFEST.read_bytes()).hexdigest(),
        "iou": summarize(values, sampled),
        "named": right,
        "empty": {
            "photographs": len(empty),
            "mean": float(np.mean(empty)),
            "lowest": min(empty),
        },
        **(
            {"difference": compare(rows, arguments.against)}
            if arguments.against
            else {}
        ),
        "rows": rows,
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
