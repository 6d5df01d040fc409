"""Miniature releases: made-up scenes in the folders, files and formats of the official releases.

Where a benchmark is not at hand, its chapters work on these, through the same converters, loaders and cells. A scene
is a sky, a ground and a few shapes, each in the color and the stripes of its class. It has nothing of what makes the
benchmarks hard: a score on it says that the pipeline works, and nothing else.
"""

import colorsys
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image
from scipy.io import savemat

from emalab.data.coco_stuff import IDS
from emalab.data.context import CATEGORIES
from emalab.data.voc import voc_palette
from emalab.recipes import Recipe

SIZE = (96, 128)  # height, width of every image, in pixels
_VOID = 255

# ---- Scenes ----


@dataclass(frozen=True)
class Vocabulary:
    """What scenes show, by the numbers that a release gives to classes; the first of each is the most frequent."""

    above: tuple[int, ...]
    """Fills the upper part."""
    below: tuple[int, ...]
    """Fills the lower part."""
    shapes: tuple[int, ...]
    """One to four of these lie in front."""


def draw_scene(vocabulary: Vocabulary, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random scene: image uint8 (h, w, 3), and the number of each pixel's class, int (h, w)."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    horizon = height * rng.uniform(0.35, 0.6) + rng.uniform(-0.1, 0.1) * (x - width / 2)
    image, labels = np.empty((*SIZE, 3)), np.empty(SIZE, np.int64)

    def fill(inside: np.ndarray, number: int) -> None:
        labels[inside] = number
        image[inside] = _look(number, y, x, rng)[inside]

    fill(y < horizon, _choose(vocabulary.above, rng))
    fill(y >= horizon, _choose(vocabulary.below, rng))
    for _ in range(rng.integers(1, 5)):
        radius = height * rng.uniform(0.12, 0.26)
        dy = np.abs(y - height * rng.uniform(0.35, 0.8))
        dx = np.abs(x - width * rng.uniform(0.1, 0.9)) * rng.uniform(0.6, 1.4)
        outlines = np.hypot(dx, dy), np.maximum(dx, dy), 0.7 * (dx + dy)
        fill(
            outlines[rng.integers(3)] < radius,
            _choose(vocabulary.shapes, rng),
        )
    image += rng.normal(0, 6, (*SIZE, 1))
    return image.round().clip(0, 255).astype(np.uint8), labels


def _choose(numbers: tuple[int, ...], rng: Generator) -> int:
    """One of the numbers, the r-th with a probability in proportion to 1/r."""
    weights = 1 / np.arange(1, len(numbers) + 1)
    return int(rng.choice(numbers, p=weights / weights.sum()))


def _look(number: int, y: np.ndarray, x: np.ndarray, rng: Generator) -> np.ndarray:
    """Colors (h, w, 3) of a class, a little lighter or darker in every instance."""
    fixed = default_rng(abs(number))  # the same in every scene
    color = colorsys.hsv_to_rgb(
        number * 0.618 % 1, fixed.uniform(0.4, 0.8), fixed.uniform(0.5, 0.85)
    )
    angle, period = fixed.uniform(0, np.pi), fixed.uniform(5, 10)
    across = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, period)
    stripes = 14 * np.sin(2 * np.pi * across / period) + rng.normal(0, 8)
    return 255 * np.array(color) + stripes[..., None]


# ---- Releases ----

# Numbers below 0 have a look and no label: what VOC calls background.
_VOC = Vocabulary(
    above=(-1, -2, -3),
    below=(-4, -5, -6),
    shapes=(15, 9, 8, 12, 7, 5, 3, 6, 13, 4, 20, 18),
)

_CAMVID = Vocabulary(above=(0, 5, 1), below=(3, 4), shapes=(8, 2, 9, 6, 10, 7))


def _context(*names: str) -> tuple[int, ...]:
    return tuple(CATEGORIES[name] for name in names)


_UNLISTED = (1, 3)  # two of the 400 categories that are not among the 59
_CONTEXT = Vocabulary(
    above=(
        *_context("sky", "wall"),
        *_UNLISTED[:1],
        *_context("building", "tree", "mountain"),
    ),
    below=_context("grass", "floor", "ground", "road", "water", "snow"),
    shapes=(
        *_context("person", "chair"),
        *_UNLISTED[1:],
        *_context("cat", "dog", "car", "table", "bird", "boat", "bottle", "cow", "bus"),
    ),
)


def _stuff(*names: str) -> tuple[int, ...]:
    return tuple(IDS[name] for name in names)


_UNLABELED = 0  # COCO-Stuff's number in the 10k release
_COCO_STUFF = Vocabulary(
    above=_stuff("sky-other", "tree", "wall-concrete", "clouds", "building-other"),
    below=_stuff("grass", "road", "sea", "floor-wood", "sand", "snow"),
    shapes=(
        *_stuff("person", "chair", "car", "dining table", "dog"),
        _UNLABELED,
        *_stuff("cat", "boat", "bus", "bird", "tv", "umbrella", "book", "bush"),
    ),
)


def write_voc(root: Path, train: int = 24, val: int = 16, more: int = 60) -> None:
    """`VOCtrainval_11-May-2012.tar` and SBD's `benchmark.tgz`, as they unpack under a data root.

    VOC labels its train and val images, with a void border around every object. SBD labels `more` images of its own,
    and again half of VOC's, val included, without borders.

    Args:
        root: the data root.
        train, val: images of VOC's two splits.
        more: images that SBD alone labels.
    """
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    names = [f"2012_{i:06}" for i in range(train + val + more)]
    of_train, of_val, of_sbd = (
        names[:train],
        names[train : train + val],
        names[train + val :],
    )
    for name, image, numbers in _scenes(names, _VOC, seed=2012):
        labels = numbers.clip(min=0).astype(np.uint8)
        _save_photo(voc / f"JPEGImages/{name}.jpg", image)
        if name not in of_sbd:
            path = voc / f"SegmentationClass/{name}.png"
            _save_labels(path, with_void_border(labels), palette=True)
        if name in of_sbd or int(name[-1]) % 2 == 0:
            struct = {
                "Segmentation": labels,
                "CategoriesPresent": np.unique(labels[labels > 0]),
            }
            _save_mat(sbd / f"cls/{name}.mat", GTcls=struct)
    lists = {"train": of_train, "val": of_val, "trainval": of_train + of_val}
    for split, listed in lists.items():
        _save_list(voc / f"ImageSets/Segmentation/{split}.txt", listed)
    twice = [name for name in of_train + of_val if int(name[-1]) % 2 == 0]
    _save_list(sbd / "train.txt", sorted(of_sbd[::2] + twice[::2]))
    _save_list(sbd / "val.txt", sorted(of_sbd[1::2] + twice[1::2]))


def write_camvid(root: Path, train: int = 4, frames: int = 20) -> None:
    """CamVid's 11 classes in `camvid/{images,labels,lists}`: training images, and a drive each for val and test.

    Args:
        root: the data root.
        train: training images.
        frames: of each drive, one a second, named by the camera's frame.
    """
    folder = root / "camvid"
    clips = {
        "train": ("0006R0", train),
        "val": ("0016E5", frames),
        "test": ("Seq05VD", frames),
    }
    for split, (drive, count) in clips.items():
        names = [f"{drive}_{30 * i:05}" for i in range(count)]
        _save_list(folder / f"lists/{split}.txt", names)
        for name, image, labels in _scenes(names, _CAMVID, seed=count):
            _save_photo(folder / f"images/{name}.jpg", image)
            _save_labels(folder / f"labels/{name}.png", labels.astype(np.uint8))


def write_context(
    root: Path, train: int = 72, val: int = 16, form: Literal["mat", "json"] = "mat"
) -> None:
    """VOC 2010's images with the labels of PASCAL Context, in either form that these are published in.

    Args:
        root: the data root.
        train, val: images of the two splits.
        form: `"mat"` for `trainval.tar.gz`, `"json"` for the detail API's `trainval_merged.json`.
    """
    voc = root / "VOCdevkit/VOC2010"
    names = [f"2008_{i:06}" for i in range(train + val)]
    splits = {"train": names[:train], "val": names[train:]}
    for split, listed in splits.items():
        _save_list(voc / f"ImageSets/Main/{split}.txt", listed)
    label_maps = {}
    for name, image, numbers in _scenes(names, _CONTEXT, seed=2010):
        _save_photo(voc / f"JPEGImages/{name}.jpg", image)
        label_maps[name] = numbers.astype(np.uint16)
    if form == "json":
        phases = {name: split for split, listed in splits.items() for name in listed}
        content = _detail_json(label_maps, phases)
        (voc / "trainval_merged.json").write_text(json.dumps(content), encoding="utf-8")
        return
    for name, numbers in label_maps.items():
        _save_mat(voc / f"trainval/{name}.mat", LabelMap=numbers)
    called = {number: name for name, number in CATEGORIES.items()}
    lines = (f"{i}: {called.get(i, f'category {i}')}" for i in range(1, 460))
    _save_list(voc / "labels.txt", lines)


def write_coco_stuff_10k(root: Path, train: int = 72, test: int = 16) -> None:
    """`cocostuff-10k-v1.1.zip` as it unpacks: `images/`, `annotations/*.mat` with COCO's ids, `imageLists/`.

    Args:
        root: the data root.
        train, test: images of the two splits.
    """
    release = root / "cocostuff-10k-v1.1"
    names = [f"COCO_train2014_{i:012}" for i in range(train + test)]
    for name, image, ids in _scenes(names, _COCO_STUFF, seed=10):
        _save_photo(release / f"images/{name}.jpg", image)
        _save_mat(release / f"annotations/{name}.mat", S=ids.astype(np.uint8))
    for split, listed in {"train": names[:train], "test": names[train:]}.items():
        _save_list(release / f"imageLists/{split}.txt", listed)


def write_coco_stuff_164k(root: Path, train: int = 72, val: int = 16) -> None:
    """COCO 2017 with `stuffthingmaps_trainval2017.zip`: PNG files that hold COCO's ids less one, 255 for unlabeled.

    The scenes are those of `write_coco_stuff_10k`.

    Args:
        root: the data root.
        train, val: images of the two splits.
    """
    names = [f"{i:012}" for i in range(train + val)]
    for i, (name, image, ids) in enumerate(_scenes(names, _COCO_STUFF, seed=10)):
        split = "train2017" if i < train else "val2017"
        _save_photo(root / f"coco/{split}/{name}.jpg", image)
        stored = np.where(ids == _UNLABELED, _VOID, ids - 1).astype(np.uint8)
        _save_labels(root / f"coco/stuffthingmaps/{split}/{name}.png", stored)


def with_void_border(labels: np.ndarray) -> np.ndarray:
    """Labels (h, w) with 255 on the two pixels on either side of every outline, as VOC's annotators left them."""
    border = np.zeros(labels.shape, bool)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return np.where(border, _VOID, labels).astype(np.uint8)


def _scenes(
    names: Iterable[str], vocabulary: Vocabulary, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for i, name in enumerate(names):
        yield name, *draw_scene(vocabulary, default_rng((seed, i)))


def _detail_json(
    label_maps: dict[str, np.ndarray], phases: dict[str, str]
) -> dict[str, object]:
    """The part of the detail API's file that segmentation needs: one run-length code for each category in an image."""
    from pycocotools.mask import encode

    images, segments = [], []
    for name, numbers in label_maps.items():
        image = {"image_id": int(name.replace("_", "")), "file_name": f"{name}.jpg"}
        height, width = numbers.shape
        images.append(image | {"phase": phases[name], "height": height, "width": width})
        for category in np.unique(numbers):
            code = encode(np.asfortranarray(numbers == category, np.uint8))
            mask = {"size": [height, width], "counts": code["counts"].decode()}
            segments.append(
                {
                    "image_id": image["image_id"],
                    "category_id": int(category),
                    "segmentation": mask,
                }
            )
    return {"images": images, "annos_segmentation": segments}


def _save_photo(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def _save_labels(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if palette:
        picture.putpalette(np.array(voc_palette(), np.uint8).tobytes())
    picture.save(path)


def _save_mat(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def _save_list(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---- Recipes ----


def miniature_recipe(recipe: Recipe, iterations: int = 150) -> Recipe:
    """The recipe for a miniature release and a CPU: a small network from random weights, small crops, a short run.

    What a reader may want to try on a laptop, the loss, the optimizer, the schedule and the evaluation, stays.
    """
    every = iterations // 3
    return replace(
        recipe,
        name=f"{recipe.name}-miniature",
        data=replace(recipe.data, crop_size=(65, 65)),
        model=replace(
            recipe.model,
            backbone="tiny",
            backbone_weights=None,
            output_stride=4,
            multi_grid=(),
            batch_norm_momentum=None,
            channels=64,
            head_channels=64,
            ema=replace(recipe.model.ema, num_bases=16),
        ),
        optim=replace(recipe.optim, lr=0.1, iterations=iterations, batch_size=8),
        evaluation=replace(recipe.evaluation, every=every, scales=(0.75, 1.0, 1.25)),
        published=(),
        notes="",
    )
