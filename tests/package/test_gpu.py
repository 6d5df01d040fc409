"""What only a GPU shows: recorded steps, reduced precision, several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CPU, scenes, tiny_recipe
from torch import Tensor
from waiting import HANGS

from emalab.checkpoints import load_training_state
from emalab.em import em_attention
from emalab.recipes import Recipe
from emalab.trainer import RunOptions, Trainer, train

GPU = RunOptions(accelerator="cuda", num_workers=0, progress=False)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def five_steps(recipe: Recipe, out: Path, options: RunOptions) -> tuple[Tensor, Tensor]:
    """Losses (5,) of the first steps and bases (k, c) after them."""
    trainer = Trainer(recipe, out, options)
    trainer.model.train()
    data = scenes(4, "train", size=32)
    images = torch.stack([data[index].image for index in range(4)])
    masks = torch.stack([data[index].mask for index in range(4)])
    losses = torch.stack([trainer.step(images, masks) for _ in range(5)])
    return losses.cpu(), trainer.model.context.bases.cpu()


@pytest.mark.parametrize("execution", ["cuda_graph", "compile"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_by_graph_are_eager_steps(
    precision: str, execution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TF32 rounds where cuDNN convolves, and not where the compiler makes that a product; AdamW magnifies roundings.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    optim = {"optimizer": "sgd", "lr": 0.05}
    eager, recorded = (
        five_steps(tiny_recipe(precision=precision, execution=way, optim=optim), tmp_path / way, GPU)
        for way in ("eager", execution)
    )
    tolerance = {"rtol": 2e-2, "atol": 1e-2} if precision == "bf16-mixed" else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(recorded, eager, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_recording_leaves_the_batch_alone(tmp_path: Path) -> None:
    """Later batches are written into the graph's own inputs, not into those of the caller."""
    trainer = Trainer(tiny_recipe(execution="cuda_graph"), tmp_path, GPU)
    trainer.model.train()
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8, device="cuda")
    trainer.step(images, masks)
    trainer.step(images + 1, masks + 1)
    assert not images.any()
    assert not masks.any()


@pytest.mark.parametrize("execution", ["cuda_graph", "compile"])
def test_graphs_do_not_mind_the_threads_of_a_loader(execution: str, tmp_path: Path) -> None:
    weights = []
    for workers in (0, 2):
        options = replace(GPU, num_workers=workers)
        result = train(tiny_recipe(execution=execution), tmp_path / str(workers), options, eval_data=scenes())
        weights.append(result.model.state_dict())
    for key in weights[0]:
        torch.testing.assert_close(weights[1][key], weights[0][key], rtol=1e-3, atol=1e-4, msg=key)


def test_steps_are_those_of_a_cpu(tmp_path: Path) -> None:
    recipe = tiny_recipe(precision="64-true", optim={"optimizer": "sgd", "lr": 0.1})
    for ours, theirs in zip(
        five_steps(recipe, tmp_path / "gpu", GPU), five_steps(recipe, tmp_path / "cpu", CPU), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=str)
def test_em_attention_against_double_precision(dtype: torch.dtype, atol: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 400, 64, generator=generator, dtype=torch.float64).to(dtype).double()
    bases = torch.nn.functional.normalize(torch.randn(16, 64, generator=generator, dtype=torch.float64)).to(dtype)
    exact = em_attention(x, bases.double())
    ours = em_attention(x.to("cuda", dtype), bases.cuda())
    for name in ("reconstruction", "responsibilities", "bases"):
        torch.testing.assert_close(
            getattr(ours, name).double().cpu(), getattr(exact, name), rtol=0, atol=atol, msg=name
        )


@pytest.mark.parametrize("execution", ["eager", "cuda_graph", "compile"])
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_are_one_with_their_batches_together(devices: int, execution: str, tmp_path: Path) -> None:
    """Batch statistics and bases are shared, so the runs differ by the order of sums alone."""
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA devices")
    flags = (
        "--precision 64-true --optim.optimizer sgd --optim.lr 0.05 --optim.iterations 5 --optim.batch-size 8 "
        "--data.crop-size 40 40 --data.scale-range 0.4 1.0 --accelerator cuda --num-workers 0 --no-progress "
        f"--execution {execution}"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    states = []
    for count in (1, devices):
        out = tmp_path / str(count)
        command = [*torchrun, "--nproc-per-node", str(count), "-m", "emalab", "train", "shapes-tiny", *flags.split()]
        done = subprocess.run(
            [*command, "--out", str(out)], env=dict(os.environ), capture_output=True, text=True, timeout=HANGS
        )
        assert done.returncode == 0, done.stderr[-3000:]
        states.append(load_training_state(out / "last.pt")[1]["model"])
    one, several = states
    for key in one:
        torch.testing.assert_close(several[key], one[key], rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("execution", ["eager", "cuda_graph"])
def test_resumed_run_keeps_the_scale_of_float16_gradients(execution: str, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(execution=execution), precision="16-mixed")
    trainer = Trainer(recipe, tmp_path, GPU)
    scaler = trainer.fabric.strategy.precision.scaler
    scaler.scale(torch.zeros((), device="cuda"))  # it begins to exist with its first use
    scaler.update(1024.0)
    trainer.save(trainer.last)
    resumed = Trainer(recipe, tmp_path, replace(GPU, resume=True))
    assert resumed.fabric.strategy.precision.scaler.get_scale() == 1024.0
