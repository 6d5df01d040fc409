"""The command line: ``emalab COMMAND``. It alone reads the environment, and turns errors into messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tyro.conf import Positional, arg

from emalab.checkpoints import export_segmenter, load_segmenter, read_recipe
from emalab.convert import load_official, official_recipe, read_official
from emalab.data import dataset_names, get_spec, load_dataset
from emalab.data.check import check_dataset
from emalab.data.prepare import prepare_dataset
from emalab.evaluation import evaluate
from emalab.metrics import SegmentationScores
from emalab.prediction import predict
from emalab.recipes import Recipe, get_recipe, recipe_names
from emalab.segmenter import DEFAULT_WEIGHTS
from emalab.trainer import RunOptions, TrainingDivergedError, train
from emalab.viz import overlay, save_labels, save_picture

__all__ = ["main"]

Device = Literal["auto", "cpu", "cuda", "mps"]


def _data_root() -> Path | None:
    value = os.environ.get("EMALAB_DATA")
    return Path(value) if value else None


def _train(arguments: Sequence[str]) -> None:
    """Train a recipe; every field of it is a flag. `emalab train RECIPE --help` shows its values."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: emalab train RECIPE [--FIELD VALUE ...]\n\n" + _recipe_table())
        raise SystemExit(0 if set(arguments) & {"-h", "--help"} else 2)
    recipe = get_recipe(arguments[0])
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # it says how many processes it started
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else 1
    nodes = int(os.environ["WORLD_SIZE"]) // local if torchrun else 1
    options = RunOptions(data_root=_data_root(), devices=local, num_nodes=nodes)

    @dataclass(frozen=True)
    class Arguments:
        recipe: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: recipe)
        run: Annotated[RunOptions, arg(name="")] = field(default_factory=lambda: options)
        out: Path | None = None
        """Folder for checkpoints, log and record; runs/RECIPE-seedN by default."""

    parsed = tyro.cli(Arguments, prog=f"emalab train {recipe.name}", description=recipe.summary, args=arguments[1:])
    out = parsed.out or Path("runs") / f"{recipe.name}-seed{parsed.recipe.seed}"
    result = train(parsed.recipe, out, parsed.run)
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK")):
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
    batch_size: int = 1,
    device: Device = "auto",
    out: Path | None = None,
) -> None:
    """Score a checkpoint on a split, class by class.

    Args:
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        data: data set; by default the one it was trained on.
        split: by default the evaluation split of its recipe.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default.
        scales: scales to average over.
        flip: average over mirror images too.
        batch_size: images of one size evaluated together.
        device: where to run.
        out: also write the scores to this JSON file.
    """
    model, recipe = load_segmenter(checkpoint), read_recipe(checkpoint)
    dataset = load_dataset(data or recipe.data.name, split or recipe.data.eval_split, data_root or _data_root())
    scores = evaluate(
        model.to(_device(device)),
        dataset,
        scales,
        flip,
        batch_size=batch_size,
        num_workers=min(os.cpu_count() or 1, 8),
        progress=True,
    )
    _print_scores(scores)
    if out:
        out.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")


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
    recipe = official_recipe(model, data)
    metadata = {"data": "converted from a checkpoint of the authors' code", "source": checkpoint.name}
    export_segmenter(model, out, recipe, metadata, torch.float32)
    config = model.config
    print(f"{out}: {config.backbone}, {config.num_classes} classes, {out.stat().st_size / 1e6:.1f} MB")


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
        data_root: where the data goes; $EMALAB_DATA by default.
        keep_archives: keep downloaded archives, in archives/ under the data root, once they are unpacked.
    """
    root = data_root or _data_root()
    if root is None:
        raise ValueError(f"where should {name} go? Set --data-root or EMALAB_DATA to a folder with room for it")
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
    recipes = [get_recipe(name) for name in recipe_names()]
    width = max(len(recipe.name) for recipe in recipes)
    return "\n".join(f"{recipe.name:<{width}}  {recipe.summary}" for recipe in recipes)


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
    "predict": (_parsed(_predict, "predict"), "label the pixels of photographs"),
    "export": (_parsed(_export, "export"), "release a finished run as one small file"),
    "convert official": (_parsed(_convert_official, "convert official"), "release a checkpoint of the authors' code"),
    "data prepare": (_parsed(_data_prepare, "data prepare"), "get a benchmark from its official release"),
    "data check": (_parsed(_data_check, "data check"), "find what is wrong with a data set on the disk"),
    "recipes": (_parsed(_recipes, "recipes"), "list the recipes"),
}


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    return (
        f"usage: emalab COMMAND ...\n\n{commands}\n\n`emalab COMMAND --help` explains each. "
        f"Data sets: {', '.join(dataset_names())}.\n$EMALAB_DATA names the folder with the unpacked releases."
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
