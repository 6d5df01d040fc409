"""What attention costs: EM attention and non-local attention over sizes, beside what the hardware allows at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from statistics import median
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from emalab.choices import Method
from emalab.em import em_attention
from emalab.tables import aligned

_CHECKED = 256  # positions of non-local attention that are compared: the whole matrix in float64 fills any memory first

__all__ = [
    "Ceilings",
    "Method",
    "Row",
    "Size",
    "benchmark",
    "captured",
    "format_table",
    "measure_ceilings",
    "time_of",
    "to_record",
]


@dataclass(frozen=True)
class Size:
    """Features (b, n, c) of a type, k bases and T iterations. Non-local attention has c / 2 inner channels."""

    b: int
    n: int
    k: int
    c: int
    iterations: int
    dtype: str

    def __post_init__(self) -> None:
        numbers = {"b": self.b, "n": self.n, "k": self.k, "c": self.c, "iterations": self.iterations}
        for name, number in numbers.items():
            if number < 1 or (name == "c" and number < 2):
                raise ValueError(f"a size to benchmark needs {name} of at least {1 + (name == 'c')}, got {number}")

    def cost(self, method: Method) -> tuple[float, float]:
        """The fewest bytes to move, inputs and outputs once per pass, and the multiply-adds times two."""
        itemsize = getattr(torch, self.dtype).itemsize
        if method.startswith("em"):
            moved = (self.iterations + 1) * self.b * self.n * self.c * itemsize
            return moved, 2 * (2 * self.iterations + 1) * self.b * self.n * self.k * self.c
        inner = self.c // 2
        return 4 * self.b * self.n * inner * itemsize, 4 * self.b * self.n**2 * inner


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: bytes per second in a large copy, operations per second in a large matrix product."""

    bandwidth: float
    arithmetic: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One method at one size: seconds (median), the floor and the error. Without seconds, ``failure`` says why.

    ``seconds`` are those of a call from Python. Where the device has less to do than the host, ``replayed`` is shorter:
    the seconds of the same from a CUDA graph, which the host starts at once.
    """

    method: Method
    size: Size
    floor: float
    bound: Literal["bandwidth", "arithmetic"]
    seconds: float | None = None
    error: float | None = None
    memory: int | None = None  # bytes at the peak beyond inputs; None on a CPU
    replayed: float | None = None  # None on a CPU, and of what no graph can record
    failure: str | None = None


def measure_ceilings(device: torch.device, dtypes: Sequence[str]) -> Ceilings:
    """Measure a copy larger than any cache, and a square matrix product of random numbers in each type."""
    gpu = device.type == "cuda"
    source = torch.empty(2**32 if gpu else 2**26, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / min(_times(partial(target.copy_, source), device, 0.05))
    del source, target
    side = 8192 if gpu else 768
    arithmetic = {}
    for name in dtypes:
        left = torch.randn(side, side, device=device).to(getattr(torch, name))
        arithmetic[name] = 2 * side**3 / min(_times(partial(torch.mm, left, left), device, 0.05))
    return Ceilings(bandwidth, arithmetic)


def benchmark(
    sizes: Sequence[Size],
    methods: Sequence[Method],
    device: torch.device,
    seconds: float = 0.1,
    ceilings: Ceilings | None = None,
) -> Iterator[Row]:
    """Check and time every method at every size, one row at a time.

    Args:
        sizes: what to run.
        methods: which ways to compute it.
        device: where.
        seconds: how long to repeat each; the median counts.
        ceilings: measured first if not given.
    """
    if unknown := set(methods) - set(get_args(Method)):
        raise ValueError(f"no method {sorted(unknown)[0]!r}; there are {', '.join(get_args(Method))}")
    ceilings = ceilings or measure_ceilings(device, sorted({size.dtype for size in sizes}))
    for size, method in product(sizes, methods):
        yield _measure(method, size, device, ceilings, seconds)


@torch.no_grad()
def _measure(method: Method, size: Size, device: torch.device, ceilings: Ceilings, seconds: float = 0.1) -> Row:
    """One row. Fresh random inputs; the error is that of the first image against float64, ‖a − b‖ / ‖b‖.

    Of non-local attention, it is that of the first positions."""
    moved, operations = size.cost(method)
    times = {"bandwidth": moved / ceilings.bandwidth, "arithmetic": operations / ceilings.arithmetic[size.dtype]}
    bound: Any = max(times, key=lambda name: times[name])
    row = partial(Row, method, size, times[bound], bound)
    try:
        run, exact = _problem(method, size, device)
        found, expected = run()[:1], exact()  # compiles, too
        found = found[..., : expected.shape[-2], :].double()
        error = float((found - expected).norm() / expected.norm())
        del found, expected
        memory = replayed = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            run()
            memory = torch.cuda.max_memory_allocated(device) - before
        called = time_of(run, device, seconds)
        if device.type == "cuda" and (graph := captured(run, device)) is not None:
            replayed = time_of(graph.replay, device, seconds)
        return row(seconds=called, error=error, memory=memory, replayed=replayed)
    except (RuntimeError, ValueError) as failure:  # out of memory, no kernel here: a row without a time
        return row(failure=str(failure).strip().split("\n")[0])


def _problem(method: Method, size: Size, device: torch.device) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The computation, and in double precision the same for the first image, or its first positions."""
    dtype = getattr(torch, size.dtype)
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    if method.startswith("em"):
        x = random(size.b, size.n, size.c)
        bases = F.normalize(random(size.k, size.c), dim=-1)
        attend: Callable[..., Tensor] = torch.compile(_em) if method == "em-compiled" else _em
        backend = "triton" if method == "em-triton" else "torch"
        return (
            lambda: attend(x, bases, size.iterations, backend),
            lambda: _em(x[:1].double(), bases.double(), size.iterations, "torch"),
        )
    mix = _explicit if method == "non-local-explicit" else F.scaled_dot_product_attention
    query, key, value = (random(size.b, 1, size.n, size.c // 2) for _ in range(3))
    return (
        lambda: mix(query, key, value),
        lambda: _explicit(query[:1, :, :_CHECKED].double(), key[:1].double(), value[:1].double()),
    )


def _em(x: Tensor, bases: Tensor, iterations: int, backend: Any) -> Tensor:
    return em_attention(x, bases, num_iters=iterations, backend=backend).reconstruction


def _explicit(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1) @ value


def time_of(run: Callable[[], object], device: torch.device, seconds: float = 0.1) -> float:
    """Median seconds of a call: by CUDA events, with nothing left in the cache; on the CPU by its clock."""
    return median(_times(run, device, seconds))


def _times(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    if device.type != "cuda":
        return _clocked(run, seconds)
    with torch.cuda.device(device):
        return _recorded(run, seconds)


def captured(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of a call that has run before; None if it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:
            return None
    return graph


def _clocked(run: Callable[[], object], seconds: float) -> list[float]:
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def _recorded(run: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    count = min(max(int(seconds / (time.perf_counter() - begin)), 10), 200)
    cache = torch.empty(2**28, dtype=torch.uint8, device="cuda")  # several times the largest L2
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for before, after in events:
        cache.zero_()
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in events]


def format_table(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """Aligned text: sizes, method, times, floor and what binds it, the part of the floor that is reached, error.

    What is reached is that of the replayed call, where there is one.
    """
    lines = [f"copy {ceilings.bandwidth / 1e9:.0f} GB/s"]
    lines[0] += "".join(f", {name} product {rate / 1e12:.2f} TFLOP/s" for name, rate in ceilings.arithmetic.items())
    head = ("b", "n", "k", "c", "T", "type", "method", "ms", "replayed", "floor ms", "reached", "bound", "error", "MB")
    table: list[tuple[str, ...]] = [head]
    for row in rows:
        size = row.size
        names = (*map(str, (size.b, size.n, size.k, size.c, size.iterations)), size.dtype, row.method)
        floor = f"{1000 * row.floor:.4f}"
        if row.seconds is None:
            table.append((*names, "–", "–", floor, "–", row.bound, "–", "–"))
            continue
        replayed = "–" if row.replayed is None else f"{1000 * row.replayed:.4f}"
        reached = f"{row.floor / (row.replayed or row.seconds):.0%}"
        memory = "–" if row.memory is None else f"{row.memory / 1e6:.1f}"
        found = (f"{1000 * row.seconds:.4f}", replayed, floor, reached, row.bound, f"{row.error:.0e}")
        table.append((*names, *found, memory))
    lines += aligned(table, right=set(range(len(head))) - {5, 6, 11})
    failures = dict.fromkeys(f"{row.method}: {row.failure}" for row in rows if row.failure)
    return "\n".join([*lines, *failures])


def to_record(rows: Sequence[Row], ceilings: Ceilings, device: torch.device) -> dict[str, Any]:
    """Everything that the table says, with device and versions, for JSON."""
    from emalab.results import environment, git_commit  # and with it the recipes, which timing does not need

    origin = environment(device)
    try:
        origin["versions"]["triton"] = version("triton")
    except PackageNotFoundError:
        origin["versions"]["triton"] = None
    return {"commit": git_commit(), **origin, "ceilings": asdict(ceilings), "rows": [asdict(row) for row in rows]}
