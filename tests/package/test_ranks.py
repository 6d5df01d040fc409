"""Work shared by real processes: every image counts once, and all ranks, of several machines too, train one network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import TWO_RANKS, group_of, run_module, run_ranks
from test_evaluation import Sizes
from tiny import tiny_segmenter
from tiny_data import make_camvid
from trained import final_state
from waiting import HANGS

from emalab.cli import main
from emalab.evaluation import evaluate
from emalab.metrics import SegmentationScores
from emalab.results import load_records
from emalab.runlog import read_log

SETTINGS = {"scales": (0.75, 1.0), "flip": True}


class Few(Sizes):
    """Fewer images than processes: some have nothing to do."""

    sizes = Sizes.sizes[:2]


def score_as_rank(rank: int, world_size: int, meeting: Path, data: Sizes) -> None:
    with group_of(world_size, rank, meeting):
        scores = evaluate(tiny_segmenter(), data, **SETTINGS)
        torch.save(scores.to_dict(), meeting.with_suffix(f".{rank}.pt"))


def shared_scores(world_size: int, folder: Path, data: Sizes) -> list[dict[str, object]]:
    """The scores that each of the processes found."""
    meeting = folder / "meeting"
    run_ranks(world_size, score_as_rank, world_size, meeting, data)
    return [torch.load(meeting.with_suffix(f".{rank}.pt"), weights_only=True) for rank in range(world_size)]


@pytest.mark.parametrize(("world_size", "data"), [(2, Sizes()), (3, Sizes()), (3, Few())], ids=["7/2", "7/3", "2/3"])
def test_every_image_counts_once(world_size: int, data: Sizes, tmp_path: Path) -> None:
    """Seven images divide by neither two nor three; one that was counted twice would show in the scores."""
    alone: SegmentationScores = evaluate(tiny_segmenter(), data, **SETTINGS)
    assert alone.images == len(data)
    twice = Sizes()
    twice.sizes = (*data.sizes, data.sizes[0])
    assert evaluate(tiny_segmenter(), twice, **SETTINGS).iou != alone.iou
    for scores in shared_scores(world_size, tmp_path, data):
        assert scores == alone.to_dict()


def leave_with_work_in_progress(rank: int, meeting: Path) -> None:
    with group_of(2, rank, meeting):
        dist.all_reduce(torch.ones(10_000_000), async_op=True)  # only gloo's thread refers to the tensor now


def test_a_rank_can_leave_while_gloo_still_works(tmp_path: Path) -> None:
    """In torch 2.6 it would never end without `hold_gloo_backend`."""
    run_ranks(2, leave_with_work_in_progress, tmp_path / "meeting")


def fail_as_second(rank: int, meeting: Path) -> None:
    with group_of(3, rank, meeting):
        if rank == 1:
            raise SystemExit(3)
        dist.barrier()


def test_ranks_of_which_one_fails(tmp_path: Path) -> None:
    """Nobody waits for the others, which wait for it."""
    with pytest.raises(AssertionError, match="rank 1 of 3 ended with exit status 3"):
        run_ranks(3, fail_as_second, tmp_path / "meeting")


def on_two_machines(folder: Path, words: str, *of_each: list[str]) -> list[tuple[int, str]]:
    """Exit status and standard error of ``emalab train WORDS``, started as the book says for several machines.

    Both are this one. They meet in a file, which needs no port. ``of_each`` are further words, for one machine each.
    """
    torchrun = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-conf", "store_type=file", "--rdzv-id", "test", "--rdzv-endpoint", str(folder / "meeting")]
    command = [sys.executable, "-m", *torchrun, "-m", "emalab", "train", *words.split(), "--out", str(folder / "run")]
    machines = [
        subprocess.Popen(
            [*command, *own], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )
        for own in of_each
    ]
    try:
        errors = [machine.communicate(timeout=HANGS)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()  # one that waits for another in vain
    return [(machine.returncode, error) for machine, error in zip(machines, errors, strict=True)]


SHORT = "shapes-tiny --accelerator cpu --optim.iterations 2 --optim.batch-size 4 --no-progress "


def test_two_machines(tmp_path: Path) -> None:
    for status, error in on_two_machines(tmp_path, SHORT + "--data.eval-split val/held-out", [], []):
        assert status == 0, error[-2000:]
    assert json.loads((tmp_path / "run" / "record.json").read_text())["devices"] == 2


def test_two_machines_with_different_data(tmp_path: Path) -> None:
    """One has an image more: both end before the first step, and each says why."""
    roots = [["--data-root", str(make_camvid(tmp_path / str(count), count))] for count in (3, 4)]
    words = SHORT + "--data.name camvid --data.train-split train --data.eval-split val --model.num-classes 11"
    for status, error in on_two_machines(tmp_path, words, *roots):
        assert status != 0
        assert "emalab: error: the processes of this run read different data as camvid; give all the same" in error
    assert not (tmp_path / "run").exists()


def test_two_ranks_are_one_process_with_their_batches_together(tmp_path: Path) -> None:
    """Under torchrun, in double precision. Crops are padded at random, so ranks count different labeled pixels."""
    flags = (
        "--precision 64-true --optim.optimizer sgd --optim.lr 0.05 --optim.warmup 0 --optim.iterations 6 "
        "--optim.batch-size 4 --data.crop-size 40 40 --data.scale-range 0.4 1.0 "
        "--accelerator cpu --no-progress --log-every 1"
    )
    command = ["train", "shapes-tiny", *flags.split(), "--out"]
    main([*command, str(tmp_path / "one")])
    printed = run_module(*TWO_RANKS, "-m", "emalab", *command, str(tmp_path / "two"))

    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert one["context.bases"].dtype == torch.float64
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-11, atol=1e-12, msg=key)

    first, second = (load_records(tmp_path / name, "record.json")[0] for name in ("one", "two"))
    assert (first["devices"], second["devices"]) == (1, 2)
    assert second["scores"] == first["scores"]  # from 200 images, each counted once
    assert second["scores"]["single scale"]["images"] == 200

    assert printed.count("single scale: mIoU") == 1
    logs = [[line.get("loss", 0.0) for line in read_log(tmp_path / name)] for name in ("one", "two")]
    # That of the whole batch, on which all ranks stop or go on. Fabric hands out losses in float32.
    assert logs[1] == pytest.approx(logs[0], rel=3e-7)
    assert len(logs[0]) == 7


def test_devices_without_torchrun(tmp_path: Path) -> None:
    """Fabric starts the second process itself."""
    flags = "--accelerator cpu --devices 2 --no-progress --optim.iterations 2"
    flags += " --data.eval-split val/held-out"
    printed = run_module("emalab", "train", "shapes-tiny", *flags.split(), "--out", str(tmp_path / "run"))
    assert load_records(tmp_path / "run", "record.json")[0]["devices"] == 2
    assert printed.count("single scale: mIoU") == 1
