"""Draws the landing page's figure, book/site/images/landing.jpg, and writes the data of its live one, landing.json.

    python book/experiments/landing_figure.py

Everything in it comes from the shipped network and a photograph of scikit-image that may be redistributed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike
from PIL import Image
from skimage import data
from torch import Tensor

import emalab
from emalab.data import get_spec, open_image
from emalab.em import normalize_bases
from emalab.inspection import Inside, distinct_bases, look_inside, merge
from emalab.viz import overlay
from lab.interactive import pack, photograph
from lab.style import smallest_text

SHOWN = 4  # kinds of bases
DIRECTIONS = 24  # of the features, that the live figure computes with
KINDS = 12  # bases of the live figure, at most
GLOW = LinearSegmentedColormap.from_list(
    "glow", [(0.08, 0.09, 0.2, 0.85), (1, 0.75, 0.2, 0.15)]
)


@dataclass(frozen=True)
class Arguments:
    """What to draw."""

    out: Path = Path("book/site/images/landing.jpg")
    """The figure."""
    side: int = 480
    """Pixels of the photograph, as `emalab predict` sees it."""
    tiny: bool = False
    """A photograph of 96 pixels: tries the program."""


def show(axes: Axes, picture: ArrayLike | Image.Image, title: str) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def write_data(path: Path, inside: Inside, photo: Image.Image) -> None:
    """What the live figure starts from: features along the directions that vary most, and random bases."""
    x = inside.x[0]
    axes = torch.linalg.svd(x, full_matrices=False).Vh[:DIRECTIONS]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(KINDS, DIRECTIONS, generator=generator)
    content = {
        "size": list(inside.size),
        "photograph": photograph(photo.resize((360, 360))),
        "x": pack((x @ axes.T).numpy()),
        "bases": pack(normalize_bases(start).numpy()),
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def main(arguments: Arguments) -> None:
    """Draw the figure."""
    side = 96 if arguments.tiny else arguments.side
    photo = Image.fromarray(data.astronaut()).resize((side, side))
    model = emalab.Segmenter.from_pretrained()
    spec = get_spec("voc-animals")
    inside = look_inside(model, open_image(photo).as_subclass(Tensor)[None])
    height, width = inside.size

    x, rebuilt = inside.x[0], inside.attended.reconstruction[0]
    groups = distinct_bases(inside.attended.bases[0])
    shares = merge(inside.attended.responsibilities[0], groups)
    strongest = shares.amax(dim=0).topk(SHOWN).indices
    strongest = strongest[shares.mean(dim=0)[strongest].argsort(descending=True)]

    # One set of colors for both: the three directions along which the features vary most.
    mean = rebuilt.mean(dim=0)
    axes = torch.linalg.svd(rebuilt - mean, full_matrices=False)[2][:3].T
    limits = ((rebuilt - mean) @ axes).abs().amax(dim=0)

    def colored(features: Tensor, scale: float) -> Image.Image:
        rgb = (
            0.5 + 0.5 * (features - features.mean(0)) @ axes / (scale * limits)
        ).clamp(0, 1)
        picture = rearrange(255 * rgb, "(h w) c -> h w c", h=height).byte().numpy()
        return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)

    labels = emalab.predict(model, photo, max_side=side)
    tinted = np.asarray(overlay(photo, labels, spec))[:side]
    figure, panels = plt.subplots(2, 4, figsize=(10, 5.5), layout="constrained")
    ratio = float(x.norm(dim=1).mean() / rebuilt.norm(dim=1).mean())
    show(panels[0, 0], photo, "a photograph")
    show(
        panels[0, 1], colored(x, ratio), f"features $X$ at {height} × {width} positions"
    )
    show(
        panels[0, 2],
        colored(rebuilt, 1.0),
        r"rebuilt from the bases, $\tilde X = Z \mu$",
    )
    show(panels[0, 3], tinted, "labels")
    for panel, group in zip(panels[1], strongest.tolist(), strict=True):
        share = rearrange(shares[:, group], "(h w) -> h w", h=height).numpy()
        count = int((groups == group).sum())
        alike = f"{count} equal bases" if count > 1 else "a single base"
        show(panel, photo, f"positions like {alike}")
        large = Image.fromarray(share.astype(np.float32)).resize(
            (side, side), Image.Resampling.BILINEAR
        )
        panel.imshow(np.asarray(large) / share.max(), cmap=GLOW, vmin=0, vmax=1)
    write_data(arguments.out.with_suffix(".json"), inside, photo)
    out = arguments.out
    note = f"smallest text {smallest_text(figure):g} pt"  # for a phone, as lab.style notes it
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 86, "comment": note})
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
