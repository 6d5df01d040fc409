"""The comparison on photographs from packages: what is read, laid onto what, counted, and compared."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import photographs as program
from PIL import Image, ImageDraw

from emalab.checkpoints import shipped_weights
from emalab.results import read_record, write_record
from emalab.shipped import DEFAULT_WEIGHTS

MANIFEST = json.loads(program.MANIFEST.read_text(encoding="utf-8"))
RESULTS = Path(__file__).parents[2] / "book" / "results"
CAT, SHEEP = (program.SPEC.classes.index(name) for name in ("cat", "sheep"))


def row(label: int, shares: list[list[float]], name: str = "") -> dict[str, Any]:
    return {"class": program.SPEC.classes[label], "sha256": name or str(shares), "shares": shares}


class TestManifest:
    def test_shows_every_class_in_thirty_photographs_at_least(self) -> None:
        shown = Counter(entry["class"] for entry in MANIFEST["scenes"] + MANIFEST["cutouts"])
        assert set(shown) == set(program.SPEC.report_classes) - {"background"}
        assert sum(shown.values()) >= 30
        assert min(shown.values()) >= 2

    def test_every_picture_has_a_digest_a_license_and_a_package_with_a_version(self) -> None:
        entries = [entry for kind in ("scenes", "cutouts", "backgrounds") for entry in MANIFEST[kind]]
        assert len({entry["sha256"] for entry in entries}) == len(entries)
        for entry in entries:
            assert entry["package"] in MANIFEST["packages"]
            assert len(entry["sha256"]) == 64
            assert entry["license"]

    def test_no_picture_is_in_the_repository(self) -> None:
        digests = {entry["sha256"] for kind in ("scenes", "cutouts", "backgrounds") for entry in MANIFEST[kind]}
        kinds = {".png", ".jpg", ".gif", ".webp"}
        pictures = [path for path in (RESULTS.parent).rglob("*") if path.suffix in kinds and "_build" not in path.parts]
        assert pictures
        assert not [path for path in pictures if hashlib.sha256(path.read_bytes()).hexdigest() in digests]


class TestReading:
    def entry(self, content: bytes, path: str) -> dict[str, str]:
        return {"package": "pictures", "path": path, "sha256": hashlib.sha256(content).hexdigest()}

    def webp(self, color: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 6), color).save(file, "WebP", lossless=True)
        return file.getvalue()

    def test_finds_a_picture_in_a_resource_file(self, tmp_path: Path) -> None:
        red, blue = self.webp("red"), self.webp("blue")
        (tmp_path / "all.rcc").write_bytes(b"qres RIFF" + red + b"between" + blue)
        picture = program.read_picture(tmp_path, self.entry(blue, "all.rcc"))
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)

    def test_refuses_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "cat.webp").write_bytes(self.webp("red"))
        with pytest.raises(ValueError, match=r"cat\.webp is another file .* version of pictures"):
            program.read_picture(tmp_path, self.entry(self.webp("blue"), "cat.webp"))

    def test_says_what_to_unpack(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"cat\.png is missing; unpack the package pictures"):
            program.read_picture(tmp_path, self.entry(b"", "cat.png"))


class TestLabels:
    def test_pixels_near_an_outline_do_not_count(self) -> None:
        labels = Image.new("L", (40, 30))
        labels.paste(CAT, (10, 10, 30, 30))
        found = np.asarray(program.without_border(labels))
        assert set(found[20, 13:27]) == {CAT}
        assert set(found[20, 7:13]) | set(found[20, 27:33]) == {255}
        assert found[20, 6] == found[20, 33] == found[6, 20] == 0
        assert set(found[29, 13:27]) == {CAT}  # the rim of the photograph is no outline

    def test_a_cutout_lies_whole_on_the_background(self) -> None:
        cutout = Image.new("RGBA", (90, 50))
        ImageDraw.Draw(cutout).rectangle((20, 10, 79, 39), fill=(250, 0, 0, 255))
        background = Image.new("RGB", (120, 90), (0, 0, 250))
        for seed in range(20):
            image, labels = program.composite(cutout, SHEEP, background, random.Random(seed))
            inside, outside = np.asarray(image)[labels == SHEEP], np.asarray(image)[labels == 0]
            assert (inside == (250, 0, 0)).all()
            assert (outside == (0, 0, 250)).all()
            red = np.argwhere(np.asarray(image)[..., 0] > 125)
            height, width = red.max(0) - red.min(0) + 1
            assert 0.4 * 90 - 1 <= width <= 0.85 * 90 + 1
            assert width / height == pytest.approx(2, rel=0.1)

    def test_an_outline_is_in_pixels_of_the_reduced_photograph(self) -> None:
        entry = {"class": "cat", "outlines": [[40, 40, 200, 40, 200, 160, 40, 160]], "ignored": [[0, 0, 9, 0, 9, 9]]}
        image, labels = program.scene(Image.new("RGB", (960, 640)), entry)
        assert (image.size, labels.shape) == ((480, 320), (320, 480))
        assert (labels[100, 120], labels[300, 120], labels[2, 5]) == (CAT, 0, 255)


class TestScores:
    def test_are_those_of_the_pooled_shares(self) -> None:
        """A cat seen by half, and a sheep taken for a cat, by hand."""
        rows = [
            row(CAT, [[0, 0, 0.6], [CAT, CAT, 0.2], [CAT, 0, 0.2]]),
            row(SHEEP, [[0, 0, 0.7], [SHEEP, CAT, 0.3]]),
        ]
        values, _ = program.score(rows)
        found = program.summarize(values, values[None])
        by_hand = {"background": 1.3 / 1.5, "cat": 0.2 / 0.7, "sheep": 0.0}
        by_hand["mean"] = np.mean(list(by_hand.values()))
        assert {name: entry["score"] for name, entry in found.items()} == pytest.approx(
            {name: 100 * value for name, value in by_hand.items()}
        )
        assert [program.named(entry) for entry in rows] == [True, False]

    def test_samples_have_as_many_photographs_of_each_class(self) -> None:
        classes = ["cat"] * 3 + ["dog"] * 5
        weights = program.bootstrap(classes, 200)
        assert (weights[:, :3].sum(1) == 3).all()
        assert (weights[:, 3:].sum(1) == 5).all()
        assert len({tuple(sample) for sample in weights}) > 50

    def test_a_difference_has_the_interval_of_paired_samples(self, tmp_path: Path) -> None:
        """Where every photograph gains the same, the interval is a point, however much photographs differ."""

        def rows(more: float) -> list[dict[str, Any]]:
            hit = [0.1 + more, 0.3 + more]
            return [
                row(CAT, [[0, 0, 0.5], [CAT, CAT, share], [CAT, 0, 0.5 - share]], str(i)) for i, share in enumerate(hit)
            ]

        write_record(tmp_path / "base.json", {"rows": rows(0.0), "network": {}})
        cat = program.compare(rows(0.1), tmp_path / "base.json")["iou"]["cat"]
        assert cat == pytest.approx({"score": 20.0, "low": 20.0, "high": 20.0})

    def test_other_photographs_are_refused(self, tmp_path: Path) -> None:
        write_record(tmp_path / "base.json", {"rows": [row(CAT, [], "a")], "network": {}})
        with pytest.raises(ValueError, match="is of other photographs"):
            program.compare([row(CAT, [], "b")], tmp_path / "base.json")


class TestRecords:
    RECORDS = tuple(sorted(RESULTS.glob("photographs-*.json")))

    def test_are_of_the_manifest(self) -> None:
        digest = hashlib.sha256(program.MANIFEST.read_bytes()).hexdigest()
        assert {read_record(path)["manifest"] for path in self.RECORDS} == {digest}

    def test_one_is_of_the_shipped_network(self) -> None:
        shipped = hashlib.sha256(shipped_weights()[DEFAULT_WEIGHTS].read_bytes()).hexdigest()
        assert shipped in {read_record(path)["network"]["sha256"] for path in self.RECORDS}

    def test_scores_follow_from_their_rows(self) -> None:
        for path in self.RECORDS:
            record = read_record(path)
            found = program.summarize(*program.score(record["rows"]))
            for name, entry in record["iou"].items():
                assert found[name] == pytest.approx(entry, abs=0.01), name

    def test_a_network_equals_itself(self) -> None:
        path = self.RECORDS[0]
        found = program.compare(read_record(path)["rows"], path)
        assert all(value == 0 for entry in found["iou"].values() for value in entry.values())
