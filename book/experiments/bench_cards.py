"""Time every way to compute EM attention on this GPU, several times over, beside FlashAttention and the floor.

    python book/experiments/bench_cards.py --out book/results/bench-cards-h200.json

One record a card, of four sizes, in 90 seconds: called from Python and replayed from a CUDA graph, with the time that a
call keeps the host, the floor by the measured bandwidth, and the error against float64. Every number is taken in five
rounds, in which all ways take turns. Run it on a quiet host: the record holds how evenly the host ran.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from emalab import em_attention
from emalab.bench import Ceilings, Size, captured, measure_ceilings, time_of
from emalab.results import find_origin, write_record
from emalab.tables import aligned

SIZES = [
    Size(b, side**2, 64, 512, 3, "bfloat16")
    for b, side in ((16, 33), (16, 65), (16, 129), (1, 65))
]
TINY = [Size(2, 5**2, 3, 8, 2, "float32")]
UNEVEN = 1.5  # of the slowest to the typical time of the same Python loop: more, and others use its core


@dataclass(frozen=True)
class Arguments:
    """What to time, and where to write."""

    out: Path
    """The record."""
    rounds: int = 5
    """How often all ways take their turn."""
    seconds: float = 0.03
    """How long each is repeated in a round; the median counts."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""
    tiny: bool = False
    """One small size on the CPU: tries the program."""


@dataclass
class Way:
    """One way to compute attention at one size, and what was measured of it, round by round, in seconds."""

    method: str
    size: Size
    run: Callable[[], Tensor]
    floor: float
    error: float
    called: list[float]
    replayed: list[float]
    host: list[float]
    replay: Callable[[], object] | None

    def row(self) -> dict[str, Any]:
        """What the record keeps."""
        return {
            "method": self.method,
            "size": asdict(self.size),
            "floor": self.floor,
            "error": self.error,
            "called": self.called,
            "replayed": self.replayed,
            "host": self.host,
        }


def channels_first(x: Tensor, bases: Tensor, num_iters: int) -> Tensor:
    """EM attention as public code writes it: features (b, c, n), bases (b, c, k) → (b, c, n)."""
    for _ in range(num_iters):
        z = torch.bmm(x.mT, bases).softmax(dim=2)  # (b, n, k)
        bases = torch.bmm(x, z / (1e-6 + z.sum(dim=1, keepdim=True)))
        bases = bases / (1e-6 + bases.norm(dim=1, keepdim=True))
    return torch.bmm(bases, z.mT)


def channels_last(x: Tensor, bases: Tensor, num_iters: int) -> Tensor:
    """The package's loop: features (b, n, c), bases (k, c) → (b, n, c)."""
    return em_attention(x, bases, num_iters=num_iters, backend="torch").reconstruction


def ways(size: Size, device: torch.device, ceilings: Ceilings) -> Iterator[Way]:
    """Everything to be timed at one size; what cannot be recorded into a graph has no replay."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, size.dtype)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x = random(size.b, size.n, size.c)
    bases = F.normalize(random(size.k, size.c), dim=-1)
    first = x.mT.contiguous(), bases.T.expand(size.b, -1, -1).contiguous()
    q, k, v = (random(size.b, 1, size.n, size.c // 2) for _ in range(3))
    torch.compiler.reset()
    backend = "inductor" if device.type == "cuda" else "eager"
    compiled = torch.compile(channels_last, dynamic=False, backend=backend)
    iterations = size.iterations
    exact = channels_last(x[:1].double(), bases.double(), iterations)
    flash = F.scaled_dot_product_attention
    attended = flash(q[:1].double(), k[:1].double(), v[:1].double())
    runs: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "em-torch": (lambda: channels_last(x, bases, iterations), exact),
        "em-compiled": (lambda: compiled(x, bases, iterations), exact),
        "em-public": (lambda: channels_first(*first, iterations), exact.mT),
        "non-local-flash": (lambda: flash(q, k, v), attended),
    }
    if device.type == "cuda":
        fused: Any = {"num_iters": iterations, "backend": "triton"}
        runs["em-fused"] = (
            lambda: em_attention(x, bases, **fused).reconstruction,
            exact,
        )
    for method, (run, expected) in runs.items():
        moved, operations = size.cost(
            "em-torch" if method.startswith("em") else "non-local-sdpa"
        )
        floor = max(
            moved / ceilings.bandwidth, operations / ceilings.arithmetic[size.dtype]
        )
        error = float((run()[:1].double() - expected).norm() / expected.norm())
        graph = captured(run, device) if device.type == "cuda" else None
        replay = graph.replay if graph else None
        yield Way(method, size, run, floor, error, [], [], [], replay)


def measure(way: Way, device: torch.device, seconds: float) -> None:
    """One round of one way."""
    way.called.append(time_of(way.run, device, seconds))
    if way.replay is not None:
        way.replayed.append(time_of(way.replay, device, seconds))
    way.host.append(host_time(way.run, device))


def host_time(
    run: Callable[[], object], device: torch.device, calls: int = 20
) -> float:
    """Median seconds until a call returns, with the device waiting for work."""
    times = []
    for _ in range(calls):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)


def evenness(loops: int = 200) -> dict[str, Any]:
    """How busy the host is: its load, the cores of this process, and how evenly a loop of Python runs."""
    times = []
    for _ in range(loops):
        begin = time.perf_counter()
        sum(range(20_000))
        times.append(time.perf_counter() - begin)
    slow = sorted(times)[int(0.95 * loops)] / median(times)
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    return {
        "load": os.getloadavg()[0],
        "cores": cores,
        "unevenness": slow,
        "quiet": slow < UNEVEN,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the rounds, in milliseconds, with the lowest and the highest."""

    def text(times: list[float]) -> str:
        low, middle, high = (1e3 * f(times) for f in (min, median, max))
        return f"{middle:.3f} ({low:.3f}–{high:.3f})"

    lines = [("b", "n", "method", "called", "replayed", "host", "floor", "error")]
    for row in rows:
        size, replayed = row["size"], row["replayed"]
        numbers = (
            text(row["called"]),
            text(replayed) if replayed else "–",
            text(row["host"]),
        )
        rest = f"{1e3 * row['floor']:.3f}", f"{row['error']:.0e}"
        lines.append((str(size["b"]), str(size["n"]), row["method"], *numbers, *rest))
    return "\n".join(aligned(lines, right={0, 1, 3, 4, 5, 6, 7}))


@torch.no_grad()
def main(arguments: Arguments) -> None:
    """Time all sizes, and write the record after each."""
    if not (arguments.tiny or torch.cuda.is_available()):
        raise SystemExit(
            "there is no CUDA device here; --tiny tries the program without one"
        )
    device = torch.device("cpu" if arguments.tiny else "cuda")
    sizes, rounds, seconds = SIZES, arguments.rounds, arguments.seconds
    if arguments.tiny:
        sizes, rounds, seconds = TINY, 1, 0.0
    before = evenness()
    ceilings = measure_ceilings(device, sorted({size.dtype for size in sizes}))
    record = {
        "what": "EM attention in every way, and FlashAttention over c / 2 channels, projections not counted: forward, in "
        "seconds. called: from Python; replayed: from a CUDA graph; host: until a call returns. b, n, k, c: images, "
        "positions, bases, channels. One number a round.",
        "how": "called and replayed: medians of CUDA events, with the L2 cache emptied by a write of 256 MiB before each "
        "call. host: by the host's clock, the device idle. floor: the larger of bytes over bandwidth and operations over "
        "arithmetic, by the ceilings measured first. unevenness: the 95 % quantile of a Python loop over its median.",
        "seeds": "features and bases, or queries, keys and values: normal random numbers, seed 0",
        **find_origin(device, arguments.commit),
        "triton": _triton_version(),
        "ceilings": asdict(ceilings),
        "host": [before],
        "rows": [],
    }
    for size in sizes:
        timed = list(ways(size, device, ceilings))
        for _ in range(rounds):
            for way in timed:
                measure(way, device, seconds)
        record["rows"] += [way.row() for way in timed]
        record["host"].append(evenness())
        write_record(arguments.out, record)
    print(table(record["rows"]))
    if not all(one["quiet"] for one in record["host"]):
        print(
            "The host was busy: times that are called from Python are too long. Repeat this on a quiet host."
        )


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
