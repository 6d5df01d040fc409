"""Tiny data sets in the layouts of the official releases."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin
from pycocotools import mask as coco_mask
from scipy.io import savemat

from emalab.data.context import CATEGORIES
from emalab.data.voc import voc_palette

SIZE = (24, 32)  # height, width


def save_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_bands(path: Path, pixels: np.ndarray) -> Path:
    """An array (h, w, c) as .npy, as a TIFF of bands, or, of one or three channels, as a photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif pixels.shape[-1] in (1, 3):
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    elif path.suffix.lower() in (".tif", ".tiff"):
        photometric = "rgb" if pixels.shape[-1] == 4 else "minisblack"
        tifffile.imwrite(path, pixels, photometric=photometric, planarconfig="contig")
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


def save_mat(path: Path, **variables: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)
    return path


def make_sbd(root: Path) -> Path:
    """VOC's devkit, and SBD with one image of VOC's train, one of its val and two that VOC has no labels of."""
    voc = make_voc(root) / "VOCdevkit/VOC2012"
    for path in (voc / "SegmentationClassAug").iterdir():
        path.unlink()
    (voc / "ImageSets/Segmentation/trainaug.txt").unlink()
    save_image(voc / "JPEGImages/s1.jpg")
    release = root / "benchmark_RELEASE/dataset"
    lists = {"train": ["t0", "s0"], "val": ["v0", "s1"]}
    for split, names in lists.items():
        write_list(release / f"{split}.txt", names)
        for seed, name in enumerate(names):
            labels = random_labels([0, 8, 15], seed=seed).astype(np.uint8)
            present = np.ones((20, 1), np.uint8)
            struct = {"Segmentation": labels, "Boundaries": present, "CategoriesPresent": present}
            save_mat(release / f"cls/{name}.mat", GTcls=struct)
    return root


CONTEXT_LISTS = {"train": ["2008_000002", "2008_000007"], "val": ["2009_000001"]}


def context_label_map(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Ids of the 459 categories: all of the 59, and some of the others."""
    return random_labels([*CATEGORIES.values(), 1, 431, 459], size, seed=int(name[5:])).astype(np.uint16)


def make_context_mat(root: Path) -> Path:
    """VOC 2010 with the release of PASCAL Context unpacked into it: trainval/*.mat and labels.txt."""
    voc = _make_voc2010(root)
    for split, names in CONTEXT_LISTS.items():
        write_list(voc / f"ImageSets/Main/{split}.txt", names)
        for name in names:
            save_mat(voc / f"trainval/{name}.mat", LabelMap=context_label_map(name))
    names_by_id = {category: name for name, category in CATEGORIES.items()}
    lines = [f"{category}: {names_by_id.get(category, f'category {category}')}" for category in range(1, 460)]
    write_list(voc / "labels.txt", lines)
    return root


def make_context_json(root: Path) -> Path:
    """VOC 2010 with the json of the detail API, which holds the 59 categories as one run-length code each."""
    images: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    for split, names in CONTEXT_LISTS.items():
        for name in names:
            image_id, labels = int(name.replace("_", "")), context_label_map(name)
            size = {"height": labels.shape[0], "width": labels.shape[1]}
            images.append({"image_id": image_id, "file_name": f"{name}.jpg", "phase": split, **size})
            segments += [
                {"id": len(segments) + k, "image_id": image_id, "category_id": category, "iscrowd": 0, "parts": []}
                | {"segmentation": run_length(labels == category), "area": 1.0, "bbox": [0, 0, 1, 1]}
                for k, category in enumerate(CATEGORIES.values())
            ]
    occlusion = [{"image_id": 2008000002, "imsize": SIZE, "ne": 1, "edges": {"indices": [[1, 2]], "edgelabel": [1]}}]
    categories = [{"category_id": category, "name": name} for name, category in CATEGORIES.items()]
    content = {"info": {}, "images": images, "annos_segmentation": segments, "annos_occlusion": occlusion}
    content |= {"annos_boundary": [], "annos_joints": [], "parts": [], "categories": categories}
    (_make_voc2010(root) / "trainval_merged.json").write_text(json.dumps(content))
    return root


def run_length(mask: np.ndarray) -> dict[str, object]:
    """COCO's compressed run-length code, as it stands in a json file."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def _make_voc2010(root: Path) -> Path:
    voc = root / "VOCdevkit/VOC2010"
    for name in (name for names in CONTEXT_LISTS.values() for name in names):
        save_image(voc / f"JPEGImages/{name}.jpg")
    return voc


def coco_stuff_ids() -> list[int]:
    """The ids 1–182 less the eleven that were never labeled, as COCO-Stuff's README names them."""
    return [i for i in range(1, 183) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]


def make_coco_stuff_10k(root: Path) -> Path:
    """The archive cocostuff-10k-v1.1: .mat files of numbers that MATLAB made as doubles."""
    release = root / "cocostuff-10k-v1.1"
    names = [f"COCO_train2014_{i:012}" for i in (77, 110, 149)]
    lists = {"train": names[:2], "test": names[2:], "all": names}
    for split, listed in lists.items():
        write_list(release / f"imageLists/{split}.txt", listed)
    for seed, name in enumerate(names):
        save_image(release / f"images/{name}.jpg")
        labels = random_labels([0, *coco_stuff_ids()], seed=seed).astype(np.float64)
        class_names = np.array([f"class {i}" for i in range(182)], dtype=object)[:, None]
        save_mat(release / f"annotations/{name}.mat", S=labels, names=class_names, captions="a caption")
    return root


def make_coco_2017(root: Path) -> Path:
    """COCO 2017 with stuffthingmaps: all labels, only a person (id 1), and no class of VOC (grass, id 124)."""
    contents = {"train": ([*coco_stuff_ids(), 256], [1, 124], [124, 256]), "val": ([1, 256], [8, 124])}
    for split, images in contents.items():
        for i, ids in enumerate(images):
            save_image(root / f"coco/{split}2017/{i:012}.jpg")
            save_mask(root / f"coco/stuffthingmaps/{split}2017/{i:012}.png", random_labels(ids, seed=i) - 1)
    return root


def save_pages(path: Path, pages: Sequence[Image.Image], thumbnails: Sequence[Image.Image] = ()) -> Path:
    """A TIFF of several pages; thumbnails are marked as reduced copies."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as file:
        for index, page in enumerate([*pages, *thumbnails]):
            page.save(file, "TIFF", tiffinfo={254: int(index >= len(pages))})
            file.newFrame()
    return path
