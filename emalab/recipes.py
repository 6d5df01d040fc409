"""Recipes: everything that decides a training run, as frozen values with names.

An experiment is a recipe, not a script. A recipe serializes to JSON and travels inside every checkpoint and every
result record.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from emalab.segmenter import ContextName, EMAConfig, SegmenterConfig

__all__ = [
    "DataConfig",
    "EvalConfig",
    "OptimConfig",
    "Recipe",
    "get_recipe",
    "recipe_from_dict",
    "recipe_names",
    "recipe_to_dict",
]

OptimizerName = Literal["sgd", "adamw"]
LossAverage = Literal["valid", "all"]
Execution = Literal["eager", "cuda_graph", "compile"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class DataConfig:
    """What the network sees."""

    name: str = "voc"
    """Dataset: voc, voc-animals, camvid, shapes-pooled or shapes-far."""
    train_split: str = "trainaug"
    """Split to learn from."""
    eval_split: str = "val"
    """Split to score during training and at its end."""
    crop_size: tuple[int, int] = (513, 513)
    """Height and width of training crops, in pixels."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random enlargement of a training image."""
    scale_step: float | None = None
    """Draw scales from this grid (the paper: 0.25) rather than continuously."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    photometric: float = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0 to 1."""


@dataclass(frozen=True)
class OptimConfig:
    """How the network learns."""

    optimizer: OptimizerName = "sgd"
    """SGD with momentum 0.9 and Nesterov off, or AdamW."""
    lr: float = 9e-3
    """Peak learning rate of the backbone."""
    head_lr_factor: float = 1.0
    """The head, which starts from random weights, learns at this multiple of lr."""
    bias_lr_factor: float = 1.0
    """Biases, those of batch norm included, learn at this multiple of the rate of their part; the authors' is 2."""
    weight_decay: float = 1e-4
    """On convolution weights only; never on biases and batch norm."""
    power: float = 0.9
    """Exponent of the poly schedule, lr · (1 − i/(I−1))^power for i = 0 … I−1; 0 at the last."""
    lr_hold: int = 1
    """Iterations between changes of the learning rate; the authors' is 10."""
    warmup: int = 0
    """Iterations W over which lr rises linearly, from lr/W."""
    iterations: int = 30_000
    """Optimizer steps in all."""
    batch_size: int = 16
    """Images per step, over all ranks together."""
    clip_norm: float | None = None
    """Largest L2 norm of the whole gradient; none for no clipping."""
    loss_average: LossAverage = "valid"
    """Divide the summed cross-entropy by labeled pixels ("valid") or, as in the authors' code, by all ("all")."""
    freeze_batch_norm: bool = False
    """Keep batch norm at its running statistics during training."""


@dataclass(frozen=True)
class EvalConfig:
    """How the network is scored."""

    every: int = 2_000
    """Iterations between evaluations; 0 evaluates at the end only."""
    batch_size: int = 8
    """Images of one size evaluated together."""
    scales: tuple[float, ...] = (1.0,)
    """Scales averaged at the end of training."""
    flip: bool = False
    """Also average over mirrored images at the end of training."""


@dataclass(frozen=True)
class Recipe:
    """One training run, but for where its files lie and which devices run it."""

    name: str = "custom"
    """How the recipe is called in checkpoints and records."""
    summary: str = ""
    """What it reproduces, in a line."""
    data: DataConfig = field(default_factory=DataConfig)
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    precision: Precision = "bf16-mixed"
    """Lightning Fabric's precision; autocast on top of float32 weights for the mixed ones."""
    execution: Execution = "eager"
    """How a step runs: "eager", "cuda_graph" (recorded in seconds, then replayed; one GPU, and eager on a CPU) or
    "compile" (torch.compile, a minute at the start)."""
    seed: int = 0
    """Decides initial weights, data order and augmentation."""

    def __post_init__(self) -> None:
        """Check what no single field can see."""
        data, optim, evaluation = self.data, self.optim, self.evaluation
        least_one = {
            "data.crop_size": min(data.crop_size),
            "optim.iterations": optim.iterations,
            "optim.lr_hold": optim.lr_hold,
            "evaluation.batch_size": evaluation.batch_size,
        }
        least_zero = {
            "optim.lr": optim.lr,
            "optim.weight_decay": optim.weight_decay,
            "optim.power": optim.power,
            "optim.warmup": optim.warmup,
            "optim.clip_norm": optim.clip_norm or 0,
            "evaluation.every": evaluation.every,
        }
        for least, values in ((1, least_one), (0, least_zero)):
            for name, value in values.items():
                if value < least:
                    raise ValueError(f"recipe {self.name}: {name} must be at least {least}, got {value}")
        if not evaluation.scales or min(evaluation.scales) <= 0:
            raise ValueError(f"recipe {self.name}: evaluation.scales must be positive, got {evaluation.scales}")
        if not 0 < self.data.scale_range[0] <= self.data.scale_range[1]:
            raise ValueError(
                f"recipe {self.name}: data.scale_range must rise from above 0, got {self.data.scale_range}"
            )
        if self.optim.batch_size < 2 and not self.optim.freeze_batch_norm:
            raise ValueError(
                f"recipe {self.name}: optim.batch_size {self.optim.batch_size} is too small for batch norm; "
                "take at least 2 or set optim.freeze_batch_norm"
            )


_SUFFIX: dict[ContextName, str] = {"none": "-fcn", "non_local": "-non-local", "ema": ""}


def _shapes(name: str, context: ContextName, summary: str) -> Recipe:
    return Recipe(
        name=name + _SUFFIX[context],
        summary=summary,
        data=DataConfig(
            name=name, train_split="train", eval_split="val", crop_size=(64, 64), scale_range=(1.0, 1.0), flip=0.5
        ),
        model=SegmenterConfig(
            num_classes=5,
            backbone="tiny",
            output_stride=4,
            context=context,
            channels=32,
            head_channels=32,
            head_kernel=1,
            dropout=0.0,
            ema=EMAConfig(num_bases=8),
        ),
        optim=OptimConfig(optimizer="adamw", lr=3e-3, weight_decay=1e-2, warmup=20, iterations=300, batch_size=16),
        evaluation=EvalConfig(every=0, batch_size=32),
        precision="32-true",
    )


def _lite2(dataset: Literal["camvid", "voc-animals"], context: ContextName, summary: str) -> Recipe:
    camvid = dataset == "camvid"
    return Recipe(
        name=f"{dataset}-lite2{_SUFFIX[context]}",
        summary=summary,
        data=DataConfig(
            name=dataset,
            train_split="trainval" if camvid else "trainaug",
            eval_split="test" if camvid else "val",
            crop_size=(352, 480) if camvid else (320, 320),
            scale_range=(0.5, 2.0),
            photometric=0.5,
        ),
        model=SegmenterConfig(
            num_classes=11 if camvid else 21,
            backbone="tf_efficientnet_lite2",
            backbone_weights="imagenet",
            output_stride=8 if camvid else 16,  # poles and signs are a few pixels wide
            context=context,
            channels=256,
            head_channels=128,
        ),
        optim=OptimConfig(
            optimizer="adamw",
            lr=1e-3,
            head_lr_factor=2.0,
            weight_decay=5e-2,
            warmup=100,
            iterations=1_300 if camvid else 1_200,
            batch_size=16,
            clip_norm=5.0,
        ),
        evaluation=EvalConfig(every=0, scales=(0.75, 1.0, 1.25, 1.5) if camvid else (1.0,), flip=camvid),
        execution="cuda_graph",
    )


def _lite2_cpu() -> Recipe:
    base = _lite2("voc-animals", "ema", "EMANet on the animals of PASCAL VOC without a GPU: an hour on one core")
    return replace(
        base,
        name="voc-animals-lite2-cpu",
        data=replace(base.data, crop_size=(256, 256), scale_range=(0.5, 1.5)),
        optim=replace(base.optim, lr=7e-4, iterations=1_400, batch_size=8),
        execution="eager",
    )


def _voc(depth: Literal[50, 101, 152], summary: str) -> Recipe:
    """The authors' training, each setting theirs."""
    return Recipe(
        name=f"voc-r{depth}",
        summary=summary,
        data=DataConfig(scale_step=0.25),
        model=SegmenterConfig(
            backbone=f"resnet{depth}s",
            backbone_weights="imagenet",
            output_stride=8,
            multi_grid=(1, 2, 4),
            batch_norm_momentum=3e-4,
            align_corners=True,
        ),
        optim=OptimConfig(bias_lr_factor=2.0, lr_hold=10, loss_average="all"),
        evaluation=EvalConfig(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
        precision="32-true",
    )


def _recipes() -> dict[str, Recipe]:
    heads: tuple[tuple[ContextName, str], ...] = (
        ("none", "plain FCN head"),
        ("non_local", "non-local head"),
        ("ema", "EMANet head"),
    )
    recipes = []
    for context, head in heads:
        recipes += [
            _shapes(
                "shapes-pooled", context, f"{head} where evidence must be pooled over look-alikes; seconds on a CPU"
            ),
            _shapes("shapes-far", context, f"{head} where the class hangs on a distant cue; seconds on a CPU"),
            _lite2("camvid", context, f"{head} on CamVid, 480×360, train+val → test"),
            _lite2("voc-animals", context, f"{head} on the animals of PASCAL VOC at 320 px, trainaug → val"),
        ]
    recipes.append(
        replace(_shapes("shapes-pooled", "ema", "the smallest run: EMANet on generated scenes"), name="shapes-tiny")
    )
    recipes.append(_lite2_cpu())
    recipes += [
        _voc(50, "ResNet-50 on PASCAL VOC; the paper's ablation, trained at stride 16 with batch 12, says 78.52 mIoU"),
        _voc(101, "the paper's EMANet (512) on PASCAL VOC, trainaug → val: 80.05 mIoU, 81.32 multi-scale + flip"),
        _voc(152, "ResNet-152 on PASCAL VOC; the paper says 88.2 on the test server, after COCO and trainval"),
    ]
    return {recipe.name: recipe for recipe in recipes}


def recipe_names() -> list[str]:
    """Names that `get_recipe` knows, sorted."""
    return sorted(_recipes())


def get_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        KeyError: no such recipe; the message suggests the nearest names.
    """
    recipes = _recipes()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise KeyError(f"no recipe {name!r}; {hint}`emalab recipes` lists all")
    return recipes[name]


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, ready for JSON; the inverse of `recipe_from_dict`."""
    return dataclasses.asdict(recipe)


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe that `recipe_to_dict` wrote, also after a trip through JSON.

    Raises:
        ValueError: a field that recipes do not have, or a value that its field does not allow.
    """
    return _from_dict(Recipe, values, "recipe")


def _from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object with the fields {', '.join(hints)}; got {values!r}")
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{where} has no field {unknown[0]!r}; fields are {', '.join(hints)}")
    arguments = {}
    for key, value in values.items():
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            value = _from_dict(hint, value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(value)
        elif get_origin(hint) is Literal and value not in (allowed := get_args(hint)):
            raise ValueError(f"{where}.{key} must be one of {', '.join(map(str, allowed))}; got {value!r}")
        arguments[key] = value
    return cls(**arguments)
