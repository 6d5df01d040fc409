"""Schematics of what flows: gradients through EM, bytes through memory, sums between GPUs."""

from lab.schematics.drawing import Drawing, Schematic

__all__ = ["agreement", "gradient_paths", "memory_passes"]

_GRADIENT_TEXTS = {
    "stop": ("no gradient enters EM", "No gradient passes: X̃ counts as a constant."),
    "last": (
        "through the last iteration",
        "The gradient goes back from X̃ through iteration 3 to X, and stops at the bases that it starts from.",
    ),
    "unroll": (
        "through all iterations",
        "The gradient goes back from X̃ through iterations 3, 2 and 1, and from each of them to X.",
    ),
}


def gradient_paths() -> Schematic:
    """Where the gradient flows under grad="stop", "last" and "unroll", for three iterations."""
    return Schematic("gradient-paths", [_gradients(grad) for grad in _GRADIENT_TEXTS])


def _gradients(grad: str) -> Drawing:
    caption, words = _GRADIENT_TEXTS[grad]
    reached = {"stop": (), "last": (3,), "unroll": (1, 2, 3)}[grad]
    panel = Drawing(
        f'grad="{grad}"',
        f"Features X, n by c, enter iterations 1, 2 and 3, which hand on bases, k by c. {words}",
        192,
        318,
    )
    panel.matrix((2, 22), (40, 204), "X", "n × c", role="features")
    panel.text((112, 14), "μ⁽⁰⁾", kind="symbol")
    for t in (1, 2, 3):
        top = 48 + 66 * (t - 1)
        panel.box((86, top), (88, 36), f"iteration {t}", kind="small", role="bases")
        panel.arrow((43, top + 10), (85, top + 10))
        panel.arrow((112, top - 22 if t == 1 else top - 29), (112, top - 1))
        if t in reached:
            panel.arrow((85, top + 27), (43, top + 27), role="gradient", heavy=True)
        if t in reached and t > 1:
            if t - 1 in reached:
                panel.arrow(
                    (148, top - 1), (148, top - 29), role="gradient", heavy=True
                )
            else:
                panel.line(
                    (141, top - 15), (155, top - 15), role="gradient", heavy=True
                )
                panel.line((148, top - 1), (148, top - 13), role="gradient", heavy=True)
    panel.arrow((112, 217), (112, 245))
    panel.matrix((98, 246), (64, 26), "X̃", role="result")
    if reached:
        panel.arrow((148, 245), (148, 217), role="gradient", heavy=True)
    else:
        panel.line((148, 245), (148, 233), role="gradient", heavy=True)
        panel.line((141, 231), (155, 231), role="gradient", heavy=True)
    panel.text((96, 302), caption, kind="small")
    return panel


def memory_passes() -> Schematic:
    """What one iteration of the textbook loop moves, and one of the fused kernel."""
    return Schematic("memory-passes", [_textbook(), _fused()])


def _traffic(panel: Drawing, steps: tuple[tuple[str, str, str], ...]) -> None:
    """Rows of (step, what it reads, what it writes); sizes as wide as n × c and n × k are to each other."""
    panel.text((143, 12), "step", kind="small")
    panel.text((26, 12), "reads", kind="small")
    panel.text((250, 12), "writes", kind="small")
    for index, (name, reads, writes) in enumerate(steps):
        top = 28 + 48 * index
        panel.box((76, top), (134, 34), name, kind="small")
        left = 8.0
        for symbol in reads:
            width = 32 if symbol == "X" else 20
            role = {"X": "features", "Z": "responsibilities"}[symbol]
            panel.box(
                (left, top + 4),
                (width, 26),
                symbol,
                role=role,
                kind="symbol",
                rounded=0,
            )
            left += width + 2
        panel.arrow((left + 1, top + 17), (75, top + 17))
        if writes:
            panel.arrow((211, top + 17), (235, top + 17))
            role = {"Z": "responsibilities", "μ": "bases"}[writes]
            panel.box(
                (236, top + 4), (28, 26), writes, role=role, kind="symbol", rounded=0
            )


TEXTBOOK = (  # steps of an iteration, what each reads, what it writes
    ("product X μᵀ", "X", "Z"),
    ("softmax", "Z", "Z"),
    ("sum over n", "Z", ""),
    ("divide by the sum", "Z", "Z"),
    ("M-step", "XZ", "μ"),
)


def _textbook() -> Drawing:
    panel = Drawing(
        "Textbook loop: one iteration",
        "The product X μᵀ reads X and writes n by k products; the softmax reads and writes them; the sum over positions "
        "reads Z; the division reads and writes Z; the M-step reads Z and X and writes μ. X, n by c, is read twice, "
        "and something of the size of Z, n by k, is read or written seven times.",
        290,
        330,
    )
    _traffic(panel, TEXTBOOK)
    panel.text(
        (145, 296),
        "X (n × c) is read twice,",
        "Z (n × k) moves seven times",
        kind="small",
    )
    return panel


def _fused() -> Drawing:
    panel = Drawing(
        "Fused kernel: one iteration",
        "A tile of rows of X is read once. While it is on the chip, the E-step, and its share of the M-step's sums, are "
        "computed from it. Only partial sums of k by c are written; μ is finished from them. X, n by c, is read once.",
        290,
        330,
    )
    panel.text((24, 12), "reads", kind="small")
    panel.text((143, 12), "on the chip", kind="small")
    panel.text((259, 12), "writes", kind="small")
    panel.box((76, 28), (134, 146))
    panel.text((143, 46), "for each tile of X", kind="small")
    panel.box((88, 64), (110, 38), "E-step: Z", kind="small")
    panel.arrow((143, 103), (143, 121))
    panel.box((88, 122), (110, 38), "sums ZᵀX, Zᵀ1", kind="small")
    panel.box((8, 70), (32, 26), "X", role="features", kind="symbol", rounded=0)
    panel.arrow((41, 83), (87, 83))
    panel.arrow((199, 141), (235, 141))
    panel.box((236, 128), (46, 26), "sums", role="bases", kind="small", rounded=0)
    panel.line((259, 155), (259, 181), (24, 181), (24, 221))
    panel.arrow((24, 221), (75, 221))
    panel.box((76, 204), (134, 34), "M-step from sums", kind="small")
    panel.arrow((211, 221), (235, 221))
    panel.box((236, 208), (46, 26), "μ", role="bases", kind="symbol", rounded=0)
    panel.text(
        (145, 288),
        "X (n × c) is read once; Z leaves",
        "the chip in the last iteration only",
        kind="small",
    )
    return panel


def agreement() -> Schematic:
    """How GPUs arrive at the same bases: sums and counts are exchanged, then each mixes for itself."""
    return Schematic("agreement", [_exchange()])


def _exchange() -> Drawing:
    panel = Drawing(
        "One training step on two GPUs",
        "Each GPU has the same stored bases μ⁽⁰⁾, k by c, and its own images: five and three. Each computes bases of its "
        "images and their sum, k by c. An all-reduce adds the sums and the counts. Each GPU divides by eight, mixes "
        "with 0.9 and 0.1, and has the same new bases.",
        320,
        350,
    )
    for left, rank, images in ((6, 0, 5), (174, 1, 3)):
        middle = left + 70
        panel.text((middle, 10), f"GPU {rank}: {images} images", kind="small")
        panel.matrix((left + 35, 26), (70, 30), "μ⁽⁰⁾", role="bases")
        panel.arrow((middle, 57), (middle, 85), role="bases")
        panel.box(
            (left, 86),
            (140, 48),
            "EM on its images:",
            f"{images} × k × c",
            kind="small",
        )
        panel.arrow((middle, 135), (middle, 165), role="bases")
        panel.arrow((middle, 217), (middle, 247), role="bases")
        panel.box(
            (left, 248), (140, 44), "0.9 μ⁽⁰⁾ + 0.1 μ̄", kind="small", role="bases"
        )
        panel.arrow((middle, 293), (middle, 315), role="bases")
    panel.box(
        (6, 166),
        (308, 50),
        "all-reduce: sums (k × c) and counts",
        "μ̄ = sum of 8 bases / (5 + 3)",
        kind="small",
        role="result",
    )
    panel.text((160, 334), "the same μ⁽⁰⁾ on both, bit for bit", kind="small")
    return panel
