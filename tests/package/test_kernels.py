"""The fused kernel against the torch path: in Triton's interpreter on the CPU, and compiled on a GPU."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from packaging.version import Version
from torch import Tensor

from emalab.choices import EMSettings
from emalab.em import EMOutput, attend, em_attention
from emalab.kernels import fused, limit
from emalab.kernels.plan import MINIMUM, Limits, block, make_plan, pays
from emalab.modules import EMAU

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU, GPU = torch.device("cpu"), torch.device("cuda")
HERE = Path(__file__)
PROCESSORS = 132


def problem(
    b: int, n: int, k: int, c: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> tuple[Tensor, Tensor]:
    """Features (b, n, c) and unit-norm bases (k, c)."""
    generator = torch.Generator().manual_seed(b + n + k + c)
    x = torch.randn(b, n, c, generator=generator)
    return x.to(device, dtype), F.normalize(torch.randn(k, c, generator=generator), dim=-1).to(device, dtype)


def rectified(x: Tensor, bases: Tensor, **settings: Any) -> EMOutput:
    """`em_attention` with the ReLU that follows it in the unit."""
    return attend(x, bases, EMSettings(relu=True, **settings))


def difference(ours: EMOutput, exact: EMOutput) -> float:
    """The largest ‖a − b‖ / ‖b‖ of the three results."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, exact, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs)


class TestPlan:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    @pytest.mark.parametrize("k", [1, 17, 64, 256])
    @pytest.mark.parametrize("c", [1, 99, 512, 1024])
    @pytest.mark.parametrize("b", [1, 16, 64, 500])
    def test_fits(self, b: int, k: int, c: int, dtype: torch.dtype) -> None:
        """All programs that wait for each other are on the device; a tile fits into its memory."""
        plan = make_plan(b, 4225, k, c, dtype, PROCESSORS)
        assert plan.programs == 1 or plan.programs * b <= PROCESSORS
        assert plan.block_c <= block(c)
        if plan.whole:
            assert plan.block_c == block(c)
            features = plan.stages * plan.block_n * plan.block_c
            held = dtype.itemsize * (features + block(k) * (plan.block_c + plan.block_n))
            assert held <= 216 * 1024

    def test_no_more_programs_than_tiles(self) -> None:
        assert make_plan(1, 257, 64, 512, torch.bfloat16, PROCESSORS).programs == 3

    @pytest.mark.parametrize(("c", "dtype"), [(500, torch.bfloat16), (1024, torch.bfloat16), (512, torch.float32)])
    def test_reads_chunks_where_tiles_do_not_fit_or_align(self, c: int, dtype: torch.dtype) -> None:
        assert make_plan(1, 100, 64, 512, torch.bfloat16, PROCESSORS).whole
        assert not make_plan(1, 100, 64, c, dtype, PROCESSORS).whole

    def test_much_work_is_launched_phase_by_phase(self) -> None:
        one, many = (make_plan(16, n, 64, 512, torch.bfloat16, PROCESSORS).one_launch for n in (33**2, 65**2))
        assert one
        assert not many

    @pytest.mark.parametrize(
        ("k", "c", "dtype", "expected"),
        [
            (64, 512, torch.bfloat16, True),
            (40, 1024, torch.float16, True),
            (128, 256, torch.bfloat16, False),
            (64, 512, torch.float32, False),
        ],
    )
    def test_pays_where_it_was_faster(self, k: int, c: int, dtype: torch.dtype, expected: bool) -> None:
        assert pays(k, c, dtype) is expected


class TestLimits:
    @pytest.mark.parametrize(
        ("x", "bases", "reason"),
        [
            (torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64), "not in torch.float64"),
            (torch.zeros(1, 2, 3), torch.zeros(257, 3), "at most 256 bases, not 257"),
            (torch.zeros(1, 2, 1025), torch.zeros(2, 1025), "at most 1024 channels, not 1025"),
            (torch.zeros(1, 2, 3), torch.zeros(2, 3, device="meta"), "bases on meta"),
        ],
        ids=["type", "bases", "channels", "devices"],
    )
    def test_are_named(self, x: Tensor, bases: Tensor, reason: str) -> None:
        assert reason in (limit(x, bases) or "")
        with pytest.raises(ValueError, match=f"cannot take this: .*{reason}"):
            em_attention(x, bases, backend="triton")

    @pytest.mark.skipif(INTERPRETED, reason="the interpreter does run on a CPU")
    def test_cpu(self) -> None:
        with pytest.raises(ValueError, match=r"on CUDA devices, not on cpu|Triton .*; backend=\"torch\" can"):
            em_attention(*problem(1, 5, 2, 3), backend="triton")

    def test_importing_the_package_does_not_import_triton(self) -> None:
        code = "import sys, emalab, emalab.kernels; assert not [m for m in sys.modules if m.split('.')[0] == 'triton']"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


class TestLauncher:
    """With a stand-in for Triton's kernel, which a CPU cannot launch."""

    def test_triton_chooses_once_for_each_kind_and_phase(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("triton.tools.tensor_descriptor", reason="the launcher needs descriptors of tensors")
        from emalab.kernels import _launch

        chosen: list[tuple[Any, ...]] = []
        launched: list[tuple[Any, ...]] = []

        class Code(dict[Any, Any]):
            def __missing__(self, grid: tuple[int, ...]) -> Any:
                return lambda *arguments: launched.append((grid, *arguments))

        names = list(inspect.signature(_launch.em_kernel.fn).parameters)

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                def choose(*arguments: Any, **constants: Any) -> Code:
                    chosen.append((grid, *arguments, constants))
                    return Code()

                return choose

        monkeypatch.setattr(_launch, "em_kernel", Kernel())
        monkeypatch.setattr(_launch, "_plan_for", lambda *_: make_plan(2, 40, 5, 24, torch.float32, 4))
        _launch._launcher.cache_clear()
        x, bases = problem(2, 40, 5, 24)
        for features, start, scale, norm, expected in (
            (x, bases, 1.0, "l2", 1),
            (x, bases, 0.5, "l2", 1),  # a number that Triton does not look at
            (x, bases, 1.0, "none", 2),
            (x, torch.stack([bases, bases]), 1.0, "l2", 3),
            (torch.empty(2 * 40 * 24 + 1)[1:].view_as(x), bases, 1.0, "l2", 4),
            (torch.empty(2, 40, 48)[..., :24], bases, 1.0, "l2", 5),
            (x.half(), bases, 1.0, "l2", 6),
            (x, bases, 1.0, "l2", 6),
        ):
            _launch.launch(features, start, 3, scale, norm, 1e-6, False, False, features.dtype)
            assert len(chosen) == expected
        _launch._launcher.cache_clear()
        assert len(chosen) + len(launched) == 8
        grid, *arguments, constants = chosen[0]
        again_grid, *again = launched[-1]
        assert again_grid == grid == (2, 2, 1)
        for option in ("num_warps", "num_stages", "launch_cooperative_grid"):
            del constants[option]
        assert names == [*names[: len(arguments)], *constants]  # what is launched by place is chosen by name
        assert again[len(arguments) :] == list(constants.values())


class TestRelu:
    def test_torch_path(self) -> None:
        x, bases = problem(2, 30, 4, 8)
        plain, relu = em_attention(x, bases), rectified(x, bases)
        torch.testing.assert_close(relu.reconstruction, plain.reconstruction.relu(), rtol=0, atol=0)
        assert (plain.reconstruction < 0).any()

    def test_unit(self) -> None:
        unit = EMAU(8, 4).eval()
        features = torch.randn(2, 8, 5, 6)
        context = rearrange(unit.attend(features).reconstruction, "b (h w) c -> b c h w", h=5)
        torch.testing.assert_close(unit(features), F.relu(features + unit.conv_out(F.relu(context))))


@pytest.mark.skipif(INTERPRETED, reason="this is the run that is asked for")
def test_in_the_interpreter() -> None:
    """Triton reads TRITON_INTERPRET when it is imported: the tests of the kernel run in a process of their own."""
    pytest.importorskip("triton", reason="the kernel's tests need Triton")
    if Version(version("triton")) < Version("3.6"):
        pytest.skip("the kernel needs Triton 3.6 or newer")
    if version("triton").startswith("3.6.") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip("the interpreter of Triton 3.6 needs numpy below 2.4")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "TestInterpreted"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
class TestInterpreted:
    @pytest.mark.parametrize("launches", ["one", "many"])
    @pytest.mark.parametrize(
        ("shape", "dtype", "bound"),
        [
            ((2, 40, 5, 24), torch.float32, 1e-5),
            ((1, 33, 17, 40), torch.float16, 1e-2),
            ((1, 20, 64, 130), torch.float32, 1e-5),
            ((1, 20, 16, 520), torch.float16, 1e-2),
            ((1, 20, 16, 100), torch.float16, 1e-2),
            ((2, 70, 60, 72), torch.float16, 1e-2),
            ((2, 1, 1, 1), torch.float32, 1e-5),
        ],
        ids=str,
    )
    def test_every_shape(self, shape: tuple[int, ...], dtype: torch.dtype, bound: float, launches: str) -> None:
        """In one launch by one program for each image; in many, by several that share its positions."""
        from emalab.kernels._launch import launch

        x, bases = problem(*shape, dtype)
        exact = rectified(x.double(), bases.double(), scale=0.5)
        plan = make_plan(*shape, dtype, 1)
        if launches == "many":
            plan = replace(plan, programs=3, block_n=16, one_launch=False)
        ours = EMOutput(*launch(x, bases, 3, 0.5, "l2", 1e-6, False, True, dtype, plan))
        assert difference(ours, exact) < bound

    @pytest.mark.parametrize(
        ("k", "c", "dtype", "bound"), [(64, 520, torch.float16, 1e-2), (200, 40, torch.float32, 1e-5)]
    )
    def test_plans_of_smaller_gpus(self, k: int, c: int, dtype: torch.dtype, bound: float) -> None:
        from emalab.kernels._launch import launch

        x, bases = problem(1, 40, k, c, dtype)
        plan = make_plan(1, 40, k, c, dtype, 1, MINIMUM)
        ours = EMOutput(*launch(x, bases, 2, 1.0, "l2", 1e-6, False, False, dtype, plan))
        assert difference(ours, em_attention(x.double(), bases.double(), num_iters=2)) < bound

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("clamp", [False, True])
    @pytest.mark.parametrize("norm", ["l2", "layer", "none"])
    @pytest.mark.parametrize("num_iters", [1, 2])
    def test_every_option(self, num_iters: int, norm: str, clamp: bool, chunked: bool) -> None:
        from emalab.kernels._launch import launch

        shape = (1, 40, 6, 28)
        x, bases = problem(*shape)
        plan = replace(make_plan(*shape, x.dtype, 1), block_c=16 if chunked else 32, whole=not chunked)
        options = {"num_iters": num_iters, "norm": norm, "clamp": clamp, "eps": 1e-4}
        ours = EMOutput(*launch(x, bases, num_iters, 1.0, norm, 1e-4, clamp, False, x.dtype, plan))
        assert difference(ours, em_attention(x.double(), bases.double(), **options)) < 1e-5

    @pytest.mark.parametrize(
        ("name", "size", "shape", "scale"),
        [
            ("saturated softmax", 1.0, (2, 20, 5, 8), 1e4),
            ("huge", 1e6, (2, 20, 5, 8), 1.0),
            ("tiny", 1e-20, (2, 20, 5, 8), 1.0),
            ("zeros", 0.0, (2, 20, 5, 8), 1.0),
            ("dead bases", 1.0, (2, 4, 12, 8), 1e3),
            ("no images", 1.0, (0, 30, 5, 8), 1.0),
            ("not a number", 1.0, (2, 20, 5, 8), 1.0),
            ("infinite", 1.0, (2, 20, 5, 8), 1.0),
        ],
    )
    @pytest.mark.parametrize("whole", [False, True])
    def test_hard_inputs(self, name: str, size: float, shape: tuple[int, ...], scale: float, whole: bool) -> None:
        from emalab.kernels._launch import launch

        x, bases = problem(*shape)
        x *= size
        if name in ("not a number", "infinite"):
            x[1, 7, 3] = float("nan" if name == "not a number" else "inf")
        theirs = em_attention(x, bases, scale=scale, backend="torch")
        plan = replace(make_plan(2, *shape[1:], x.dtype, 1), whole=whole)
        ours = launch(x, bases, 3, scale, "l2", 1e-6, False, False, x.dtype, plan)
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5, equal_nan=True)

    def test_layouts(self) -> None:
        """Channels outermost, rows of something wider, one image many times, bases of each image and in double."""
        x, bases = problem(2, 20, 5, 8)
        own = torch.stack([bases, -bases])
        wide = torch.randn(2, 20, 20)
        for features, start in (
            (x.mT.contiguous().mT, bases),
            (wide[..., 3:11], bases),
            (wide[:, ::2, :8], bases),
            (wide[:, :, 8:16], bases),
            (x[:1].expand(2, -1, -1), bases),
            (x[:, :1], bases),
            (x, own),
            (x, bases.double()),
        ):
            for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 3e-3)):
                ours = em_attention(features.to(dtype), start, backend="triton")
                assert difference(ours, em_attention(features.to(dtype).double(), start.double())) < bound

    @pytest.mark.parametrize("whole", [False, True])
    def test_channels_last_is_not_copied(self, whole: bool) -> None:
        from emalab.kernels._launch import _readable

        features = torch.randn(2, 8, 5, 6).to(memory_format=torch.channels_last)
        x = rearrange(features, "b c h w -> b (h w) c")
        assert _readable(x, whole).data_ptr() == features.data_ptr()

    @pytest.mark.parametrize("name", ["offset", "stride", "one image many times"])
    def test_what_the_copy_engine_cannot_read_is_copied(self, name: str) -> None:
        from emalab.kernels._launch import _readable

        wide = torch.randn(2, 9, 18)
        x = {"offset": wide[..., 1:9], "stride": wide[..., :8], "one image many times": wide[:1].expand(2, -1, -1)}[
            name
        ]
        copy = _readable(x, whole=True)
        assert copy.is_contiguous()
        assert torch.equal(copy, x)

    @pytest.mark.parametrize("grad", ["last", "unroll"])
    def test_a_gradient_is_refused(self, grad: str) -> None:
        x, bases = problem(2, 20, 4, 6)
        with pytest.raises(ValueError, match=f'no backward pass, and grad="{grad}" needs one; backend="torch" has it'):
            em_attention(x.requires_grad_(), bases, grad=grad, backend="triton")
        with torch.no_grad():
            ours = em_attention(x, bases, grad=grad, backend="triton")
        assert difference(ours, em_attention(x.detach().double(), bases.double())) < 1e-5

    def test_stopped_gradients(self) -> None:
        x, bases = problem(1, 20, 4, 6)
        assert not em_attention(x.requires_grad_(), bases, backend="triton").reconstruction.requires_grad

    def test_operator(self) -> None:
        x, bases = problem(1, 20, 4, 6)
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(fused, (x, bases, 2, 1.0, "l2", 1e-6, False, True, True), test_utils=checks)

    def test_compiles_in_one_graph(self) -> None:
        x, bases = problem(1, 20, 4, 6)
        attend = torch.compile(
            lambda x: rectified(x, bases, backend="triton").reconstruction + 1,
            fullgraph=True,
            backend="aot_eager",
        )
        expected = rectified(x, bases, backend="torch").reconstruction + 1
        torch.testing.assert_close(attend(x), expected)

    def test_autocast(self) -> None:
        x, bases = problem(1, 40, 4, 16)
        with torch.autocast("cpu", torch.float16):
            ours = em_attention(x, bases, backend="triton")
        assert ours.reconstruction.dtype == torch.float16
        assert 0 < difference(ours, em_attention(x, bases)) < 1e-2

    def test_bfloat16_is_refused(self) -> None:
        with pytest.raises(ValueError, match="interpreter does not multiply bfloat16"):
            em_attention(*problem(1, 5, 2, 3, torch.bfloat16), backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGPU:
    @pytest.mark.parametrize("launches", ["one", "many"])
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 2e-5)], ids=str
    )
    @pytest.mark.parametrize(
        "shape",
        [
            (2, 1000, 64, 512),
            (3, 517, 17, 99),
            (16, 400, 64, 256),
            (140, 70, 64, 512),
            (1, 300, 256, 1024),
            (2, 9, 3, 5),
            (2, 300, 33, 200),
            (3, 200, 64, 504),
            (2, 300, 128, 256),
        ],
        ids=str,
    )
    def test_every_shape(self, shape: tuple[int, ...], dtype: torch.dtype, bound: float, launches: str) -> None:
        from emalab.kernels._launch import launch

        x, bases = problem(*shape, dtype, GPU)
        exact = em_attention(x.double(), bases.double(), scale=0.5)
        processors = torch.cuda.get_device_properties(GPU).multi_processor_count
        plan = replace(make_plan(*shape, dtype, processors), one_launch=launches == "one")
        ours = EMOutput(*launch(x, bases, 3, 0.5, "l2", 1e-6, False, False, dtype, plan))
        assert difference(ours, exact) < bound

    @pytest.mark.parametrize("limits", [MINIMUM, Limits((8, 0), 163 * 1024), Limits((12, 0), 99 * 1024)], ids=str)
    @pytest.mark.parametrize(("k", "c"), [(64, 512), (17, 99), (256, 1024), (64, 128)])
    @pytest.mark.parametrize(
        ("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float32, 2e-5)], ids=str
    )
    def test_plans_of_smaller_gpus(self, limits: Limits, k: int, c: int, dtype: torch.dtype, bound: float) -> None:
        """Forced here, since such a GPU is rarely at hand; what they take of it is in test_kernel_targets.py."""
        from emalab.kernels._launch import launch

        shape = (3, 517, k, c)
        x, bases = problem(*shape, dtype, GPU)
        processors = torch.cuda.get_device_properties(GPU).multi_processor_count
        plan = make_plan(*shape, dtype, processors, limits)
        ours = EMOutput(*launch(x, bases, 3, 0.5, "l2", 1e-6, False, False, dtype, plan))
        assert difference(ours, em_attention(x.double(), bases.double(), scale=0.5)) < bound

    def test_auto_takes_the_kernel_and_repeats_it_exactly(self) -> None:
        x, bases = problem(4, 1089, 64, 512, torch.bfloat16, GPU)
        results = [em_attention(x, bases, backend=backend) for backend in ("auto", "triton", "triton")]
        for left, middle, right in zip(*results, strict=True):
            assert torch.equal(left, middle)
            assert torch.equal(middle, right)

    def test_code_that_is_kept_serves_only_what_it_was_made_for(self) -> None:
        """The second call of a kind goes past Triton's choice of code; what it chooses by is not the same for these."""
        x, bases = problem(2, 300, 20, 99, torch.float16, GPU)
        wide = torch.empty(x.numel() + 1, dtype=x.dtype, device=GPU)
        shifted = wide[1:].view_as(x).copy_(x)  # no longer at a multiple of 16 bytes
        own = torch.stack([bases, bases.flip(0)])
        for features, start, settings in (
            (x, bases, {}),
            (shifted, bases, {}),
            (x, own, {}),
            (x, bases.float(), {"num_iters": 2, "scale": 0.5}),
            (x[:, :200], bases, {"norm": "none"}),
            (x, bases, {"clamp": True, "eps": 1e-3}),
        ):
            exact = em_attention(features.double(), start.double(), **settings)
            for _ in range(3):
                assert difference(em_attention(features, start, backend="triton", **settings), exact) < 2e-3

    def test_double_takes_the_torch_path(self) -> None:
        x, bases = problem(1, 50, 4, 8, torch.float64, GPU)
        assert torch.equal(em_attention(x, bases).bases, em_attention(x, bases, backend="torch").bases)

    def test_cuda_graph(self) -> None:
        x, bases = problem(2, 1089, 64, 512, torch.bfloat16, GPU)
        em_attention(x, bases)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = em_attention(x, bases)
        x.copy_(x.flip(1) * 0.5)
        for _ in range(2):
            graph.replay()
        for left, right in zip(recorded, em_attention(x, bases), strict=True):
            assert torch.equal(left, right)

    def test_compile(self) -> None:
        x, bases = problem(2, 400, 64, 256, torch.bfloat16, GPU)
        compiled = torch.compile(lambda x: rectified(x, bases).reconstruction * 2, fullgraph=True)
        assert torch.equal(compiled(x), rectified(x, bases).reconstruction * 2)

    def test_two_streams(self) -> None:
        x, bases = problem(16, 1089, 64, 512, torch.bfloat16, GPU)
        expected = em_attention(x, bases)
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        results = []
        for _ in range(10):
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(em_attention(x, bases))
        torch.cuda.synchronize()
        for result in results:
            for left, right in zip(result, expected, strict=True):
                assert torch.equal(left, right)

    def test_autocast(self) -> None:
        """Types and values are those of the torch path."""
        x, bases = problem(2, 400, 16, 64, torch.float32, GPU)
        with torch.autocast("cuda", torch.bfloat16):
            ours, theirs = (em_attention(x, bases, backend=backend) for backend in ("auto", "torch"))
        assert [t.dtype for t in ours] == [t.dtype for t in theirs]
        assert difference(ours, theirs) < 2e-2

    @pytest.mark.parametrize("grad", ["last", "unroll"])
    def test_gradients_take_the_torch_path(self, grad: str) -> None:
        found = []
        for backend in ("auto", "torch"):
            x, bases = problem(2, 300, 64, 512, torch.bfloat16, GPU)
            result = em_attention(x.requires_grad_(), bases, grad=grad, backend=backend)
            found.append(torch.autograd.grad(result.reconstruction.float().square().sum(), x)[0])
        assert torch.equal(*found)

    def test_training_step_of_the_unit(self) -> None:
        """Output and moving average of a unit under autocast, against its float32 step on the CPU."""
        torch.manual_seed(0)
        unit, features = EMAU(64, 16), torch.randn(2, 64, 20, 20)
        other = EMAU(64, 16).cuda()
        other.load_state_dict(unit.state_dict())
        expected = unit(features)
        with torch.autocast("cuda", torch.bfloat16):
            found = other(features.cuda().to(memory_format=torch.channels_last))
        assert float((found.float().cpu() - expected).norm() / expected.norm()) < 2e-2
        torch.testing.assert_close(other.bases.cpu(), unit.bases, rtol=0, atol=1e-2)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
    def test_the_device_of_the_features_counts(self) -> None:
        x, bases = problem(2, 400, 16, 64, torch.bfloat16, torch.device("cuda", 1))
        assert difference(em_attention(x, bases), em_attention(x.double(), bases.double())) < 1e-2
