"""The figures that readers drive: their JavaScript against the package, and their behavior in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab import explorers, interactive, verdicts
from matplotlib.figure import Figure
from torch import Tensor

from emalab.bases import MovingAverage
from emalab.bench import Size
from emalab.em import e_step, em_attention, log_likelihood, m_step, normalize_bases
from emalab.inspection import distinct_bases, perplexity

BOOK = Path(__file__).parents[2] / "book"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or pytest.skip(f"no browser on PATH: {', '.join(BROWSERS)}")


def rendered(page: str, folder: Path) -> str:
    """The document of a page after its scripts have run, opened from a file."""
    path = folder / "page.html"
    path.write_text(f"<!doctype html><html><head><meta charset='utf-8'></head><body>{page}</body></html>")
    profile = f"--user-data-dir={folder / 'profile'}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--window-size=390,900"]
    command = [browser(), *options, profile, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Any]:
    """`evaluate(expression, **inputs)`: what JavaScript makes of it, by Node.js, or a browser where there is none."""
    core = (BOOK / "site" / "interactive" / "core.js").read_text()

    def run(expression: str, **inputs: object) -> Any:
        values = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        arguments = f"const {{ {', '.join(values)} }} = {json.dumps(values)};"
        plain = "(key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value)"
        program = f"{core}\n{{ {arguments} const c = emalab.core, m = c.matrix; "
        result = f"JSON.stringify({expression}, {plain})"
        if node := shutil.which("node"):
            command = [node, "--eval", f"{program} console.log({result}); }}"]
            output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
        else:
            page = f'<pre id="result"></pre><script>{program} result.textContent = {result}; }}</script>'
            (output,) = re.findall(r'<pre id="result">(.*)</pre>', rendered(page, tmp_path))
        return json.loads(output)

    return run


def as_tensor(found: dict[str, Any]) -> Tensor:
    """A matrix of JavaScript."""
    return torch.tensor(found["values"], dtype=torch.float64).reshape(found["rows"], found["columns"])


def features(seed: int = 0, n: int = 50, c: int = 6, k: int = 5) -> tuple[Tensor, Tensor]:
    """x (n, c) of any length, bases (k, c) inside the ball."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(n, c, dtype=torch.float64, generator=generator)
    lengths = torch.rand(k, 1, dtype=torch.float64, generator=generator)
    return x, lengths * normalize_bases(torch.randn(k, c, dtype=torch.float64, generator=generator))


def check(found: Any, expected: Tensor) -> None:
    found = as_tensor(found) if isinstance(found, dict) else torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


class TestCore:
    """core.js computes what the package computes."""

    def test_em_attention(self, evaluate: Callable[..., Any]):
        x, bases = features()
        cases = list(product([1, 3, 10], [0.1, 1.0, 20.0]))
        expression = "cases.map(([iterations, scale]) => c.emAttention(m(x), m(bases), { iterations, scale }))"
        for (iterations, scale), found in zip(cases, evaluate(expression, x=x, bases=bases, cases=cases), strict=True):
            expected = em_attention(x[None], bases, num_iters=iterations, scale=scale)
            check(found["responsibilities"], expected.responsibilities[0])
            check(found["bases"], expected.bases[0])

    def test_steps(self, evaluate: Callable[..., Any]):
        x, bases = features(seed=1)
        z = e_step(x[None], bases[None], 2.0)
        found = evaluate("[c.eStep(m(x), m(bases), 2), c.iterate(m(x), m(bases), 2)]", x=x, bases=bases)
        check(found[0], z[0])
        check(found[1], normalize_bases(m_step(x[None], z))[0])

    def test_a_base_that_nobody_chooses(self, evaluate: Callable[..., Any]):
        x, bases = features(seed=2)
        x = x.abs()
        bases[0] = -F.normalize(x.mean(dim=0), dim=0)
        found = evaluate("c.iterate(m(x), m(bases), 100)", x=x, bases=bases)
        expected = em_attention(x[None], bases, num_iters=1, scale=100.0).bases[0]
        assert expected[0].norm() < 1e-6
        check(found, expected)

    def test_huge_logits(self, evaluate: Callable[..., Any]):
        x, bases = features(seed=3)
        found = evaluate("c.eStep(m(x), m(bases), 1e4)", x=x, bases=bases)
        check(found, e_step(x[None], bases[None], 1e4)[0])

    def test_log_likelihood(self, evaluate: Callable[..., Any]):
        x, bases = features(seed=4)
        scales = [0.1, 1.0, 100.0]
        found = evaluate(
            "scales.map((scale) => c.logLikelihood(m(x), m(bases), scale))", x=x, bases=bases, scales=scales
        )
        check(found, torch.stack([log_likelihood(x[None], bases, scale)[0] for scale in scales]))

    def test_rows_of_attention(self, evaluate: Callable[..., Any]):
        x, bases = features(seed=5)
        z = e_step(x[None], bases[None])[0]
        non_local, em, effective = evaluate(
            "[c.nonLocalRow(m(x), 7, 0.5), c.emRow(m(z), 7), c.perplexity(c.emRow(m(z), 7))]", x=x, z=z
        )
        check(non_local, (0.5 * x @ x.T).softmax(dim=-1)[7])
        expected = ((z / z.sum(dim=0)) @ z.T)[7]
        check(em, expected)
        check(effective, perplexity(expected))

    def test_count_distinct(self, evaluate: Callable[..., Any]):
        spread = [0.0, 0.1, 0.3, 1.0]  # from copies of three bases to twelve different ones
        generator = torch.Generator().manual_seed(11)
        noise, means = (torch.randn(n, 8, dtype=torch.float64, generator=generator) for n in (12, 3))
        cases = [means.repeat(4, 1) + scale * noise for scale in spread]
        found = evaluate("cases.map((each) => c.countDistinct(m(each)))", cases=[case.tolist() for case in cases])
        assert found == [int(distinct_bases(case).max()) + 1 for case in cases]
        assert found[0] == 3 < found[-1]

    def test_moving_average(self, evaluate: Callable[..., Any]):
        old = features(seed=6)[1]
        reached = torch.stack([normalize_bases(features(seed=seed)[1]) for seed in (7, 8, 9)])
        cases = list(product([0.0, 0.9, 1.0], ["none", "batch_mean", "after_mixing"]))
        expression = "cases.map((options) => c.movingAverage(m(old), reached.map(m), ...options))"
        results = evaluate(expression, old=old, reached=reached, cases=cases)
        for options, found in zip(cases, results, strict=True):
            check(found, MovingAverage(*options).update(old, reached))

    def test_unpack(self, evaluate: Callable[..., Any]):
        packed = interactive.pack(features(seed=10)[0])
        found = as_tensor(evaluate("c.unpack(packed)", packed=packed))
        assert np.array_equal(found.numpy(), interactive.unpack(packed))


class TestPack:
    def test_is_right_to_half_a_step(self):
        x = features()[0].numpy()
        packed = interactive.pack(x)
        assert (np.abs(interactive.unpack(packed) - x) <= np.array(packed["steps"]) / 2 * (1 + 1e-9)).all()

    def test_a_column_of_zeros(self):
        assert np.array_equal(interactive.unpack(interactive.pack(np.zeros((3, 2)))), np.zeros((3, 2)))

    @pytest.mark.parametrize("bad", [np.zeros(3), np.full((2, 2), np.nan)], ids=["shape", "nan"])
    def test_refuses(self, bad: np.ndarray):
        with pytest.raises(ValueError, match="finite values; got shape"):
            interactive.pack(bad)


class TestInteractive:
    def test_is_html_with_the_picture_in_it_and_png(self):
        bundle = interactive.interactive("mixture", DATA["mixture"], Figure(), 'a "picture" <here>')._repr_mimebundle_()
        assert bundle["image/png"] in bundle["text/html"]
        assert 'alt="a &quot;picture&quot; &lt;here&gt;"' in bundle["text/html"]
        assert not re.search(r"""(src|href)=["'](?!data:)""", bundle["text/html"])  # nothing to load

    def test_data_cannot_end_its_script(self):
        found = interactive.interactive("mixture", {"text": "</script>"}, Figure(), "").html
        assert "</script>" not in found.partition('application/json">')[2].partition("}")[0]

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("mixtures", {}, "no figure 'mixtures'; there are step-em"),
            ("mixture", {"values": [0.5] * 200_000}, "take 800,0.. bytes, more than 400,000"),
            ("mixture", {"value": float("nan")}, "not JSON compliant"),
        ],
        ids=["name", "size", "nan"],
    )
    def test_refuses(self, name: str, data: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            interactive.interactive(name, data, Figure(), "")

    def test_every_figure_has_its_place_in_the_book(self):
        cells = [cell.source for path in BOOK.glob("*.ipynb") for cell in nbformat.read(path, 4).cells]
        shown = {name for source in cells for name in re.findall(r'^interactive\(\n\s+"(.*)",', source, re.MULTILINE)}
        assert "{live-figure}" in (BOOK / "index.md").read_text()
        placed = {name for source in cells for name in re.findall(r"^explorers\.(\w+)\(\)", source, re.MULTILINE)}
        assert placed == set(explorers.__all__)
        assert shown | {"landing", *EXPLORERS} == set(interactive.FIGURES)

    def test_the_landing_page_has_its_own_data(self):
        found = interactive.landing()
        assert 'emalab.mount("interactive-landing")' in found
        assert len(found) < interactive.MOST_BYTES


def small_data() -> dict[str, dict[str, Any]]:
    """Data of every figure, small enough to compute with at once."""
    x, bases = features(n=48, k=4)
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    picture = {"size": [6, 8], "photograph": pixel, "x": interactive.pack(x)}
    packed = interactive.pack(bases)
    control = {"momentum": [0.5, 0.9], "images": [2, 4], "scatter": [0, 40], "drift": [0, 2]}
    return {
        "landing": picture | {"bases": packed},
        "step-em": picture | {"starts": {"first": {"text": "first", "bases": packed}}, "scales": [0.5, 1, 2]},
        "pixel-attention": picture
        | {"position": [2, 3], "scale": {"values": [0, 1, 2], "start": 1}}
        | {"em": {"bases": packed, "iterations": 3, "scale": {"values": [1, 2], "start": 1}, "start": 4}},
        "mixture": {
            "points": [[1, 0], [0.8, 0.6], [0, 1], [-1, 0]],
            "start": [0.1, 0.5, 2.0],
            "bases": 2,
            "scale": {"values": [1, 8], "start": 8},
        },
        "moving-average": {
            "noise": torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).tolist(),
            "rest": 6,
            "sliders": {name: {"values": values, "start": values[-1]} for name, values in control.items()},
        },
    }


DATA = small_data()
EXPLORERS = {
    "roofline": explorers.roofline,
    "settings": explorers.settings,
    "gradient-paths": explorers.gradient_paths,
}

# What a reader does, and notes what the figure says after each deed.
DRIVE = """
<pre id="said"></pre><pre id="errors"></pre>
<script>
addEventListener("error", (event) => (errors.textContent += event.message));
console.error = (...words) => (errors.textContent += words.join(" "));
const said_ = [];
const figure = () => document.querySelector(".emalab-figure");
const note = () => said_.push(figure().querySelector("[role=status]").textContent);
const press = (text) => ([...figure().querySelectorAll("button")].find((b) => b.textContent === text).click(), note());
const key = (name) => {
  const event = new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
  figure().querySelector("[role=application]").dispatchEvent(event);
  note();
};
const slide = (text, index) => {
  const label = [...figure().querySelectorAll("label")].find((l) => l.textContent.startsWith(text));
  const input = label.querySelector("input");
  input.value = index;
  input.dispatchEvent(new Event("input"));
  note();
};
const pick = (text, value) => {
  const label = [...figure().querySelectorAll("label")].find((l) => l.textContent.startsWith(text));
  const select = label.querySelector("select");
  select.value = value;
  select.dispatchEvent(new Event("change"));
  note();
};
</script>
"""


@pytest.fixture
def drive(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """`drive(name, deeds)`: what the status line of a figure says at first and after each deed."""

    def run(name: str, deeds: str) -> list[str]:
        made = (
            EXPLORERS[name]() if name in EXPLORERS else interactive.interactive(name, DATA[name], Figure(), "a picture")
        )
        shown = made.html
        end = "said.title = document.documentElement.scrollWidth; said.textContent = JSON.stringify(said_);"
        found = rendered(f"{DRIVE}{shown}<script>note(); {deeds}; {end}</script>", tmp_path)
        assert '<pre id="errors"></pre>' in found
        ((width, notes),) = re.findall(r'<pre id="said" title="(\d+)">(.*?)</pre>', found, re.DOTALL)
        assert int(width) <= 500  # the narrowest window that a headless browser makes
        assert "data-ready" in found
        assert "<img" not in found.partition('id="interactive-')[2]
        return json.loads(notes)

    return run


def unpacked(name: str, key: str) -> Tensor:
    return torch.from_numpy(interactive.unpack(DATA[name][key]))


class TestInABrowser:
    def test_step_em(self, drive: Callable[[str, str], list[str]]):
        x = unpacked("step-em", "x")
        bases = torch.from_numpy(interactive.unpack(DATA["step-em"]["starts"]["first"]["bases"]))

        def objective(k: int, scale: float, steps: int) -> str:
            reached = em_attention(x[None], bases[:k], num_iters=steps, scale=scale).bases if steps else bases[:k]
            value = log_likelihood(x[None], reached, scale).item()
            distinct = int(distinct_bases(reached.reshape(k, -1)).max()) + 1
            share, first = e_step(x[None], reached.reshape(1, k, -1), scale)[0].mean(dim=0).max(dim=0)
            return (
                f"{steps} iteration{'' if steps == 1 else 's'}: L = {value:.1f} nats; {k} bases, {distinct} distinct; "
                f"base {first + 1} has the most of the image, {100 * share:.0f} %."
            )

        said = drive(
            "step-em",
            'press("Step"); press("Step"); slide("bases", 0); slide("concentration", 2); press("Step"); press("Reset")',
        )
        expected = [(4, 1, 0), (4, 1, 1), (4, 1, 2), (2, 1, 0), (2, 2, 0), (2, 2, 1), (4, 1, 0)]
        assert said == [objective(*each) for each in expected]

    def test_landing(self, drive: Callable[[str, str], list[str]]):
        x, bases = unpacked("landing", "x"), unpacked("landing", "bases")

        def report(k: int, steps: int) -> str:
            before, after = (em_attention(x[None], bases[:k], num_iters=t).bases for t in (steps - 1, steps))
            one, other = (e_step(x[None], each).argmax(dim=-1) for each in (before, after))
            distinct = int(distinct_bases(after[0]).max()) + 1
            moved = 100 * (one != other).double().mean()
            return (
                f"After {steps} iterations: {k} bases, {distinct} distinct. "
                f"The last one moved {moved:.0f} % of the positions to another base."
            )

        said = drive("landing", 'slide("iterations", 5); slide("bases", 0); slide("iterations", 0); press("Reset")')
        assert said[0] == said[-1] == report(4, 3)
        assert said[1:3] == [report(4, 5), report(2, 5)]
        assert said[3].startswith("At the start: 2 random bases")

    def test_pixel_attention(self, drive: Callable[[str, str], list[str]]):
        x = unpacked("pixel-attention", "x")
        bases = torch.from_numpy(interactive.unpack(DATA["pixel-attention"]["em"]["bases"]))

        def reach(row: int, column: int, scale: float, k: int) -> str:
            z = em_attention(x[None], bases[:k], num_iters=3).responsibilities[0]
            non_local = (scale * x @ x.T).softmax(dim=-1)[8 * row + column]
            em = ((z / z.sum(dim=0)) @ z.T)[8 * row + column]
            return (
                f"Row {row + 1}, column {column + 1}: non-local attention looks at {perplexity(non_local):.0f}, "
                f"EM attention looks at {perplexity(em):.0f} of 48 positions (effective number)."
            )

        said = drive(
            "pixel-attention",
            'key("ArrowDown"); key("ArrowRight"); key("Home"); key("ArrowLeft"); key("End"); key("x");'
            'slide("non-local", 0); slide("EM: bases", 0)',
        )
        places = [(2, 3), (3, 3), (3, 4), (3, 0), (3, 0), (3, 7), (3, 7)]
        expected = [reach(*place, 1.0, 4) for place in places] + [reach(3, 7, 0.0, 4), reach(3, 7, 0.0, 1)]
        assert said == expected
        assert "looks at 48, EM attention looks at 48 " in said[-1]

    def test_mixture(self, drive: Callable[[str, str], list[str]]):
        points, angles = (torch.tensor(DATA["mixture"][key], dtype=torch.float64) for key in ("points", "start"))
        bases = torch.stack([angles.cos(), angles.sin()], dim=-1)

        def objective(points: Tensor, bases: Tensor) -> str:
            return f"L = {log_likelihood(points[None], bases, 8.0).item():.2f} nats after"

        said = drive(
            "mixture",
            'press("Step"); press("Restart"); slide("bases", 2); key("N"); key("n"); key("n"); key("ArrowUp")',
        )
        stepped = em_attention(points[None], bases[:2], num_iters=1, scale=8.0).bases[0]
        moved = points.clone()
        moved[0, 1] += 0.05
        for line, expected in zip(
            said,
            [
                objective(points, bases[:2]), objective(points, stepped), objective(points, bases[:2]),
                *[objective(points, bases)] * 4, objective(moved, bases),
            ],
            strict=True,
        ):  # fmt: skip
            assert line.startswith(expected)
        assert said[-1].endswith("Selected: point 1, at 3°, length 1.00.")

    def test_moving_average(self, drive: Callable[[str, str], list[str]]):
        noise = torch.tensor(DATA["moving-average"]["noise"], dtype=torch.float64)

        def length(alpha: float, images: int, scatter: float, rule: str) -> str:
            stored = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
            for batch, row in enumerate(noise[:, :images], start=1):
                angles = torch.deg2rad(2 * min(batch, 6) + scatter * row)
                reached = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None]
                stored = MovingAverage(alpha, rule).update(stored, reached)
            right = torch.deg2rad(torch.tensor(12.0, dtype=torch.float64))
            behind = torch.rad2deg(right - torch.atan2(stored[0, 1], stored[0, 0]))
            return f"After 12 batches: length {stored.norm():.3f}, {behind:.1f}° behind."

        said = drive(
            "moving-average",
            'slide("batch", 0); slide("batch", 12); slide("momentum", 0); slide("images per", 0);'
            'pick("length", "batch_mean"); pick("length", "after_mixing"); slide("images differ", 0); press("Reset")',
        )
        assert said[0].startswith("After 3 batches")
        assert said[1].startswith("After 0 batches: length 1.000")
        assert said[2:-1] == [
            length(0.9, 4, 40, "none"),
            length(0.5, 4, 40, "none"),
            length(0.5, 2, 40, "none"),
            length(0.5, 2, 40, "batch_mean"),
            length(0.5, 2, 40, "after_mixing"),
            length(0.5, 2, 0, "after_mixing"),
        ]
        assert said[-1] == said[0]  # all sliders are back

    def test_roofline(self, drive: Callable[[str, str], list[str]]):
        record = json.loads((BOOK / "results" / "h200-bench.json").read_text())
        size = {"b": 16, "n": 65**2, "k": 64, "c": 512, "iterations": 3, "dtype": "bfloat16"}
        rows = {row["method"]: row for row in record["rows"] if row["size"] == size}
        said = drive("roofline", 'slide("bases", 6); press("Reset")')
        for name, method in (("EM attention", "em-triton"), ("Non-local attention", "non-local-sdpa")):
            floor, seconds = (f"{1000 * rows[method][key]:.3g} ms" for key in ("floor", "replayed"))
            assert f"{name} takes at least {floor}, limited by {rows[method]['bound']}; measured {seconds}" in said[0]
        big = Size(16, 65**2, 512, 512, 3, "bfloat16")
        moved, operations = big.cost("em-triton")
        ceilings = record["ceilings"]
        floor = max(moved / ceilings["bandwidth"], operations / ceilings["arithmetic"]["bfloat16"])
        assert f"EM attention takes at least {1000 * floor:.3g} ms, limited by arithmetic" in said[1]
        assert said[2] == said[0]

    def test_settings(self, drive: Callable[[str, str], list[str]]):
        said = drive(
            "settings",
            'press("Higher"); press("Higher"); press("Lower"); pick("hyperparameter", "K"); pick("data", "shapes");'
            'press("Higher"); press("Higher"); press("Reset")',
        )
        row = verdicts.judged_by("camvid")["T=1"]
        numbers = f"{row.mean:+.1f} points, 95 % interval [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")
        assert said[0] == f"T = 1 on street scenes: {numbers}: no detectable difference from 3."
        assert said[2] == "T = 3 on street scenes: this is the default, which all others are compared with."
        assert said[7] == "K = 8 on generated scenes: this is the default, which all others are compared with."
        assert said[8] == said[0]

    def test_gradient_paths(self, drive: Callable[[str, str], list[str]]):
        said = drive(
            "gradient-paths",
            'pick("gradient", "last"); pick("gradient", "unroll"); slide("iterations", 7); press("Reset")',
        )
        assert said[0].startswith("The gradient passes none of 3 iterations")
        assert said[1].startswith("The gradient passes 1 of 3 iterations")
        assert said[2].startswith("The gradient passes 3 of 3 iterations")
        assert said[3].startswith("The gradient passes 8 of 8 iterations")
        assert said[4] == said[0]

    def test_the_picture_stays_without_scripts_data(self, tmp_path: Path):
        broken = interactive.interactive("mixture", {"points": []}, Figure(), "a picture").html
        assert 'alt="a picture"' in rendered(broken, tmp_path)
