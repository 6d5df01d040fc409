"""Schematics of attention: the EM loop, and the matrices that non-local and EM attention hold."""

from lab.schematics.drawing import Drawing, Schematic

__all__ = ["attention_sizes", "em_loop"]


def em_loop() -> Schematic:
    """Features to responsibilities to bases, T times, and the reconstruction."""
    return Schematic("em-loop", [_iterations(), _reconstruction()])


def _iterations() -> Drawing:
    panel = Drawing(
        "T iterations",
        "Features X, n by c, and bases μ, k by c, enter the E-step, which gives responsibilities Z, n by k. Z and X "
        "enter the M-step, which gives new bases μ, k by c. They go back to the E-step, T times.",
        320,
        240,
    )
    panel.matrix((4, 14), (56, 124), "X", "n × c", role="features")
    panel.box((102, 4), (116, 46), "E-step", "softmax(λ X μᵀ)", kind="small")
    panel.matrix((270, 14), (36, 124), "Z", "n × k", role="responsibilities")
    panel.box((102, 102), (116, 46), "M-step", "mean, length 1", kind="small")
    panel.matrix((129, 186), (62, 32), "μ", "k × c", role="bases")
    panel.arrow((61, 27), (101, 27), role="features")
    panel.arrow((219, 27), (269, 27), role="responsibilities")
    panel.arrow((269, 125), (219, 125), role="responsibilities")
    panel.arrow((61, 125), (101, 125), role="features")
    panel.arrow((160, 149), (160, 185), role="bases")
    panel.line((128, 202), (81, 202), (81, 76), (160, 76), role="bases")
    panel.arrow((160, 76), (160, 51), role="bases")
    panel.text((168, 77), "T times", kind="small", anchor="start")
    panel.text((200, 202), "starts as μ⁽⁰⁾", kind="small", anchor="start")
    return panel


def _reconstruction() -> Drawing:
    panel = Drawing(
        "Reconstruction",
        "Responsibilities Z, n by k, times bases μ, k by c, give rebuilt features X̃, n by c, whose rank is at most k.",
        250,
        240,
    )
    panel.matrix((10, 14), (36, 124), "Z", "n × k", role="responsibilities")
    panel.text((60, 76), "·")
    panel.matrix((74, 60), (62, 32), "μ", "k × c", role="bases")
    panel.text((154, 76), "=")
    panel.matrix((174, 14), (62, 124), "X̃", "n × c", role="result")
    panel.text(
        (125, 196),
        "Each position becomes a mix",
        "of k bases: rank(X̃) ≤ k",
        kind="small",
    )
    return panel


def attention_sizes() -> Schematic:
    """The N × N matrix beside N × K and K × N, drawn to one scale for 65² positions and 64 bases."""
    return Schematic("attention-sizes", [_full_matrix(), _factors()])


POSITIONS, NUM_BASES = 65**2, 64
SIDE = 176.0  # pixels for N


def _full_matrix() -> Drawing:
    panel = Drawing(
        "Non-local attention",
        f"A square matrix A of n by n weights: {POSITIONS} × {POSITIONS}, which is 17.9 million, multiplies the "
        "features, n by c.",
        300,
        256,
    )
    panel.matrix((20, 10), (SIDE, SIDE), "A", "n × n", role="rival")
    panel.text((212, 98), "·")
    panel.matrix((228, 10), (44, SIDE), "X", "n × c", role="features")
    panel.text(
        (150, 234), f"n = 65² = {POSITIONS:,}: 17.9 million weights", kind="small"
    )
    return panel


def _factors() -> Drawing:
    thin = SIDE * NUM_BASES / POSITIONS
    panel = Drawing(
        "EM attention",
        f"A column of n by k responsibilities and a row of k by n normalized responsibilities, k = {NUM_BASES}: two strips, "
        "0.54 million numbers together, to the same scale. They multiply the features, n by c.",
        312,
        256,
    )
    panel.matrix((14, 10), (thin, SIDE), "", "n × k", role="responsibilities solid")
    panel.text((29, 98), "Z", kind="symbol")
    panel.text((43, 98), "·")
    panel.matrix((54, 97), (SIDE, thin), "", "k × n", role="responsibilities solid")
    panel.text((142, 80), "Zᵀ, normalized", kind="small")
    panel.text((242, 98), "·")
    panel.matrix((256, 10), (44, SIDE), "X", "n × c", role="features")
    panel.text((156, 234), f"k = {NUM_BASES}, same scale: 0.54 million", kind="small")
    return panel
