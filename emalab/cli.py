"""The command line: ``emalab COMMAND``. It alone reads the environment, and turns errors into messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import tyro
from tyro.conf import Positional, arg

from emalab.checkpoints import export_segmenter, load_segmenter, read_recipe
from emalab.convert import load_mmseg, load_official, mmseg_recipe, official_recipe, read_mmseg, read_official
from emalab.cost import network_cost
from emalab.data import dataset_names, get_spec, load_dataset, load_images
from emalab.data.check import check_dataset
from emalab.data.prepare import prepare_dataset
from emalab.evaluation import evaluate
from emalab.metrics import SegmentationScores
from emalab.prediction import predict
from emalab.recipes import Recipe, get_recipe, recipe_groups
from emalab.segmenter import DEFAULT_WEIGHTS, Segmenter
from emalab.submission import write_submission
from emalab.trainer import RunOptions, TrainingDivergedError, run_folder, train
from emalab.viz import overlay, save_labels, save_picture

__all__ = ["main"]

Device = Literal["auto", "cpu", "cuda", "mps"]


_DEFAULT_ROOT = Path("data")


def _data_root() -> Path | None:
    """$EMALAB_DATA, or else the folder data/ here, which `emalab data prepare` makes."""
    if value := os.environ.get("EMALAB_DATA"):
        return Path(value)
    return _DEFAULT_ROOT if _DEFAULT_ROOT.is_dir() else None


def _train(arguments: Sequence[str]) -> None:
    """Train a recipe; every field of it is a flag. `emalab train RECIPE --help` shows its values."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: emalab train RECIPE [--FIELD VALUE ...]\n\n" + _recipe_table())
        raise SystemExit(0 if set(arguments) & {"-h", "--help"} else 2)
    recipe = get_recipe(arguments[0])
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if _under_torchrun() else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if _under_torchrun() else 1
    options = RunOptions(data_root=_data_root(), devices=local, num_nodes=nodes)

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        run: Annotated[RunOptions, arg(name="")] = field(default_factory=lambda: options)
        out: Path | None = None
        """Folder for checkpoints, log and record; runs/RECIPE-seedN by default."""

    parsed = tyro.cli(Arguments, prog=f"emalab train {recipe.name}", description=_about(recipe), args=arguments[1:])
    out = parsed.out or Path("runs") / run_folder(recipe.name, parsed.recipe.seed)
    result = train(parsed.recipe, out, parsed.run)
    if not _is_first_process():
        return  # the other processes have the same to say
    for protocol, scores in result.scores.items():
        print(f"{protocol}: {scores}")
    print(f"checkpoints, log and record are in {out}")


def _evaluate(
    checkpoint: Positional[str],
    data: str | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    output_stride: int | None = None,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    batch_size: int = 1,
    device: Device = "auto",
    out: Path | None = None,
) -> None:
    """Score a checkpoint on a split, class by class. Under torchrun the processes share the images.

    Args:
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        data: data set; by default the one it was trained on.
        split: by default the evaluation split of its recipe.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default.
        scales: scales to average over.
        flip: average over mirror images too.
        output_stride: pixels per position of the feature map; by default as its recipe scores it.
        window: height and width of sliding windows for large images; by default as its recipe scores it.
        overlap: part of a window that the next one shares; by default as its recipe scores it.
        batch_size: images of one size evaluated together.
        device: where to run.
        out: also write the scores to this JSON file.
    """
    model, recipe = _load_to_score(checkpoint, output_stride)
    dataset = load_dataset(data or recipe.data.name, split or recipe.data.eval_split, data_root or _data_root())
    with _processes(device) as own_device:
        scores = evaluate(
            model.to(own_device),
            dataset,
            scales,
            flip,
            window=window or recipe.evaluation.window,
            overlap=recipe.evaluation.overlap if overlap is None else overlap,
            batch_size=batch_size,
            num_workers=min(os.cpu_count() or 1, 8),
            progress=sys.stderr.isatty(),
        )
    if _is_first_process():
        _print_scores(scores)
        if out:
            out.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")


def _submit(
    checkpoint: Positional[str],
    out: Path,
    data: str | None = None,
    split: str = "test",
    data_root: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    output_stride: int | None = None,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    device: Device = "auto",
) -> None:
    """Predict a split and write it as the benchmark's server or tools take it. Its labels need not be there.

    VOC: results.tgz for the evaluation server. COCO-Stuff: label maps, and a JSON file for its API. Others: label maps.
    Under torchrun the processes share the images.

    Args:
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        out: folder to write to.
        data: data set; by default the one it was trained on.
        split: such as test, val.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default.
        scales: scales to average over.
        flip: average over mirror images too.
        output_stride: pixels per position of the feature map; by default as its recipe scores it.
        window: height and width of sliding windows for large images; by default as its recipe scores it.
        overlap: part of a window that the next one shares; by default as its recipe scores it.
        device: where to run.
    """
    model, recipe = _load_to_score(checkpoint, output_stride)
    dataset = load_images(data or recipe.data.name, split, data_root or _data_root())
    with _processes(device) as own_device:
        handed_in = write_submission(
            model.to(own_device),
            dataset,
            split,
            out,
            scales,
            flip,
            window=window or recipe.evaluation.window,
            overlap=recipe.evaluation.overlap if overlap is None else overlap,
            num_workers=min(os.cpu_count() or 1, 8),
            progress=sys.stderr.isatty(),
        )
    if _is_first_process():
        print(f"{len(dataset)} images: {handed_in}")


def _predict(
    images: Positional[tuple[Path, ...]],
    checkpoint: str = DEFAULT_WEIGHTS,
    out: Path = Path(),
    max_side: int = 480,
    device: Device = "auto",
) -> None:
    """Label the pixels of photographs. Writes STEM.mask.png (palette PNG) and STEM.overlay.png (with a legend).

    Args:
        images: photographs, in any format that Pillow reads.
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        out: folder for the results.
        max_side: the network sees photographs with their longer side shrunk to this many pixels.
        device: where to run.
    """
    if not images:
        raise ValueError("emalab predict needs at least one photograph")
    stems = [path.stem for path in images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(f"several photographs are called {sorted(twice)[0]!r}; give them separate --out folders")
    model, spec = load_segmenter(checkpoint).to(_device(device)), get_spec(read_recipe(checkpoint).data.name)
    failed = 0
    for path in images:
        try:
            labels = predict(model, path, max_side=max_side)
            picture = overlay(path, labels, spec)
        except (OSError, ValueError) as error:
            failed += 1
            print(f"emalab: error: {error}", file=sys.stderr)
            continue
        save_labels(labels, spec, out / f"{path.stem}.mask.png")
        save_picture(picture, out / f"{path.stem}.overlay.png")
        print(f"{path} → {out / path.stem}.mask.png, {path.stem}.overlay.png")
    if failed:
        raise SystemExit(1)


def _export(run: Positional[Path], out: Positional[Path], data: str = "") -> None:
    """Release a finished run as one .safetensors file: half precision, with its recipe, scores and origin.

    Args:
        run: the folder of a finished run.
        out: the file to write, ending in .safetensors.
        data: what the network was trained on, and under which terms, for those who download it.
    """
    if not (run / "record.json").is_file():
        raise FileNotFoundError(f"{run} holds no finished run: record.json is missing; go on with it (--resume)")
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    told = ("scores", "seed", "commit", "device", "versions", "date", "seconds")
    metadata = {**{key: record[key] for key in told}, "data": data}
    export_segmenter(load_segmenter(run / "last.pt"), out, read_recipe(run / "last.pt"), metadata)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _convert_official(
    checkpoint: Positional[Path],
    out: Positional[Path],
    data: str = "voc",
    output_stride: int = 8,
    multi_grid: tuple[int, ...] = (1, 2, 4),
) -> None:
    """Turn a checkpoint of the authors' code into a .safetensors release, in single precision and with a recipe.

    Args:
        checkpoint: the .pth file.
        out: the file to write, ending in .safetensors.
        data: data set that the network tells the classes of.
        output_stride: pixels per position of the feature map that the network is to have.
        multi_grid: dilation factors of the last stage's blocks.
    """
    model = load_official(read_official(checkpoint), output_stride, multi_grid)
    _release(model, official_recipe(model, data), checkpoint, out, "the authors' code")


def _convert_mmseg(
    checkpoint: Positional[Path],
    out: Positional[Path],
    data: str = "cityscapes",
    output_stride: int = 8,
    align_corners: bool = False,
) -> None:
    """Turn an EMANet of mmsegmentation into a .safetensors release, in single precision and with a recipe.

    Args:
        checkpoint: the .pth file.
        out: the file to write, ending in .safetensors.
        data: data set that the network tells the classes of.
        output_stride: pixels per position of the feature map that the network is to have.
        align_corners: how the network enlarges logits; set it for those trained on crops of 769×769.
    """
    model = load_mmseg(read_mmseg(checkpoint), output_stride, align_corners)
    _release(model, mmseg_recipe(model, data), checkpoint, out, "mmsegmentation")


def _release(model: Segmenter, recipe: Recipe, checkpoint: Path, out: Path, source: str) -> None:
    metadata = {"data": f"converted from a checkpoint of {source}", "source": checkpoint.name}
    export_segmenter(model, out, recipe, metadata, torch.float32)
    config = model.config
    print(f"{out}: {config.backbone}, {config.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")


def _cost(recipe: Positional[str], size: tuple[int, int] | None = None) -> None:
    """Count what the network of a recipe costs for one image: multiply-adds, parameters and activations.

    Args:
        recipe: its name; `emalab recipes` lists all.
        size: height and width of the image; by default that of the recipe's crops.
    """
    chosen = get_recipe(recipe)
    height, width = size or chosen.data.crop_size
    total = network_cost(chosen.model, (height, width))
    print(f"{f'{height}×{width}':<12} multiply-adds  parameters  activations")
    for name, cost in {**total.parts, "total": total}.items():
        giga, mega, maps = cost.multiply_adds / 1e9, cost.parameters / 1e6, cost.activations / 1e6
        print(f"{name:<12} {giga:>11.3f} G {mega:>9.3f} M {maps:>10.2f} M")


def _data_prepare(
    name: Positional[str],
    source: Annotated[Path | None, arg(name="from")] = None,
    data_root: Path | None = None,
    keep_archives: bool = False,
) -> None:
    """Get a benchmark from its official release: download, verify, unpack and convert what is not there yet.

    A run that was stopped goes on where it was when it is started again. Without a network, download the archives
    elsewhere and name their folder with --from; the error for an empty folder lists their names and addresses.

    Args:
        name: camvid, voc (3.4 GB), context-59 or context-60 (1.3 GB together), coco-stuff-10k (2 GB), coco-stuff-164k
            or coco-voc (21 GB together).
        source: folder with the release's archives, which are kept; nothing is downloaded then.
        data_root: where the data goes; $EMALAB_DATA by default, and data/ here without one.
        keep_archives: keep downloaded archives, in archives/ under the data root, once they are unpacked.
    """
    root = data_root or _data_root() or _DEFAULT_ROOT
    prepare_dataset(name, root, source, keep_archives=keep_archives, progress=sys.stderr.isatty())


def _data_check(name: Positional[str], data_root: Path | None = None) -> None:
    """Decode every file of a data set; report what is missing, unreadable, mismatched in size or wrongly labeled.

    Args:
        name: data set.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default.
    """
    report = check_dataset(name, data_root or _data_root(), progress=sys.stderr.isatty())
    print(report)
    if not report.ok:
        raise SystemExit(1)


def _recipes() -> None:
    """List the recipes that `emalab train` knows."""
    print(_recipe_table())


def _recipe_table() -> str:
    """Names, what they are, and the published scores beside, in at most 100 columns."""
    lines = []
    for title, recipes in recipe_groups().items():
        lines.append(title)
        name_width = max(len(recipe.name) for recipe in recipes)
        summary_width = max(len(recipe.summary) for recipe in recipes)
        for recipe in recipes:
            first, *others = [f"{published.score} {published.protocol}" for published in recipe.published] or [""]
            lines.append(f"  {recipe.name:<{name_width}}  {recipe.summary:<{summary_width}}  {first}".rstrip())
            lines += [f"{'':<{name_width + summary_width + 6}}{other}" for other in others]
    scores = "Numbers are published mean IoU in percent; `emalab train RECIPE --help` says by whom."
    return "\n".join([*lines, "", scores])


def _about(recipe: Recipe) -> str:
    published = [
        f"Published: {published.score} mIoU, {published.protocol} ({published.source})."
        for published in recipe.published
    ]
    return "\n\n".join(text for text in (recipe.summary, " ".join(published), recipe.notes) if text)


def _load_to_score(checkpoint: str, output_stride: int | None) -> tuple[Segmenter, Recipe]:
    """The network at the stride that is asked for, or else at that with which its recipe scores."""
    model, recipe = load_segmenter(checkpoint), read_recipe(checkpoint)
    stride = output_stride or recipe.evaluation.output_stride or model.config.output_stride
    return model.with_output_stride(stride), recipe


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


@contextmanager
def _processes(name: Device) -> Iterator[torch.device]:
    """The device of this process; under torchrun each has its own, and a process group to share images with."""
    device = _device(name)
    if not _under_torchrun():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _device(name: Device) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, available in there.items() if available))
    if not there[name]:
        raise ValueError(f"there is no {name} device here; take --device cpu")
    return torch.device(name)


def _print_scores(scores: SegmentationScores) -> None:
    width = max(map(len, scores.iou))
    for name, iou in scores.iou.items():
        print(f"{name:<{width}}  {'absent' if iou != iou else f'{100 * iou:6.2f}'}")
    print(f"{scores}, over {scores.images} images")


def _parsed(function: Callable[..., None], command: str) -> Callable[[Sequence[str]], None]:
    def run(arguments: Sequence[str]) -> None:
        tyro.cli(function, prog=f"emalab {command}", args=arguments)

    return run


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "train": (_train, "train a recipe, on one device or under torchrun"),
    "evaluate": (_parsed(_evaluate, "evaluate"), "score a checkpoint, class by class"),
    "submit": (_parsed(_submit, "submit"), "write predictions as the benchmark's server takes them"),
    "predict": (_parsed(_predict, "predict"), "label the pixels of photographs"),
    "export": (_parsed(_export, "export"), "release a finished run as one small file"),
    "convert official": (_parsed(_convert_official, "convert official"), "release a checkpoint of the authors' code"),
    "convert mmseg": (_parsed(_convert_mmseg, "convert mmseg"), "release an EMANet of mmsegmentation"),
    "cost": (_parsed(_cost, "cost"), "count multiply-adds, parameters and activations of a recipe's network"),
    "data prepare": (_parsed(_data_prepare, "data prepare"), "get a benchmark from its official release"),
    "data check": (_parsed(_data_check, "data check"), "find what is wrong with a data set on the disk"),
    "recipes": (_parsed(_recipes, "recipes"), "list the recipes, with published scores"),
}


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    return (
        f"usage: emalab COMMAND ...\n\n{commands}\n\n`emalab COMMAND --help` explains each. "
        f"Data sets: {', '.join(dataset_names())}.\n"
        "$EMALAB_DATA names the folder with the unpacked releases; without it, it is data/ here."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits 0 when it did what was asked, 1 with a message when it could not, 2 for a wrong command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(version("emalab"))
        return
    name = next((name for name in _COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        print(f"emalab: error: no command {' '.join(words[:2])!r}\n\n{_usage()}", file=sys.stderr)
        raise SystemExit(2)
    try:
        _COMMANDS[name][0](words[len(name.split()) :])
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, KeyError, OSError, TrainingDivergedError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(f"emalab: error: {message}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
