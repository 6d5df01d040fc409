"""The worked iteration of the chapter on EM attention: every number in its text is one that EM computes."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import torch
import torch.nn.functional as F

from emalab.em import log_likelihood

CHAPTER = Path(__file__).resolve().parents[2] / "book" / "em_attention.ipynb"
NUMBER = re.compile(r"[−-]?\d+\.\d+")
SCALE = 2.0


def computed() -> list[float]:
    """All intermediate values of one iteration for the four positions and two bases of the text."""
    x = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
    bases = torch.eye(2, dtype=torch.float64)
    exponentials = (SCALE * x @ bases.T).exp()
    z = exponentials / exponentials.sum(dim=1, keepdim=True)
    sums, totals = z.T @ x, z.sum(dim=0)
    means = sums / totals[:, None]
    moved = F.normalize(means, dim=-1)
    objective = [log_likelihood(x[None], each, SCALE) for each in (bases, moved)]
    parts = (x, exponentials, exponentials.sum(dim=1), z, sums, totals, means, means.norm(dim=1), moved, z @ moved)
    return torch.cat([part.flatten() for part in (*parts, *objective)]).tolist()


def test_every_number_of_the_text_is_computed() -> None:
    cells = {cell.id: cell.source for cell in nbformat.read(CHAPTER, as_version=4).cells}
    numbers = NUMBER.findall(cells["em-by-hand"].replace("−", "-"))
    assert len(numbers) > 40
    values = computed()
    for number in numbers:
        digits = len(number.partition(".")[2])
        close = [value for value in values if abs(value - float(number)) <= 0.5 * 10**-digits + 1e-9]
        assert close, f"no step of the iteration gives {number}"


def test_the_text_quotes_the_objective() -> None:
    text = " ".join(cell.source for cell in nbformat.read(CHAPTER, as_version=4).cells)
    before, after = computed()[-2:]
    assert f"from {before:.3f} to {after:.3f}" in " ".join(text.split())
