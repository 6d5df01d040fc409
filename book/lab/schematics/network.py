"""Schematics of networks: the EMA unit, and EMANet with its strides and channels."""

from lab.schematics.drawing import Drawing, Schematic

__all__ = ["ema_unit", "emanet"]


def ema_unit() -> Schematic:
    """The layer around EM attention, and what it remembers."""
    return Schematic("ema-unit", [_forward(), _memory()])


def _forward() -> Drawing:
    panel = Drawing(
        "What the unit computes",
        "Features F, b by c by h by w, pass a 1 × 1 convolution, which gives X, n by c. EM attention, from the stored "
        "bases μ⁽⁰⁾, k by c, gives X̃, n by c. ReLU, a 1 × 1 convolution and batch normalization give R. A residual "
        "connection adds F, and a ReLU gives Y, of the shape of F.",
        320,
        356,
    )
    left, width = 84, 132
    middle = left + width / 2
    panel.text((middle, 12), "F", kind="symbol")
    panel.text((middle + 12, 12), "b × c × h × w", kind="small", anchor="start")
    steps = (
        (46, 34, ("1 × 1 convolution",), ""),
        (120, 46, ("EM attention", "T iterations"), "result"),
        (206, 46, ("ReLU, 1 × 1 conv,", "batch norm"), ""),
    )
    for top, height, lines, role in steps:
        panel.box((left, top), (width, height), *lines, role=role, kind="small")
    panel.arrow((middle, 22), (middle, 45))
    panel.arrow((middle, 81), (middle, 119))
    panel.arrow((middle, 167), (middle, 205))
    panel.arrow((middle, 253), (middle, 281))
    panel.text((middle + 8, 100), "X: b × n × c", kind="small", anchor="start")
    panel.text((middle + 8, 186), "X̃: b × n × c", kind="small", anchor="start")
    panel.text((middle + 8, 265), "R", kind="small", anchor="start")
    panel.box((middle - 34, 282), (68, 26), "+, ReLU", kind="small", rounded=13)
    panel.arrow((middle, 309), (middle, 334))
    panel.text((middle, 346), "Y", kind="symbol")
    panel.text((middle + 12, 346), "b × c × h × w", kind="small", anchor="start")
    panel.line((middle, 34), (40, 34), (40, 295))
    panel.arrow((40, 295), (middle - 35, 295))
    panel.text((34, 165), "F", kind="symbol", anchor="end")
    panel.matrix((256, 128), (54, 30), "μ⁽⁰⁾", "k × c", role="bases")
    panel.arrow((255, 143), (left + width + 1, 143), role="bases")
    return panel


def _memory() -> Drawing:
    panel = Drawing(
        "What it remembers, in training",
        "EM takes the stored bases μ⁽⁰⁾, k by c, to bases μ⁽ᵀ⁾ of each image, b by k by c. Their mean over the images, "
        "k by c, is mixed with the stored bases, with weights 1 − α and α, and stored.",
        296,
        356,
    )
    middle = 166
    panel.matrix((middle - 46, 26), (92, 34), "μ⁽⁰⁾", role="bases")
    panel.arrow((middle, 61), (middle, 104), role="bases")
    for shift in (4, 8):  # the sheets behind, of which two edges show
        corner = (middle + 46 + shift, 118 - shift)
        panel.line(
            (middle - 46 + shift, 118 - shift),
            corner,
            (corner[0], 152 - shift),
            role="bases",
        )
    panel.matrix((middle - 46, 118), (92, 34), "μ⁽ᵀ⁾", role="bases")
    panel.arrow((middle, 153), (middle, 203), role="bases")
    panel.matrix((middle - 46, 204), (92, 34), "μ̄", role="bases")
    panel.arrow((middle, 239), (middle, 277), role="bases")
    panel.box(
        (middle - 66, 278), (132, 44), "moving average", "no gradient", kind="small"
    )
    for y, words in (
        (43, "k × c"),
        (135, "b × k × c"),
        (221, "k × c"),
    ):
        panel.text((middle + 62, y), words, kind="small", anchor="start")
    for y, words in (
        (82, "EM on each image"),
        (178, "mean over images"),
        (258, "1 − α = 0.1"),
    ):
        panel.text((middle + 10, y), words, kind="small", anchor="start")
    panel.line((middle - 47, 43), (76, 43), (76, 290), role="bases")
    panel.arrow((76, 290), (middle - 67, 290), role="bases")
    panel.text((71, 166), "α = 0.9", kind="small", anchor="end")
    panel.line(
        (middle - 67, 310), (12, 310), (12, 12), (middle, 12), role="bases", dashed=True
    )
    panel.arrow((middle, 12), (middle, 25), role="bases")
    panel.text((middle, 340), "stored for the next batch", kind="small")
    return panel


# Name, channels, positions a side of a 513 × 513 image, stride; tests/book/test_schematics.py reads them off the network.
BACKBONE = (
    ("image", 3, 513, 1),
    ("stem", 128, 257, 2),
    ("max pooling", 128, 129, 4),
    ("stage 1", 256, 129, 4),
    ("stage 2", 512, 65, 8),
    ("stage 3", 1024, 65, 8),
    ("stage 4", 2048, 65, 8),
)
HEAD = (
    ("reduction", 512, 65, 8),
    ("EMA unit", 512, 65, 8),
    ("classifier", 21, 65, 8),
    ("enlarge", 21, 513, 1),
)
NOTES = {
    "stem": "three 3 × 3 convolutions",
    "stage 3": "dilation 2, no stride",
    "stage 4": "dilations 2, 8, 16",
    "reduction": "3 × 3 convolution",
    "EMA unit": "64 bases, T = 3",
    "classifier": "3 × 3, dropout, 1 × 1",
    "enlarge": "bilinear",
}


def emanet() -> Schematic:
    """EMANet for a 513 × 513 image at output stride 8: channels, positions and stride of each part."""
    return Schematic(
        "emanet",
        [
            _column("Backbone: ResNet, output stride 8", BACKBONE),
            _column("Head, on stage 4", HEAD),
        ],
    )


def _column(title: str, parts: tuple[tuple[str, int, int, int], ...]) -> Drawing:
    words = "; ".join(
        f"{name}: {channels} channels at {side} × {side} positions, stride {stride}"
        for name, channels, side, stride in parts
    )
    row = 62
    panel = Drawing(title, f"From top to bottom, {words}.", 312, row * len(parts) - 14)
    for index, (name, channels, side, stride) in enumerate(parts):
        top, width = row * index + 2, 34 + 66 * side / 513
        role = {"EMA unit": "result"}.get(name, "features")
        panel.box(
            (51 - width / 2, top), (width, 34), f"{side}²", role=role, kind="small"
        )
        facts = f"{channels} channels, stride {stride}"
        note = NOTES.get(name)
        panel.text(
            (112, top + 17),
            f"{name}: {note}" if note else name,
            facts,
            kind="small",
            anchor="start",
        )
        if index + 1 < len(parts):
            panel.arrow((51, top + 35), (51, top + row - 1))
    return panel
