"""What details of EMANet's implementations change: the computations and figures of the chapter on reproductions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from torch import Tensor, nn

from emalab import (
    EMAU,
    Segmenter,
    SegmenterConfig,
    em_attention,
    evaluate,
    get_recipe,
    load_mmseg,
    load_official,
)
from emalab.bases import MovingAverage, mean_over_images
from emalab.em import m_step
from emalab.inference import predict_labels
from emalab.metrics import scores_from_confusion
from emalab.optim import cross_entropy, parameter_groups, poly_lr
from emalab.recipes import DataConfig, EvalConfig, OptimConfig, recipe_groups
from emalab.results import load_records
from emalab.studies.statistics import Interval
from emalab.studies.summary import StudySummary
from lab.recordings import REFERENCE, image, label, state_dict
from lab.style import MUTED, SERIES
from lab.verdicts import findings, from_more_seeds

RESULTS = REFERENCE.parents[1] / "book" / "results"


def recording(name: str) -> dict[str, Tensor]:
    """Arrays of numbers in tests/reference, as tensors."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        kept = [key for key in arrays.files if arrays[key].dtype.kind in "fiu"]
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in kept}


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Length of the difference, relative to the second."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def percent(share: float) -> str:
    """As text; small changes are not called none."""
    if 0 < share < 5e-4:
        return "below 0.1 %"
    return f"{100 * share:.1f} %" if share else "0"


# Trained with, trained without


@cache
def studies() -> dict[str, dict[str, StudySummary]]:
    """Summaries of the studies of conventions and of batches, by axis and family."""
    axes = ("conventions", "batch")
    return {
        axis: {
            family: findings(f"{family}-{axis}") for family in ("voc-animals", "camvid")
        }
        for axis in axes
    }


@cache
def differences() -> dict[str, dict[str, Interval]]:
    """Differences from the base in mIoU points by data set and cell, with 95 % intervals.

    On CamVid they are from all runs of the base, on VOC animals pooled over all cells.
    """
    animals = {
        row.label: row.pooled
        for axis in studies().values()
        for row in axis["voc-animals"].rows
        if row.pooled.num_values
    }
    camvid = from_more_seeds("camvid-conventions") | from_more_seeds("camvid-batch")
    return {
        "VOC animals": animals,
        "CamVid": {name: camvid[name] for name in animals if name in camvid}
        | {name: found for name, found in camvid.items() if name not in animals},
    }


def told(found: Interval) -> str:
    return f"{found.mean:+.1f} ± {found.high - found.mean:.1f}".replace("-", "−")


def trained(name: str) -> str:
    """What the studies measured of a cell, as text."""
    animals, camvid = (found[name] for found in differences().values())
    return f"points, VOC animals: {told(animals)} · CamVid: {told(camvid)}"


def verdict() -> Markdown:
    """The chapter's result in a box."""
    animals, camvid = (found["aligned corners"] for found in differences().values())
    return Markdown(
        ":::{admonition} Verdict\n:class: important\n"
        f"One convention changes a score: aligned corners on crops of the wrong size, **{told(camvid)} points** of mIoU on "
        f"CamVid and {told(animals)} on VOC animals (95 % intervals; EfficientNet-Lite2, short training). Every other "
        "convention has an interval that contains zero on both data sets. The paper's scores have not been reproduced here.\n:::"
    )


def draw_trained() -> None:
    """Differences of all cells on both data sets."""
    names = list(
        dict.fromkeys(name for found in differences().values() for name in found)
    )
    _figure, panels = plt.subplots(
        1, 2, figsize=(8.4, 3.7), sharey=True, layout="constrained"
    )
    for axes, (data, found) in zip(panels, differences().items(), strict=True):
        for height, name in enumerate(names):
            if name not in found:
                continue
            interval = found[name]
            color = MUTED if interval.low < 0 < interval.high else SERIES[2]
            axes.plot(
                [interval.low, interval.high], [height] * 2, color=color, linewidth=2
            )
            axes.plot(interval.mean, height, "o", color=color, markersize=5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(
            title=data, xlabel="mIoU − base / points", ylim=(len(names) - 0.5, -0.5)
        )
        axes.grid(axis="x", alpha=0.25)
    panels[0].set_yticks(range(len(names)), names)
    plt.show()


# One step, one change


class Training(NamedTuple):
    """Three recorded steps of training: the path of all parameters, the logits afterwards, and the losses."""

    path: Tensor
    logits: Tensor
    losses: list[float]


OPTIM: OptimConfig = get_recipe("voc-r50").optim


@cache
def _begin() -> Segmenter:
    model = load_official(
        state_dict((1, 1, 1, 1)), output_stride=16, multi_grid=()
    ).float()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # it would be another one in every run
    return model


def three_steps(
    change: Callable[[Segmenter], None] | None = None,
    optim: OptimConfig = OPTIM,
    divisor: str = "all",
    decay: float | None = None,
) -> Training:
    """The first three recorded training steps of the authors' code, with at most one thing changed."""
    begin = _begin()
    model = copy.deepcopy(begin).train()
    if change is not None:
        change(model)
    groups = parameter_groups(model, optim)
    for group in groups:
        group["weight_decay"] = group["weight_decay"] if decay is None else decay
    optimizer, losses = torch.optim.SGD(groups, momentum=0.9), []
    images = [image(f"image/{i}", (2, 3, 65, 65)).float() for i in (1, 2, 3)]
    for iteration, batch in enumerate(images):
        masks = label(f"label/{iteration + 1}", (2, 65, 65))
        for group in optimizer.param_groups:
            group["lr"] = group["lr_factor"] * poly_lr(iteration, optim)
        total, labeled = cross_entropy(model(batch), masks)
        loss = total / (masks.numel() if divisor == "all" else labeled)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    pairs = zip(model.parameters(), begin.parameters(), strict=True)
    path = torch.cat([(after - before).detach().flatten() for after, before in pairs])
    with torch.inference_mode():
        return Training(path, model.eval()(images[0]), losses)


def of_unit(**settings: Any) -> Callable[[Segmenter], None]:
    """A change of attributes of the EMA unit."""

    def change(model: Segmenter) -> None:
        for name, value in settings.items():
            setattr(model.context, name, value)

    return change


def opened(model: Segmenter) -> None:
    unit = model.context
    assert isinstance(unit, EMAU)
    unit.grad = "last"
    unit.conv_in.requires_grad_(True)


def usual_momentum(model: Segmenter) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def with_relu(model: Segmenter) -> None:
    unit = model.context
    assert isinstance(unit, EMAU)
    unit.conv_out.append(nn.ReLU())


def unaligned(model: Segmenter) -> None:
    model.config = replace(model.config, align_corners=False)


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient": ("gradients through the last iteration", {"change": opened}),
    "relu": ("ReLU behind the unit's batch norm", {"change": with_relu}),
    "corners": ("corners not aligned", {"change": unaligned}),
    "renormalize": (
        "mean of the bases at length one",
        {"change": of_unit(maintenance=MovingAverage(0.9, "batch_mean"))},
    ),
    "clamp": ("divisors clamped", {"change": of_unit(eps=1e-12, clamp=True)}),
    "biases": (
        "biases at the common rate",
        {"optim": replace(OPTIM, bias_lr_factor=1.0)},
    ),
    "valid": ("loss over labeled pixels", {"divisor": "valid"}),
    "decay": ("decay of 5e-4 on everything", {"decay": 5e-4}),
    "statistics": ("batch norm's momentum 0.1", {"change": usual_momentum}),
    "hold": ("rate changed at every iteration", {"optim": replace(OPTIM, lr_hold=1)}),
}


def draw_steps(turned: Mapping[str, float], moved: Mapping[str, float]) -> None:
    """Bars: how far the path and the logits change with each detail."""
    order = sorted(turned, key=lambda key: turned[key] + moved[key])
    _figure, axes = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
    places = np.arange(len(order))
    for values, shift, name, shade in (
        (turned, 0.2, "path of the parameters", SERIES[0]),
        (moved, -0.2, "logits afterwards", SERIES[1]),
    ):
        shares = [max(100 * values[key], 1e-3) for key in order]
        axes.barh(places + shift, shares, height=0.38, color=shade, label=name)
    axes.set_yticks(places, [CHANGES[key][0] for key in order])
    axes.set(xscale="log", xlabel="change / % (at the left end: 0.001 or less)")
    axes.set_xlim(1e-3, 300)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="lower right")
    plt.show()


def schedules() -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Progress of the training, and three schedules, each divided by its peak."""
    progress = np.linspace(0, 1, 30_001)[:-1]
    steps = [poly_lr(int(i), OPTIM) / OPTIM.lr for i in progress * OPTIM.iterations]
    return progress, {
        "authors: every 10 iterations, to 0": np.array(steps),
        "PaddleSeg: at every iteration, to 0": (1 - progress) ** 0.9,
        "mmsegmentation: to 1 % of the peak": 0.99 * (1 - progress) ** 0.9 + 0.01,
    }


def draw_schedules() -> None:
    """The three schedules, whole and at their end."""
    progress, rows = schedules()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
    end = progress > 0.995
    for (name, values), marks, color in zip(
        rows.items(), ("-", "--", ":"), SERIES, strict=False
    ):
        left.plot(100 * progress[::50], values[::50], marks, color=color, label=name)
        right.plot(100 * progress[end], values[end], marks, color=color)
    left.set(xlabel="training / %", ylabel="rate / peak")
    right.set(xlabel="training / %, its end")
    figure.legend(loc="outside lower center", ncols=2)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    plt.show()


# Tables of the appendix


def _api(thing: Any) -> str:
    """A link to the reference of a class or function of the package."""
    return f"[`{thing.__name__}`]({thing.__module__}.{thing.__name__})"


def table_of_differences(effects: Mapping[str, str]) -> Markdown:
    """All known differences: who does what, how emalab has it, what it changes."""
    api, steps = _api, "`tests/package/test_parity.py`"
    unit = "[the EMA unit](ema_unit.ipynb)"
    gradients = "[where the gradients go](gradients.ipynb)"
    evaluation = "[evaluation protocols](evaluation.ipynb)"
    issue = "https://github.com/XiaLiPKU/EMANet/issues"
    unknown = "not measured here"
    rows: list[tuple[str, str, str, str]] = [
        # what, who does what, how emalab has it and who checks, effect
        ("**EM**", "", "", ""),
        (
            "gradient through EM",
            f"*paper* silent · *code*, *mmseg*, *PaddleSeg* none ([why]({issue}/14) is not known)",
            f'`grad="stop"` of {api(EMAU)}, or `"last"`, `"unroll"` · `tests/package/test_em.py`, `TestGradients`',
            f'with `"last"`: {effects["gradient"]} · on scenes: {gradients}',
        ),
        (
            "first convolution of the unit",
            "*code*, *PaddleSeg* get no gradient and leave it random · *mmseg* freezes it",
            'frozen with `grad="stop"` · `tests/package/test_modules.py`, `test_a_stopped_convolution_never_moves`',
            f"none among these; trained: {gradients}",
        ),
        (
            "responsibilities in $Z\\mu$",
            "*paper* leaves it open · *code*, *mmseg*, *PaddleSeg* of the E-step before the last M-step",
            f"the same, {api(em_attention)} · `tests/package/test_em.py`, `TestParity`",
            effects["responsibilities"],
        ),
        (
            "sum in the M-step",
            f"*paper* eq. 13 [lacks it]({issue}/31) · all programs sum",
            api(m_step),
            "a misprint",
        ),
        (
            "divisors",
            "*code* adds 10⁻⁶ · *mmseg*, *PaddleSeg* clamp at 10⁻¹²",
            f"`eps`, `clamp`; recipes add, {api(load_mmseg)} clamps · `tests/package/test_em.py`, `TestParity`",
            f"{effects['divisors']} · {effects['clamp']}",
        ),
        (
            "ReLU behind the unit's last batch norm",
            "*PaddleSeg* has one · *paper*, *code*, *mmseg* none",
            "no option",
            effects["relu"],
        ),
        ("**Stored bases**", "", "", ""),
        (
            "momentum",
            "*paper*, *code* 0.9, of the old · *mmseg*, *PaddleSeg* 0.1, of the new",
            f"`momentum=0.9` of {api(MovingAverage)}, of the old · `tests/package/test_bases.py`, `TestStrategies`",
            effects["momentum"],
        ),
        (
            "length of a batch's mean",
            "*paper* silent · *code* as it comes · *mmseg* at length one · *PaddleSeg* each process's at length one",
            '`renormalize="none"`, or `"batch_mean"`, `"after_mixing"` · `tests/package/test_bases.py`, `TestParity`',
            f"{effects['length']} · {effects['renormalize']}",
        ),
        (
            "several processes",
            "*code* gathers on one device · *mmseg* all-reduces · *PaddleSeg* too, "
            "since [copies had drifted apart](https://github.com/PaddlePaddle/PaddleSeg/pull/961)",
            f"{api(mean_over_images)} · `tests/package/test_bases.py`, `test_ranks_agree_and_equal_one_process`",
            f"none if right; copies that drift: {unit}",
        ),
        ("**Network**", "", "", ""),
        (
            "stem, multi-grid",
            "*code* stem of 64, 64, 128 channels, multi-grid 1, 2, 4 · *mmseg* 32, 32, 64, none · "
            "*PaddleSeg* ResNet-D, weights by distillation",
            "`backbone` `resnet101s`, `resnet101c`, `resnet101d`; `multi_grid` · `tests/package/test_backbones.py`",
            f"without multi-grid: {effects['multi_grid']}; weights {unknown}",
        ),
        (
            "backbone's features for the classifier",
            "*mmseg*, *PaddleSeg* concatenated · *paper*, *code* not",
            f"`concat_input` of {api(SegmenterConfig)} · {steps}, `TestMmsegmentation`",
            effects["concat"],
        ),
        (
            "auxiliary head",
            "*mmseg*, *PaddleSeg* with weight 0.4 · *paper*, *code* none",
            f"`auxiliary_channels`, `auxiliary_weight` · {steps}, `TestMmsegmentation`",
            effects["auxiliary"],
        ),
        (
            "aligned corners",
            "*code* yes · *mmseg* for crops of 769 only · *PaddleSeg* on VOC, not on Cityscapes",
            f"`align_corners`; recipes of the paper's rows yes · {steps}, `test_network`",
            f"{effects['corners']} · in crops that do not fit: "
            f"{effects['trained corners']} · {evaluation}",
        ),
        ("**Training**", "", "", ""),
        (
            "divisor of the loss",
            "*code*, *mmseg* all pixels · *PaddleSeg*, PyTorch labeled ones",
            f'`loss_average="all"` of {api(OptimConfig)} in recipes of the paper\'s rows, or `"valid"` · {steps}, `TestLoss`',
            effects["loss"],
        ),
        (
            "rate of biases",
            "*code* twice · *mmseg*, *PaddleSeg* as all",
            f"`bias_lr_factor` · {steps}, `test_parameter_groups`",
            effects["biases"],
        ),
        (
            "weight decay",
            "*code* 10⁻⁴, on weights of convolutions · *mmseg*, *PaddleSeg* 5·10⁻⁴, on all",
            "`weight_decay`, on weights of convolutions · `tests/package/test_optim.py`, `TestParameterGroups`",
            effects["decay"],
        ),
        (
            "momentum of batch norm",
            "*code* 3·10⁻⁴ · *mmseg*, *PaddleSeg* their framework's 0.1",
            f"`batch_norm_momentum` · {steps}, `test_four_training_steps`",
            effects["statistics"],
        ),
        (
            "schedule",
            "*code* in steps of 10, to 0 · *mmseg* smooth, to 10⁻⁴ · *PaddleSeg* smooth, to 0",
            f"`lr_hold` · {steps}, `test_learning_rate`",
            effects["schedule"],
        ),
        (
            "length and batch",
            "*code* 30 000 × 16 at 9·10⁻³ · *mmseg* 80 000 × 8 at 10⁻², Cityscapes · *PaddleSeg* 40 000 on VOC at 10⁻²",
            "`iterations`, `batch_size`, `lr` · `tests/package/test_recipes.py`, `test_the_authors_training_everywhere`",
            f"as many images in all, batch 8: {effects['batch 8']}; 32: {effects['batch 32']}"
            f" · the author [blames]({issue}/23) small batches for low scores",
        ),
        (
            "scales and colors of training images",
            "*code* scales in steps of 0.25 · *mmseg* any scale, colors distorted · *PaddleSeg* steps of 0.25, colors distorted",
            f"`scale_step`, `photometric` of {api(DataConfig)} · `tests/package/data/test_transforms.py`",
            f"steps: {effects['steps']} · colors left alone: {effects['colors']}",
        ),
        ("**Evaluation**", "", "", ""),
        (
            "classes that are not there",
            "*code*, *mmseg* absent left out, invented 0 · *PaddleSeg* absent 0",
            f"as the code, {api(scores_from_confusion)} · `tests/package/test_metrics.py`, `TestConventions`",
            effects["metric"],
        ),
        (
            "size of the image",
            "*code* padded to 8k + 1 · *mmseg* as it is, or windows of 769",
            f"{api(predict_labels)} pads, or takes a `window` · `tests/package/test_evaluation.py`, `tests/package/test_inference.py`",
            evaluation,
        ),
        (
            "scales and mirror images",
            f"*paper* reports them · *code* [lacks them]({issue}/44) · *mmseg*, *PaddleSeg* have them",
            f"`scales`, `flip` of {api(evaluate)} · `tests/package/test_evaluation.py`",
            f"{effects['scales']} · {evaluation}",
        ),
        (
            "stride",
            f"*paper* ablation: trained at 16, [scored at 8]({issue}/37) · others the same for both",
            f"`output_stride` of {api(EvalConfig)} · `tests/package/test_output_stride.py`",
            evaluation,
        ),
        (
            "the released network",
            f"*paper* 80.05 · the weights released with the *code* [80.5]({issue}/22): refined since",
            f"{api(load_official)}, `emalab convert official` · `tests/package/test_convert.py`",
            f"{unknown}: their data were not at hand",
        ),
    ]
    head = "| what | who does what | in emalab | effect |\n|:--|:--|:--|:--|\n"
    lines = [" | ".join(cell.replace(" · ", "<br>") for cell in row) for row in rows]
    return Markdown(head + "".join(f"| {line} |\n" for line in lines))


def reached() -> dict[tuple[str, str], list[float]]:
    """Scores on record in percent, by recipe and protocol."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in load_records(RESULTS, "*-seed*.json"):
        for protocol, score in record["scores"].items():
            found.setdefault((record["recipe"]["name"], protocol), []).append(
                100 * score["miou"]
            )
    return found


def table_of_published() -> Markdown:
    """Every published score that a recipe could reach, and what it has reached here."""
    lines = [
        "| recipe | what it trains | published | protocol | by | here |",
        "|:--|:--|--:|:--|:--|:--|",
    ]
    for recipe in (recipe for group in recipe_groups().values() for recipe in group):
        for place, row in enumerate(recipe.published):
            ours = reached().get((recipe.name, row.protocol))
            here = f"{np.mean(ours):.1f}, {len(ours)} seeds" if ours else "–"
            first = ("", "") if place else (f"`{recipe.name}`", recipe.summary)
            cells = (*first, row.score, row.protocol, row.source, here)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return Markdown("\n".join(lines))
