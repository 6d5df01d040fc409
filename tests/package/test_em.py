"""The functional core: the mathematics of EM attention, its limits, its gradients, and parity with recorded results."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, VonMises

from emalab import EMAU
from emalab.em import e_step, em_attention, log_likelihood, m_step, normalize_bases, reconstruct

CORE = np.load(Path(__file__).parents[1] / "reference" / "em_core.npz")
CASES = sorted({key.split("/")[0] for key in CORE.files})
EPS = 1e-6

Compare = Callable[..., None]


def problem(
    seed: int = 0,
    b: int = 2,
    n: int = 30,
    k: int = 5,
    c: int = 8,
    size: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Features (b, n, c) of about the given size and unit-norm bases (k, c)."""
    generator = torch.Generator().manual_seed(seed)
    x = size * torch.randn(b, n, c, generator=generator, dtype=torch.float64)
    return x.to(dtype), F.normalize(torch.randn(k, c, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Any shape, down to a single position, base or channel, and feature sizes over four orders of magnitude."""
    shape = {axis: draw(st.integers(1, most), label=axis) for axis, most in {"b": 3, "n": 40, "k": 12, "c": 16}.items()}
    size = 10 ** draw(st.floats(-2, 2), label="log10 size")
    return problem(draw(st.integers(0, 2**32), label="seed"), **shape, size=size)


scales = st.floats(0.05, 50)
quick = settings(max_examples=40, deadline=None)


class TestSteps:
    @quick
    @given(problems(), scales)
    def test_responsibilities_are_distributions(self, drawn: tuple[Tensor, Tensor], scale: float) -> None:
        x, bases = drawn
        z = em_attention(x, bases, scale=scale).responsibilities
        assert (z >= 0).all()
        torch.testing.assert_close(z.sum(dim=-1), torch.ones(x.shape[:2], dtype=x.dtype))

    def test_e_step_by_its_definition(self) -> None:
        x, bases = problem()
        weights = torch.exp(2.0 * x @ bases.T)
        expected = weights / weights.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(e_step(x, bases.expand(2, -1, -1), scale=2.0), expected)

    def test_m_step_is_a_weighted_mean(self) -> None:
        x, _ = problem(b=2, n=7, c=3)
        z = torch.rand(2, 7, 4, dtype=x.dtype)
        bases = m_step(x, z, eps=0.0)
        for image in range(2):
            for base in range(4):
                expected = np.average(x[image].numpy(), axis=0, weights=z[image, :, base].numpy())
                np.testing.assert_allclose(bases[image, base], expected, rtol=1e-12)

    @quick
    @given(problems())
    def test_normalized_bases(self, drawn: tuple[Tensor, Tensor]) -> None:
        x, _ = drawn
        assume(x.shape[-1] > 1)
        torch.testing.assert_close(normalize_bases(x, "l2", eps=0.0), F.normalize(x, dim=-1))
        layer = normalize_bases(x, "layer", eps=0.0)
        torch.testing.assert_close(layer.mean(dim=-1), torch.zeros(x.shape[:2], dtype=x.dtype), rtol=0, atol=1e-9)
        torch.testing.assert_close(layer.var(dim=-1, correction=0), torch.ones(x.shape[:2], dtype=x.dtype))
        assert normalize_bases(x, "none") is x

    @quick
    @given(problems(), scales)
    def test_positions_become_mixtures_of_the_bases(self, drawn: tuple[Tensor, Tensor], scale: float) -> None:
        result = em_attention(*drawn, scale=scale)
        for image in range(len(drawn[0])):
            for n, weights in enumerate(result.responsibilities[image]):
                expected = np.average(result.bases[image].numpy(), axis=0, weights=weights.numpy())
                np.testing.assert_allclose(result.reconstruction[image, n], expected, rtol=0, atol=1e-12)

    def test_the_rank_reaches_k(self) -> None:
        x, bases = problem(n=40, k=5, c=16)
        rank = torch.linalg.matrix_rank(em_attention(x, bases).reconstruction, rtol=1e-10)
        assert rank.tolist() == [5, 5]

    def test_old_responsibilities_mix_new_bases(self) -> None:
        x, bases = problem()
        before = em_attention(x, bases, num_iters=2).bases
        last = em_attention(x, bases, num_iters=3)
        torch.testing.assert_close(last.responsibilities, e_step(x, before), rtol=0, atol=0)
        torch.testing.assert_close(last.reconstruction, reconstruct(last.responsibilities, last.bases), rtol=0, atol=0)
        assert not torch.allclose(last.responsibilities, e_step(x, last.bases), atol=1e-4)


class TestObjective:
    """EM climbs `log_likelihood`; its epsilons may cost λ·eps·(N + K·eps) an iteration, as the book proves."""

    @staticmethod
    def history(x: Tensor, bases: Tensor, scale: float, norm: str = "l2", eps: float = EPS, steps: int = 8) -> Tensor:
        """Objective before and after each iteration: (iterations + 1, b)."""
        values = [log_likelihood(x, bases, scale)]
        for _ in range(steps):
            bases = em_attention(x, bases, num_iters=1, scale=scale, norm=norm, eps=eps).bases
            values.append(log_likelihood(x, bases, scale))
        return torch.stack(values)

    @settings(max_examples=100, deadline=None)
    @given(problems(), scales, st.booleans(), st.floats(0, 1))
    def test_never_decreases(self, drawn: tuple[Tensor, Tensor], scale: float, unit: bool, radius: float) -> None:
        x, bases = drawn
        if unit:
            x = F.normalize(x, dim=-1)
        values = self.history(x, radius * bases, scale)  # bases inside the ball: what a moving average stores
        allowed = scale * EPS * (x.shape[1] + len(bases) * EPS) + 1e-12 * values.abs().max()
        assert values.diff(dim=0).min() >= -allowed

    @quick
    @given(problems(), scales)
    def test_layer_norm_climbs_too_once_the_bases_are_layer_normalized(
        self, drawn: tuple[Tensor, Tensor], scale: float
    ) -> None:
        x, bases = drawn
        assume(x.shape[-1] > 1)
        start = normalize_bases(bases, "layer", eps=1e-12)
        values = self.history(x, start, scale, norm="layer", eps=1e-12)
        allowed = scale * x.shape[1] * x.shape[-1] * 1e-6 + 1e-12 * values.abs().max()
        assert values.diff(dim=0).min() >= -allowed

    def test_falls_without_normalization(self) -> None:
        x, bases = problem()
        values = self.history(F.normalize(x, dim=-1), bases, scale=4.0, norm="none")
        assert (values.diff(dim=0)[:3] < -0.1).all()

    def test_stops_at_a_fixed_point(self) -> None:
        x, bases = problem(n=60, k=3, c=4)
        once = em_attention(x, bases, num_iters=2000, scale=4.0).bases
        torch.testing.assert_close(em_attention(x, once, num_iters=1, scale=4.0).bases, once, rtol=0, atol=1e-9)

    def test_is_a_mixture_of_von_mises_on_the_circle(self) -> None:
        """Against torch.distributions: the difference is a constant that does not depend on the bases."""
        generator = torch.Generator().manual_seed(0)
        angles = 6 * torch.rand(50, generator=generator, dtype=torch.float64)
        scale = 3.0

        def gap(base_angles: Tensor) -> Tensor:
            mixture = MixtureSameFamily(
                Categorical(logits=torch.zeros(4, dtype=torch.float64)), VonMises(base_angles, torch.tensor(scale))
            )
            x, bases = (torch.stack([a.cos(), a.sin()], dim=-1) for a in (angles, base_angles))
            return mixture.log_prob(angles).sum() - log_likelihood(x[None], bases, scale)

        gaps = torch.cat([gap(6 * torch.rand(4, generator=generator, dtype=torch.float64)) for _ in range(5)])
        constant = -50 * (math.log(2 * math.pi) + torch.special.i0(torch.tensor(scale).double()).log())
        torch.testing.assert_close(gaps, constant.expand(5), rtol=0, atol=1e-4)  # VonMises has a float32 Bessel series
        torch.testing.assert_close(gaps, gaps[:1].expand(5), rtol=0, atol=1e-10)

    def test_is_a_mixture_of_von_mises_fisher_on_the_sphere(self) -> None:
        """In three dimensions the density is elementary: λ / (4π sinh λ) · exp(λ xᵀμ)."""
        x, bases = problem(c=3)
        x, scale = F.normalize(x, dim=-1), 2.5
        normalizer = scale / (4 * math.pi * math.sinh(scale))
        density = (normalizer * torch.exp(scale * x @ bases.T)).mean(dim=-1)
        expected = log_likelihood(x, bases, scale) + x.shape[1] * math.log(normalizer)
        torch.testing.assert_close(density.log().sum(dim=-1), expected)

    @quick
    @given(st.integers(0, 2**32), st.integers(1, 4))
    def test_large_scale_is_spherical_k_means(self, seed: int, num_iters: int) -> None:
        x, bases = problem(seed, b=1)
        x = F.normalize(x, dim=-1)
        centers = bases.clone()
        for _ in range(num_iters):
            similarity = x[0] @ centers.T
            best = similarity.topk(2, dim=-1).values
            assume((best[:, 0] - best[:, 1]).min() > 1e-3)
            label = similarity.argmax(dim=-1)
            centers = torch.stack([F.normalize(x[0, label == i].sum(dim=0), dim=0) for i in range(len(bases))])
        result = em_attention(x, bases, num_iters=num_iters, scale=1e5)
        hard = F.one_hot(label, len(bases)).double()
        torch.testing.assert_close(result.responsibilities[0], hard, rtol=0, atol=1e-30)
        torch.testing.assert_close(result.bases[0], centers, rtol=0, atol=1e-4)


class TestSymmetries:
    @quick
    @given(problems(), scales, st.randoms(use_true_random=False))
    def test_positions_commute_and_bases_relabel(
        self, drawn: tuple[Tensor, Tensor], scale: float, random: Random
    ) -> None:
        x, bases = drawn
        scale = min(scale, 5 / float(x.norm(dim=-1).max()))  # keep rounding from being amplified
        positions, labels = (torch.tensor(random.sample(range(m), m)) for m in (x.shape[1], len(bases)))
        plain = em_attention(x, bases, scale=scale)
        moved = em_attention(x[:, positions], bases, scale=scale)
        torch.testing.assert_close(moved.reconstruction, plain.reconstruction[:, positions])
        torch.testing.assert_close(moved.bases, plain.bases)
        relabeled = em_attention(x, bases[labels], scale=scale)
        torch.testing.assert_close(relabeled.reconstruction, plain.reconstruction)
        torch.testing.assert_close(relabeled.responsibilities, plain.responsibilities[..., labels])
        torch.testing.assert_close(relabeled.bases, plain.bases[:, labels])

    def test_images_do_not_see_each_other(self) -> None:
        x, bases = problem(b=3)
        together = em_attention(x, bases)
        for image in range(3):
            alone = em_attention(x[image : image + 1], bases)
            torch.testing.assert_close(alone.reconstruction[0], together.reconstruction[image])

    def test_rotation_of_the_channels(self) -> None:
        x, bases = problem(c=8)
        rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=x.dtype, generator=torch.Generator().manual_seed(5)))
        plain, rotated = em_attention(x, bases), em_attention(x @ rotation, bases @ rotation)
        torch.testing.assert_close(rotated.reconstruction, plain.reconstruction @ rotation)
        torch.testing.assert_close(rotated.responsibilities, plain.responsibilities)

    def test_one_set_of_bases_for_all_or_one_per_image(self) -> None:
        x, shared = problem(b=3)
        for left, right in zip(em_attention(x, shared), em_attention(x, shared.repeat(3, 1, 1)), strict=True):
            assert torch.equal(left, right)
        own = torch.stack([shared, -shared, shared.flip(0)])
        result = em_attention(x, own)
        for image in range(3):
            alone = em_attention(x[image : image + 1], own[image])
            torch.testing.assert_close(result.reconstruction[image], alone.reconstruction[0])


def nudged(values: Tensor, generator: torch.Generator) -> Tensor:
    """The values, each larger or smaller by half a unit in the last place of float32."""
    signs = 2 * torch.randint(2, values.shape, generator=generator) - 1
    return values * (1 + 2.0**-24 * signs)


class TestPrecision:
    @pytest.mark.parametrize("norm", ["l2", "layer", "none"])
    @pytest.mark.parametrize("num_iters", [1, 3, 8])
    def test_float32_follows_float64(self, norm: str, num_iters: int) -> None:
        """A sum of m products has the rounding errors of an exact sum whose terms are off by m·2⁻²⁴.

        The longest sums of an iteration are over N positions and over C channels. So float32 may be as far off as
        N + C times what a change of the inputs by 2⁻²⁴ does to the float64 result: the problem's own conditioning,
        which iterations worsen. Over 60 seeds it was off by 9 times that at most.
        """
        n, c = 200, 32
        x, bases = problem(n=n, k=16, c=c)
        exact = em_attention(x, bases, num_iters=num_iters, norm=norm)
        single = em_attention(x.float(), bases, num_iters=num_iters, norm=norm)
        generator = torch.Generator().manual_seed(1)
        moved = [
            em_attention(nudged(x, generator), nudged(bases, generator), num_iters=num_iters, norm=norm)
            for _ in range(5)
        ]
        for name, left, right, *others in zip(exact._fields, single, exact, *moved, strict=True):
            assert left.dtype == torch.float32, name
            change = max(float((other - right).abs().max()) for other in others)
            assert float((left.double() - right).abs().max()) < (n + c) * change, name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        x, bases = problem(n=200, k=16, c=32)
        exact, half = em_attention(x, bases), em_attention(x.to(dtype), bases)
        assert half.reconstruction.dtype == dtype
        error = (half.reconstruction.double() - exact.reconstruction).norm() / exact.reconstruction.norm()
        assert error < 2e-2

    def test_autocast(self) -> None:
        x, bases = problem(n=200, k=16, c=32, dtype=torch.float32)
        exact = em_attention(x, bases)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = em_attention(x, bases)
        error = (low.reconstruction.float() - exact.reconstruction).norm() / exact.reconstruction.norm()
        assert 0 < error < 2e-2  # 0 would mean that autocast did nothing

    def test_strided_features(self) -> None:
        x, bases = problem()
        strided = rearrange(rearrange(x, "b n c -> b c n").contiguous(), "b c n -> b n c")
        assert not strided.is_contiguous()
        torch.testing.assert_close(em_attention(strided, bases).reconstruction, em_attention(x, bases).reconstruction)


HARD_INPUTS: dict[str, tuple[float, dict[str, Any]]] = {
    "saturated softmax": (1e4, {"size": 1.0}),
    "huge features": (1.0, {"size": 1e6}),
    "tiny features": (1.0, {"size": 1e-20}),
    "dead bases": (1e3, {"n": 4, "k": 12}),
    "fewer positions than bases": (1.0, {"n": 3, "k": 16}),
    "all-zero images": (1.0, {"size": 0.0}),
    "one position, one base, one channel": (1.0, {"n": 1, "k": 1, "c": 1}),
}


class TestHardInputs:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("norm", ["l2", "layer", "none"])
    @pytest.mark.parametrize("name", HARD_INPUTS)
    def test_no_nan_in_results_or_gradients(self, name: str, norm: str, dtype: torch.dtype) -> None:
        scale, arguments = HARD_INPUTS[name]
        x, bases = (t.requires_grad_() for t in problem(**arguments, dtype=dtype))
        result = em_attention(x, bases, scale=scale, norm=norm, grad="unroll")
        gradients = torch.autograd.grad(result.reconstruction.sum(), [x, bases])
        for tensor in (*result, *gradients):
            assert tensor.isfinite().all()

    def test_zero_image_gives_zero(self) -> None:
        x, bases = problem(size=0.0)
        result = em_attention(x, bases)
        assert result.reconstruction.count_nonzero() == 0
        torch.testing.assert_close(result.responsibilities, torch.full((2, 30, 5), 1 / 5, dtype=x.dtype))

    def test_a_base_that_nobody_chooses_becomes_zero(self) -> None:
        x, bases = problem(b=1, k=3)
        x = x.abs()
        bases = torch.stack([torch.full((8,), 8**-0.5), torch.eye(8)[0], torch.full((8,), -(8**-0.5))]).double()
        result = em_attention(x, bases, num_iters=1, scale=1e3)
        assert result.bases[0, 2].norm() < 1e-6
        torch.testing.assert_close(result.bases[0, 0].norm(), torch.tensor(1.0).double(), rtol=0, atol=1e-5)


class TestGradients:
    @pytest.mark.parametrize("norm", ["l2", "layer", "none"])
    def test_unroll_is_the_true_gradient(self, norm: str) -> None:
        x, bases = (t.requires_grad_() for t in problem(n=6, k=3, c=4))
        assert torch.autograd.gradcheck(
            lambda x, bases: tuple(em_attention(x, bases, norm=norm, grad="unroll")), (x, bases)
        )

    def test_last_is_unroll_for_one_iteration(self) -> None:
        gradients = []
        for grad in ("last", "unroll"):
            x, bases = (t.requires_grad_() for t in problem())
            loss = em_attention(x, bases, num_iters=1, grad=grad).reconstruction.square().sum()
            gradients.append(torch.autograd.grad(loss, [x, bases]))
        for left, right in zip(*gradients, strict=True):
            assert torch.equal(left, right)
            assert left.abs().max() > 0

    def test_last_goes_through_one_iteration_alone(self) -> None:
        x, bases = (t.requires_grad_() for t in problem())
        loss = em_attention(x, bases, num_iters=3, grad="last").reconstruction.square().sum()
        (actual,) = torch.autograd.grad(loss, [x])
        warm = em_attention(x, bases, num_iters=2).bases
        loss = em_attention(x, warm, num_iters=1, grad="unroll").reconstruction.square().sum()
        (expected,) = torch.autograd.grad(loss, [x])
        torch.testing.assert_close(actual, expected)
        loss = em_attention(x, bases, num_iters=3, grad="unroll").reconstruction.square().sum()
        (through_all,) = torch.autograd.grad(loss, [x])
        assert not torch.allclose(actual, through_all, rtol=1e-3)

    def test_unrolling_tends_to_the_implicit_gradient(self) -> None:
        """At a fixed point μ = M(μ, x), where dμ/dx = (I − J)⁻¹ ∂M/∂x and the eigenvalues of J lie in [0, 1)."""
        x, bases = problem(b=1, n=60, k=3, c=4)

        def iterate(bases: Tensor, x: Tensor) -> Tensor:
            return em_attention(x, bases, num_iters=1, scale=4.0, grad="unroll").bases

        mu = em_attention(x, bases, num_iters=2000, scale=4.0).bases
        jacobian = torch.func.jacrev(iterate)(mu, x).reshape(12, 12)
        eigenvalues = torch.linalg.eigvals(jacobian)
        assert eigenvalues.imag.abs().max() < 1e-6
        assert eigenvalues.real.min() > -1e-6
        assert (radius := eigenvalues.real.max()) < 1

        x, start = x.requires_grad_(), mu.clone().requires_grad_()
        weights = torch.linspace(-1, 1, mu.numel(), dtype=x.dtype).view_as(mu)
        (direct,) = torch.autograd.grad(iterate(start, x), x, weights)
        sent = torch.linalg.solve(torch.eye(12, dtype=x.dtype) - jacobian.T, weights.flatten()).view_as(mu)
        (implicit,) = torch.autograd.grad(iterate(start, x), x, sent)
        torch.testing.assert_close(direct, self.unrolled(x, mu, weights, 1))
        for num_iters in (10, 40):
            error = (self.unrolled(x, mu, weights, num_iters) - implicit).norm() / implicit.norm()
            assert error < 3 * radius**num_iters

    @staticmethod
    def unrolled(x: Tensor, bases: Tensor, weights: Tensor, num_iters: int) -> Tensor:
        result = em_attention(x, bases, num_iters=num_iters, scale=4.0, grad="unroll").bases
        return torch.autograd.grad(result, x, weights)[0]

    def test_stop_gives_none(self) -> None:
        x, bases = (t.requires_grad_() for t in problem())
        assert not any(t.requires_grad for t in em_attention(x, bases, grad="stop"))

    def test_results_do_not_depend_on_how_far_gradients_flow(self) -> None:
        x, bases = problem()
        stop, last, unroll = (em_attention(x, bases, grad=grad) for grad in ("stop", "last", "unroll"))
        for a, b, c in zip(stop, last, unroll, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


class TestBadInput:
    @pytest.mark.parametrize(
        ("x", "bases", "options", "error", "names"),
        [
            ((2, 3, 4, 5), (6, 5), {}, ValueError, r"\(2, 3, 4, 5\)"),
            ((2, 30, 8), (1, 1, 5, 8), {}, ValueError, r"\(1, 1, 5, 8\)"),
            ((2, 30, 8), (5, 7), {}, ValueError, r"\(5, 7\).*channels"),
            ((2, 30, 8), (3, 5, 8), {}, ValueError, r"\(3, 5, 8\).*per image"),
            ((2, 0, 8), (5, 8), {}, ValueError, r"position.*\(2, 0, 8\)"),
            ((2, 30, 8), (0, 8), {}, ValueError, r"base.*\(0, 8\)"),
            ((2, 30, 8), (5, 8), {"num_iters": 0}, ValueError, "num_iters.*0"),
            ((2, 30, 8), (5, 8), {"norm": "L2"}, ValueError, "norm must be one of l2, layer, none; got 'L2'"),
            ((2, 30, 8), (5, 8), {"grad": "full"}, ValueError, "grad must be one of stop, last, unroll; got 'full'"),
            ((2, 30, 8), (5, 8), {"backend": "cuda"}, ValueError, "backend must be one of auto.*'cuda'"),
        ],
    )
    def test_message_names_the_value(
        self, x: tuple[int, ...], bases: tuple[int, ...], options: dict[str, Any], error: type[Exception], names: str
    ) -> None:
        with pytest.raises(error, match=names):
            em_attention(torch.zeros(x), torch.zeros(bases), **options)

    def test_integer_features(self) -> None:
        with pytest.raises(TypeError, match=r"uint8.*x\.float\(\)"):
            em_attention(torch.zeros(1, 4, 3, dtype=torch.uint8), torch.zeros(2, 3))


class TestParity:
    """Arrays recorded in float64 from the authors' released implementation; see reference/README.md."""

    @staticmethod
    def load(case: str) -> tuple[Tensor, Tensor]:
        x = rearrange(torch.from_numpy(CORE[f"{case}/x"]), "b c h w -> b (h w) c")
        return x, rearrange(torch.from_numpy(CORE[f"{case}/mu0"]), "1 c k -> k c")

    @pytest.mark.parametrize("num_iters", [1, 2, 3, 8])
    @pytest.mark.parametrize("case", CASES)
    def test_official(self, case: str, num_iters: int, compare: Compare) -> None:
        result = em_attention(*self.load(case), num_iters=num_iters)
        recorded = {name: CORE[f"{case}/T{num_iters}/{name}"] for name in ("z", "mu", "recon")}
        compare(f"EM loop {case}: responsibilities", result.responsibilities, recorded["z"])
        compare(f"EM loop {case}: bases", rearrange(result.bases, "b k c -> b c k"), recorded["mu"])
        h = recorded["recon"].shape[-2]
        actual = rearrange(result.reconstruction, "b (h w) c -> b c h w", h=h)
        compare(f"EM loop {case}: reconstruction", actual, recorded["recon"])

    @pytest.mark.parametrize("case", CASES)
    def test_mmsegmentation(self, case: str, compare: Compare) -> None:
        """Its epsilons clamp instead of adding: a gap of 1e-6, unless a base is dead, which it keeps at unit norm."""
        recorded = rearrange(torch.from_numpy(CORE[f"{case}/T3/recon_mmseg"]), "b c h w -> b (h w) c")
        theirs = em_attention(*self.load(case), eps=1e-12, clamp=True)
        compare(f"EM loop {case}: reconstruction of mmsegmentation", theirs.reconstruction, recorded)
        gap = (em_attention(*self.load(case)).reconstruction - recorded).abs().max()
        if case == "h_dead":
            assert gap > 0.1
        else:
            assert gap < 2e-6


def test_a_learned_scale_takes_the_torch_path() -> None:
    x, bases = torch.randn(2, 7, 3), torch.randn(4, 3)
    ours = em_attention(x, bases, scale=torch.tensor(2.0))
    for one, other in zip(ours, em_attention(x, bases, scale=2.0), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="takes scale as a number"):
        em_attention(x, bases, scale=torch.tensor(2.0), backend="triton")


class TestFloat16:
    """What fits float16 in the result is not lost on the way to it, where sums over positions do not fit."""

    def test_a_dominant_base(self) -> None:
        x = torch.full((1, 4225, 8), 20.0, dtype=torch.float16)
        responsibilities = torch.zeros(1, 4225, 2, dtype=torch.float16)
        responsibilities[..., 0] = 1
        bases = m_step(x, responsibilities)
        torch.testing.assert_close(bases[0, 0], torch.full((8,), 20.0, dtype=torch.float16), rtol=2e-3, atol=0)
        assert not bases[0, 1].any()  # nobody chose it

    @pytest.mark.parametrize("norm", ["l2", "layer", "none"])
    @pytest.mark.parametrize("size", [1.0, 300.0, 1000.0])
    def test_is_finite_where_float32_fits(self, size: float, norm: str) -> None:
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            x = size * torch.randn(2, 1089, 64, generator=generator)
            bases = normalize_bases(torch.randn(8, 64, generator=generator))
            exact, half = (
                em_attention(x, bases, norm=norm, scale=1e-2),
                em_attention(x.half(), bases.half(), norm=norm, scale=1e-2),
            )
            assert all(result.abs().max() < 65504 for result in exact)
            assert all(result.isfinite().all() for result in half)

    def test_the_unit(self) -> None:
        torch.manual_seed(0)
        for seed in range(5):
            features = 300 * torch.randn(1, 64, 33, 33, generator=torch.Generator().manual_seed(seed))
            unit = EMAU(64, 8).eval()
            if unit(features).abs().max() < 65504:
                assert unit.half()(features.half()).isfinite().all()
