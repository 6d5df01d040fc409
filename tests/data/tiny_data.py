"""Tiny data sets in the layouts of the official releases."""

from pathlib import Path

import numpy as np
from PIL import Image

from emalab.data.voc import voc_palette

SIZE = (24, 32)  # height, width


def save_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_mask(path: Path, labels: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette(np.array(voc_palette(), np.uint8).tobytes())
    image.save(path)
    return path


def random_labels(values: list[int], size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Every one of `values` occurs."""
    labels = np.random.default_rng(seed).choice(values, size)
    labels.flat[: len(values)] = values
    return labels


def write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_camvid(root: Path, per_split: int = 3) -> Path:
    """The layout camvid/{images,labels,lists}."""
    for split in ("train", "val", "test"):
        names = [f"{split}_{i}" for i in range(per_split)]
        write_list(root / f"camvid/lists/{split}.txt", names)
        for i, name in enumerate(names):
            save_image(root / f"camvid/images/{name}.jpg", seed=i)
            save_mask(root / f"camvid/labels/{name}.png", random_labels(list(range(12)), seed=i))
    return root


def make_camvid_tutorial(root: Path, per_split: int = 3) -> Path:
    """The layout of the SegNet tutorial, whose lists hold paths of the authors' machine."""
    for split in ("train", "val", "test"):
        names = [f"{split}_{i}" for i in range(per_split)]
        paths = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names]
        write_list(root / f"CamVid/{split}.txt", paths)
        for i, name in enumerate(names):
            save_image(root / f"CamVid/{split}/{name}.png", seed=i)
            save_mask(root / f"CamVid/{split}annot/{name}.png", random_labels(list(range(12)), seed=i))
    return root


def make_voc(root: Path) -> Path:
    """The devkit with two train images and one of val, and SBD's labels beside it for one train and one new image."""
    voc = root / "VOCdevkit/VOC2012"
    lists = {"train": ["t0", "t1"], "val": ["v0"], "trainval": ["t0", "t1", "v0"], "trainaug": ["t0", "t1", "s0"]}
    for split, names in lists.items():
        write_list(voc / f"ImageSets/Segmentation/{split}.txt", names)
    for seed, name in enumerate(("t0", "t1", "v0", "s0")):
        save_image(voc / f"JPEGImages/{name}.jpg", seed=seed)
    for name in ("t0", "t1", "v0"):
        save_mask(voc / f"SegmentationClass/{name}.png", random_labels([*range(21), 255]), palette=True)
    for name in ("t0", "s0"):
        save_mask(voc / f"SegmentationClassAug/{name}.png", random_labels([0, 8, 15]), palette=True)
    return root
