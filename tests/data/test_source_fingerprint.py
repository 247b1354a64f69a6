"""Source fingerprint of datasets: it depends on classes, labels and source files, and not on the size of the images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.image_folders import make_classes

from camkd.data import Dataset, open_data
from camkd.data.dataset import no_progress
from camkd.data.files import open_listing
from camkd.data.scan import scan
from camkd.experiments.finished_runs import _match_classes


def open_pets(root: Path, **options: object) -> Dataset:
    defaults = {"size": 8, "limit": None, "workers": 1, "bad_images": "fail", "cache": root.parent / "cache"}
    return open_listing(scan(root), progress=no_progress, **(defaults | options))  # type: ignore[arg-type]


def expected_fingerprint(root: Path, data: Dataset) -> str:
    files = {
        name: [
            [int(label), hashlib.sha256((root / file).read_bytes()).hexdigest()]
            for label, file in zip(split.labels, split.names or (), strict=True)
        ]
        for name, split in data.splits.items()
    }
    return hashlib.sha256(json.dumps([data.classes, files, data.value_range]).encode()).hexdigest()


def test_fingerprint_of_a_folder_is_that_of_its_files_at_any_size(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=8)
    small, large = open_pets(root), open_pets(root, size=12)
    assert small.fingerprint != large.fingerprint
    assert small.source_fingerprint == large.source_fingerprint == expected_fingerprint(root, small)
    assert open_pets(root).source_fingerprint == small.source_fingerprint  # from the cache


def test_fingerprint_is_independent_of_path_and_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkd.data.decode.IN_PROCESS_SECONDS", 0)
    monkeypatch.setattr("camkd.data.decode.FILES_PER_TASK", 3)
    first = make_classes(tmp_path / "first" / "pets", "a", "b", count=8)
    second = tmp_path / "second" / "pets"
    second.parent.mkdir()
    first_data = open_pets(first, workers=2)
    first.rename(second)
    assert open_pets(second).source_fingerprint == first_data.source_fingerprint


def test_fingerprint_changes_with_one_byte_that_no_pixel_depends_on(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=8)
    data = open_pets(root)
    file = next(root.glob("a/*.png"))
    file.write_bytes(file.read_bytes() + b"\0")
    changed = open_pets(root)
    assert changed.fingerprint == data.fingerprint
    assert changed.source_fingerprint != data.source_fingerprint


def test_fingerprint_leaves_out_unreadable_images(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=8)
    (root / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = open_pets(root, bad_images="skip")
    assert data.source_fingerprint == expected_fingerprint(root, data)


def test_fingerprint_of_gray_images_of_16_bits_includes_the_value_range(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "pets", "a", "b", count=3)
    for index in range(8):
        Image.fromarray(np.full((8, 8), 1000 * index, np.uint16)).save(root / "a" / f"deep{index}.png")
    data = open_pets(root)
    assert data.value_range is not None
    assert data.source_fingerprint == expected_fingerprint(root, data)
    assert open_pets(root, value_range=(0.0, 9.0)).source_fingerprint != data.source_fingerprint


@pytest.mark.parametrize("name", ["shapes", "shapes-cue"])
def test_fingerprint_of_shapes_is_independent_of_the_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("camkd.data.shapes.COUNTS", {"train": 20, "val": 10, "test": 10})
    small, large = (open_data(name, size=size, cache=tmp_path) for size in (16, 24))
    assert small.source_fingerprint == large.source_fingerprint
    assert small.limited(10).source_fingerprint == large.limited(10).source_fingerprint
    assert small.limited(10).source_fingerprint != small.source_fingerprint


def test_fingerprint_of_shapes_changes_with_the_cue_and_the_generator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("camkd.data.shapes.COUNTS", {"train": 20, "val": 10, "test": 10})
    fingerprints = {open_data(name, size=16, cache=tmp_path).source_fingerprint for name in ("shapes", "shapes-cue")}
    monkeypatch.setattr("camkd.data.shapes.VERSION", 99)
    fingerprints.add(open_data("shapes", size=16, cache=tmp_path).source_fingerprint)
    assert len(fingerprints) == 3


def test_fingerprint_of_a_subset_depends_on_its_rows(easy: Dataset) -> None:
    fingerprints = {easy.source_fingerprint, *(easy.limited(n).source_fingerprint for n in (6, 9))}
    fingerprints.add(easy.limited(6, ("train",)).source_fingerprint)
    assert len(fingerprints) == 4
    assert easy.limited(6).source_fingerprint == easy.limited(6).source_fingerprint


def test_fingerprint_changes_when_labels_are_matched_to_those_of_a_model(easy: Dataset) -> None:
    more = (*easy.classes, "zebra")
    matched = _match_classes(easy, more, "model", "data")
    assert matched.source_fingerprint not in (easy.source_fingerprint, easy.fingerprint)
    large = replace(easy, train=replace(easy.train, images=np.repeat(easy.train.images, 2, 1)))
    assert _match_classes(large, more, "model", "data").source_fingerprint == matched.source_fingerprint
    assert _match_classes(easy, easy.classes, "model", "data").source_fingerprint == easy.source_fingerprint
