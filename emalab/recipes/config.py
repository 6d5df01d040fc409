"""What a recipe consists of, field by field, and its way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import tyro

from emalab.choices import SettingError
from emalab.data.names import SCENES
from emalab.data.scene_settings import SceneSettings
from emalab.segmenter_config import SegmenterConfig
from emalab.views import Views

__all__ = [
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "OptimConfig",
    "Published",
    "Recipe",
    "field_hint",
    "recipe_changes",
    "recipe_from_dict",
    "recipe_to_dict",
    "setting_names",
]

OptimizerName = Literal["sgd", "adamw"]
LossAverage = Literal["valid", "all"]
LovaszErrors = Literal["softmax", "hinge"]
Execution = Literal["eager", "cuda_graph", "compile"]
Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class DataConfig:
    """What the network sees."""

    name: str = "voc"
    """Data set, by the name that `emalab data prepare` and `emalab data check` know, or a folder of your own by its
    path, as in roofs/ or roofs/classes.yaml."""
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
    rotation: float = 0.0
    """Largest angle, in degrees, by which an image is rotated to either side."""
    augment: str | None = None
    """A function of your own as "module:function", applied to training crops after the other transforms:
    (image uint8 (c, h, w), labels (h, w), torch.Generator) → (image, labels), of the same sizes and types."""
    scenes: SceneSettings = field(default_factory=SceneSettings)
    """Settings of generated scenes."""

    def __post_init__(self) -> None:
        """Check the form of a name that may be imported."""
        if self.augment is not None and not re.fullmatch(r"[\w.]+:[\w.<>]+", self.augment):
            raise SettingError(f"data.augment must be a function of your own as module:function; got {self.augment!r}")


@dataclass(frozen=True)
class LossConfig:
    """What is minimized beside plain cross-entropy; `emalab.losses` has the formulas."""

    class_weights: tuple[float, ...] = ()
    """Weight of the pixels of each class; none for equal ones."""
    focal_gamma: float = 0.0
    """γ of the focal loss: pixels that are predicted with probability p weigh (1 − p)^γ; 0 or at least 1, usually 2."""
    hardest: float = 1.0
    """Part of an image's labeled pixels that count, those with the largest loss (online hard example mining)."""
    dice_weight: float = 0.0
    """Weight of the soft Dice loss, which is added."""
    lovasz_weight: float = 0.0
    """Weight of the Lovász loss, which is added."""
    lovasz: LovaszErrors = "softmax"
    """Pixel errors in the Lovász loss: 1 − probability ("softmax"), or max(0, 1 − margin of the logits) ("hinge")."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        weights = self.class_weights
        if not all(0 <= weight < math.inf for weight in weights) or (weights and not any(weights)):
            raise SettingError(f"optim.loss.class_weights must be at least 0, and not all 0; got {weights}")
        if self.focal_gamma != 0 and not 1 <= self.focal_gamma < math.inf:
            raise SettingError(f"optim.loss.focal_gamma must be 0, or 1 or more; got {self.focal_gamma}")
        if not 0 < self.hardest <= 1:
            raise SettingError(f"optim.loss.hardest must be above 0 and at most 1; got {self.hardest}")
        for name in ("dice_weight", "lovasz_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"optim.loss.{name} must be at least 0; got {getattr(self, name)}")


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
    """Images per step, over all ranks and micro-batches together."""
    accumulate_grad_batches: int = 1
    """Micro-batches into which each rank divides its images of a step, to save memory; their gradients are added up.
    Loss, bases and schedule are those of the whole step; batch norm normalizes each micro-batch separately."""
    clip_norm: float | None = None
    """Largest L2 norm of the whole gradient; none for no clipping."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Class weights, focal loss, hard pixels, Dice and Lovász; by default plain cross-entropy."""
    loss_average: LossAverage = "valid"
    """Divide the loss summed over pixels by labeled ones ("valid"; by the sum of their class weights where there are
    any) or, as in the authors' code, by all ("all")."""
    auxiliary_weight: float = 0.4
    """Weight of the loss of an auxiliary head, where the network has one (model.auxiliary_channels)."""
    freeze_batch_norm: bool = False
    """Keep batch norm at its running statistics during training."""
    average: float = 0.0
    """Decay of a running average of the weights, which is scored and saved in place of the last weights. It covers
    about 1/(1 − decay) steps. 0 for no average; usually 0.999."""


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
    output_stride: int | None = None
    """Pixels per position of the feature map when the network is scored, with the same weights; none for that of
    training."""
    window: tuple[int, int] | None = None
    """Height and width of sliding windows, for images too large to be seen at once; none for whole images."""
    overlap: float = 1 / 3
    """Part of a window that the next one shares."""

    @property
    def views(self) -> Views:
        """What is averaged at the end of training; during training it is ``views.single_scale()``."""
        return Views(self.scales, self.flip, self.window, self.overlap)


@dataclass(frozen=True)
class Published:
    """A score that somebody else reports for a recipe: what a run of it is to be compared with."""

    score: float
    """Mean IoU in percent, as printed."""
    protocol: str
    """How it was measured: "single scale" and "multi-scale + flip" are those of a record, on the recipe's own split."""
    source: str
    """Who says so, and where."""


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
    """How a step runs: "eager", "cuda_graph" (recorded in seconds, then replayed; eager on a CPU) or
    "compile" (torch.compile, and on a GPU CUDA graphs; one to four minutes at the start)."""
    seed: int = 0
    """Decides initial weights, data order and augmentation."""
    init_from: str | None = None
    """Weights to start from instead of the backbone's: a checkpoint, or the name of a recipe whose finished run lies
    beside this one with the same seed. The classifier starts anew where the number of classes differs."""
    notes: Annotated[str, tyro.conf.Suppress] = ""
    """What a reader of its scores must know: what could not be checked, or differs from what it reproduces."""
    published: Annotated[tuple[Published, ...], tyro.conf.Suppress] = ()
    """What others report for it."""

    def __post_init__(self) -> None:
        """Check what no single field can see."""
        data, optim, evaluation = self.data, self.optim, self.evaluation
        least_one = {
            "data.crop_size": min(data.crop_size),
            "optim.iterations": optim.iterations,
            "optim.lr_hold": optim.lr_hold,
            "optim.accumulate_grad_batches": optim.accumulate_grad_batches,
            "evaluation.batch_size": evaluation.batch_size,
            "evaluation.window": min(evaluation.window or (1, 1)),
        }
        least_zero = {
            "optim.lr": optim.lr,
            "optim.weight_decay": optim.weight_decay,
            "optim.power": optim.power,
            "optim.warmup": optim.warmup,
            "evaluation.overlap": evaluation.overlap,
            "optim.clip_norm": optim.clip_norm or 0,
            "optim.average": optim.average,
            "optim.auxiliary_weight": optim.auxiliary_weight,
            "data.flip": data.flip,
            "data.photometric": data.photometric,
            "data.rotation": data.rotation,
            "seed": self.seed,
            "evaluation.every": evaluation.every,
        }
        for least, values in ((1, least_one), (0, least_zero)):
            for name, value in values.items():
                if not least <= value < math.inf:
                    raise SettingError(f"recipe {self.name}: {name} must be at least {least}, got {value}")
        if not evaluation.scales or min(evaluation.scales) <= 0:
            raise SettingError(f"recipe {self.name}: evaluation.scales must be positive, got {evaluation.scales}")
        if len(evaluation.scales) > 64 or max(evaluation.scales) > 16:
            raise SettingError(
                f"recipe {self.name}: evaluation.scales must be at most 64 numbers up to 16, got "
                f"{len(evaluation.scales)} up to {max(evaluation.scales)}"
            )
        if evaluation.overlap >= 1:
            raise SettingError(f"recipe {self.name}: evaluation.overlap must be below 1, got {evaluation.overlap}")
        if evaluation.window and min(evaluation.window) * (1 - evaluation.overlap) < 8:
            raise SettingError(
                f"recipe {self.name}: windows of {evaluation.window} that share {evaluation.overlap:.2f} of their side "
                "move on by less than 8 pixels, and scoring would not end; enlarge evaluation.window"
            )
        for name, value in (("flip", data.flip), ("photometric", data.photometric)):
            if value > 1:
                raise SettingError(f"recipe {self.name}: data.{name} must be at most 1, got {value}")
        if optim.average >= 1:
            raise SettingError(f"recipe {self.name}: optim.average must be below 1, got {optim.average}")
        if data.rotation > 180:
            raise SettingError(f"recipe {self.name}: data.rotation must be at most 180 degrees, got {data.rotation}")
        if data.scale_step is not None and data.scale_step <= 0:
            raise SettingError(f"recipe {self.name}: data.scale_step must be above 0, got {data.scale_step}")
        if not 0 < self.data.scale_range[0] <= self.data.scale_range[1]:
            raise SettingError(
                f"recipe {self.name}: data.scale_range must rise from above 0, got {self.data.scale_range}"
            )
        weights, classes = optim.loss.class_weights, self.model.num_classes
        if weights and len(weights) != classes:
            raise SettingError(
                f"recipe {self.name}: optim.loss.class_weights has {len(weights)} numbers for {classes} classes; give "
                "one for each"
            )
        _check_batches(self.name, optim)


def _check_batches(name: str, optim: OptimConfig) -> None:
    """Refuse a batch that is too small for batch norm, or cannot be divided into equal micro-batches."""
    size, parts = optim.batch_size, optim.accumulate_grad_batches
    if size % parts:
        raise SettingError(
            f"recipe {name}: optim.batch_size {size} cannot be divided into {parts} micro-batches of equal size "
            "(optim.accumulate_grad_batches)"
        )
    if size // parts < 2 and not optim.freeze_batch_norm:
        smaller = f" in {parts} micro-batches" if parts > 1 else ""
        raise SettingError(
            f"recipe {name}: optim.batch_size {size}{smaller} is too small for batch norm; "
            f"take at least {2 * parts} or set optim.freeze_batch_norm"
        )
    loss = optim.loss
    if parts > 1 and loss.class_weights and loss.hardest < 1 and optim.loss_average == "valid":
        raise SettingError(
            f"recipe {name}: with optim.accumulate_grad_batches {parts}, optim.loss.class_weights and "
            "optim.loss.hardest cannot be combined: the weights of the hardest pixels are known only after "
            "the last micro-batch; set optim.loss_average to all, or leave one of them out"
        )


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, ready for JSON; the inverse of `recipe_from_dict`."""
    return dataclasses.asdict(recipe)


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The recipe that `recipe_to_dict` wrote, also after a trip through JSON.

    Recipes from before scenes had fields are read as well: ``"shapes-pooled:spread=40"`` as the name of their data.

    Raises:
        ValueError: a field that recipes do not have, or a value that its field does not allow.
    """
    return _from_dict(Recipe, _with_scenes(values), "recipe")


def _with_scenes(values: Any) -> Any:
    """``values`` with the fields of `SceneSettings` in place of settings in the name of the data."""
    data = values.get("data") if isinstance(values, dict) else None
    name = data.get("name") if isinstance(data, dict) else None
    kind, colon, settings = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (data and colon and kind in SCENES):
        return values
    scenes = {}
    for setting in settings.split(","):
        key, _, number = setting.partition("=")
        try:
            scenes[key] = json.loads(number)
        except ValueError:
            raise ValueError(f"recipe.data.name: {_shown(number)} is no number for {_shown(key)}") from None
    return {**values, "data": {**data, "name": kind, "scenes": scenes}}


_hints = cache(get_type_hints)  # slow, and a study makes hundreds of recipes


def recipe_changes(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields in which two recipes differ, by their dotted names, with both values."""
    one, other = _flat(recipe_to_dict(before)), _flat(recipe_to_dict(after))
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def setting_names() -> list[str]:
    """Every setting of a recipe by its dotted name, such as "optim.lr"."""
    return list(_flat(recipe_to_dict(Recipe())))


def field_hint(path: str) -> str:
    """A suggestion for an unknown field, such as "did you mean 'optim.lr'? "; empty if no name is similar."""
    fields = setting_names()
    known = dict.fromkeys([*fields, *(name.rpartition(".")[0] for name in fields)])
    leaves = {name.rpartition(".")[2] for name in known} - {""}
    nearest = get_close_matches(path.rpartition(".")[2], leaves, 1, 0.7)
    near = [name for name in known if name.rpartition(".")[2] in nearest]
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def _from_dict(cls: type, values: Any, where: str) -> Any:
    hints = _hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object with the fields {', '.join(hints)}; got {_shown(values)}")
    if unknown := sorted(map(str, values.keys() - hints.keys())):
        hint = field_hint(f"{where.partition('.')[2]}.{unknown[0]}".strip("."))
        raise ValueError(f"{where} has no field {_shown(unknown[0])}; {hint}fields are {', '.join(hints)}")
    arguments = {key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{where} is incomplete: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type that ``hint`` describes."""
    choices, origin = get_args(hint), get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _from_dict(cast(type, hint), value, where)
    if origin is Literal:
        if value not in choices or isinstance(value, bool):
            raise ValueError(f"{where} must be one of {', '.join(map(str, choices))}; got {_shown(value)}")
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in choices:
            return None
        others = [choice for choice in choices if choice is not NoneType]
        return _value(str if str in others else others[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list; got {_shown(value)}")
        if choices[-1] is not Ellipsis and len(value) != len(choices):
            raise ValueError(f"{where} must have {len(choices)} values; got {_shown(value)}")
        kinds = choices[:1] * len(value) if choices[-1] is Ellipsis else choices
        return tuple(
            _value(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))
        )
    return _plain(hint, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_KINDS.get(kind, kind)}; got {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite; got {value}")
    if isinstance(value, str) and (len(value) > _LONGEST or any(c != "\n" and not c.isprintable() for c in value)):
        raise ValueError(f"{where} must be printable text of at most {_LONGEST} characters; got {_shown(value)}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_LONGEST = 10_000


def _shown(value: Any) -> str:
    """A value from a file in an error message: short, and without control characters."""
    text = ascii(value) if isinstance(value, str | int | float | bool | NoneType) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
