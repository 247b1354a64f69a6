"""The store on disk gives back what was written or nothing: damaged, cut off, shared, killed or out of room."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from camkd.distill.cache import (
    CacheFullError,
    CorruptCacheWarning,
    Manifest,
    RecordFormat,
    Store,
    list_stores,
    store_folder,
)
from camkd.distill.cache import store as store_module
from camkd.types import InputError, Prediction
from camkd.utils.files import dump_checksummed, load_checksummed

COUNT = 10
LAYOUT = RecordFormat(3, 2, 1, (0.5, -1.25, 3.0))  # 8 + 12 bytes, and 4 to whole words
RECORD = LAYOUT.dtype.itemsize
LARGE = RecordFormat(10, 8, 8)


def manifest(count: int = COUNT, layout: RecordFormat = LAYOUT) -> Manifest:
    return Manifest(
        teacher="/runs/übel",
        architecture="resnet8",
        data="easy",
        views="light",
        augment_seed=7,
        precision="fp32",
        count=count,
        layout=layout,
    )


def store(folder: Path, count: int = COUNT, layout: RecordFormat = LAYOUT) -> Store:
    return Store(folder, manifest(count, layout))


def answer(epoch: int, rows: NDArray[np.int64], layout: RecordFormat = LAYOUT) -> Prediction:
    """Another number for every view and in every place, none of them 0."""
    base = torch.from_numpy(rows).float()[:, None] + 1 + 100 * epoch
    cells = layout.classes * layout.height * layout.width
    cams = (base + torch.linspace(0.1, 0.9, cells)).view(-1, layout.classes, layout.height, layout.width)
    return Prediction(base * torch.linspace(1, 2, layout.classes), cams)


def encoded(epoch: int, rows: NDArray[np.int64], layout: RecordFormat = LAYOUT) -> NDArray[np.void]:
    return layout.encode(answer(epoch, rows, layout))


def write(into: Store, epoch: int, *rows: int) -> None:
    numbers = np.array(rows)
    into.write(epoch, numbers, encoded(epoch, numbers, into.layout))


def read(out_of: Store, epoch: int, *rows: int) -> Prediction | None:
    return out_of.read(epoch, np.array(rows))


def holds(out_of: Store, epoch: int, *rows: int) -> bool:
    """Whether the store knows these, and they are what was written."""
    found, numbers = read(out_of, epoch, *rows), np.array(rows)
    if found is None:
        return False
    expected = out_of.layout.decode(encoded(epoch, numbers, out_of.layout))
    assert torch.equal(found.logits, expected.logits)
    assert found.cams is not None
    assert expected.cams is not None
    assert torch.equal(found.cams, expected.cams)
    return True


def whole(tmp_path: Path) -> tuple[Store, Path]:
    """A store that knows all of epoch 0, and the file."""
    full = store(tmp_path)
    write(full, 0, *range(COUNT))
    return full, full.path(0)


def patch(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(content)


# --- what is written is read


@settings(max_examples=20)
@given(data=st.data())
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from([LAYOUT, RecordFormat(3, 1, 2), RecordFormat(101, 1, 3)]))
    folder = tmp_path_factory.mktemp("store")
    ours = store(folder, layout=layout)
    known: set[tuple[int, int]] = set()
    batch = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=COUNT, unique=True)
    for epoch, rows in data.draw(st.lists(st.tuples(st.integers(0, 2), batch), max_size=6)):
        write(ours, epoch, *rows)
        known |= {(epoch, row) for row in rows}
    for out_of in (ours, store(folder, layout=layout)):
        assert out_of.epochs() == sorted({epoch for epoch, _ in known})
        for epoch, rows in data.draw(st.lists(st.tuples(st.integers(0, 2), batch), max_size=6)):
            expected = all((epoch, row) in known for row in rows)
            assert holds(out_of, epoch, *rows) == out_of.contains(epoch, np.array(rows)) == expected


def test_what_nobody_wrote_is_unknown_and_asking_makes_nothing(tmp_path: Path) -> None:
    empty = store(tmp_path / "none")
    assert read(empty, 0, 1) is None
    assert not empty.contains(0, np.array([1]))
    assert empty.verify_epoch(0) == (0, 0)
    assert empty.epochs() == []
    assert not (tmp_path / "none").exists()
    write(empty, 1, 2, 3)
    assert read(empty, 0, 2) is None
    assert read(empty, 1, 2, 4) is None
    assert holds(empty, 1, 3, 2)
    assert empty.epochs() == [1]


def test_an_epoch_is_a_file_of_records_and_nothing_else_is_left(tmp_path: Path) -> None:
    ours = store(tmp_path)
    write(ours, 3, 8)
    write(ours, 12345, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "epoch-0003.bin", "epoch-12345.bin"}
    assert ours.epochs() == [3, 12345]
    content = ours.path(3).read_bytes()
    assert len(content) == ours.epoch_bytes == COUNT * RECORD
    assert not any(content[: 8 * RECORD] + content[9 * RECORD :])
    halves = np.frombuffer(content[8 * RECORD + 8 : 8 * RECORD + 20], "<f2")
    cams = answer(3, np.array([8])).cams
    assert cams is not None
    assert halves.tolist() == cams.half().flatten().tolist()


def test_the_space_of_an_epoch_is_taken_before_the_first_answer(tmp_path: Path) -> None:
    ours = store(tmp_path, 500, LARGE)
    write(ours, 0, 499)
    assert ours.path(0).stat().st_blocks * 512 >= ours.epoch_bytes


def test_an_answer_may_be_written_again(tmp_path: Path) -> None:
    ours, _ = whole(tmp_path)
    rows = np.array([4])
    ours.write(0, rows, encoded(9, rows))
    found = read(ours, 0, 4)
    assert found is not None
    assert torch.equal(found.logits, LAYOUT.decode(encoded(9, rows)).logits)
    assert holds(ours, 0, 3, 5)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_of_the_files_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(store(tmp_path / "store"), 0, 1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
    assert modes == {"store.json": 0o666 & ~umask, "epoch-0000.bin": 0o666 & ~umask}


# --- damage


@pytest.mark.fault("a flipped byte in the knowledge store")
def test_every_flipped_byte_is_noticed_and_mended_by_asking_again(tmp_path: Path) -> None:
    ours, path = whole(tmp_path)
    sound = path.read_bytes()
    for place in range(4 * RECORD, 5 * RECORD):
        patch(path, place, bytes([sound[place] ^ 0x10]))
        with pytest.warns(CorruptCacheWarning, match=rf"1 of .* {re.escape(str(path))} are damaged"):
            assert read(ours, 0, 3, 4, 5) is None
        with pytest.warns(CorruptCacheWarning):
            assert not ours.contains(0, np.array([4]))
        assert holds(ours, 0, *(row for row in range(COUNT) if row != 4))
        write(ours, 0, 4)
        assert holds(ours, 0, 3, 4, 5)
        assert path.read_bytes() == sound


def test_the_warning_counts_what_is_damaged_and_not_what_is_unknown(tmp_path: Path) -> None:
    ours = store(tmp_path)
    write(ours, 0, 0, 1, 2, 3)
    for row in (1, 3):
        patch(ours.path(0), row * RECORD + 9, b"\xff\xff")
    with pytest.warns(CorruptCacheWarning, match="^2 of the teacher's answers"):
        assert read(ours, 0, 0, 1, 3, 7) is None
    assert holds(ours, 0, 2, 0)


@pytest.mark.parametrize("other", [(0, 5), (1, 4)], ids=["sample", "epoch"])
def test_the_answer_to_another_view_is_damage(tmp_path: Path, other: tuple[int, int]) -> None:
    ours, path = whole(tmp_path)
    write(ours, 1, 4)
    epoch, row = other
    patch(path, 4 * RECORD, ours.path(epoch).read_bytes()[row * RECORD : (row + 1) * RECORD])
    with pytest.warns(CorruptCacheWarning):
        assert read(ours, 0, 4) is None


def accepted(out_of: Store, row: int, warned: bool) -> bool:
    """Whether an answer is read; whether it warns is given."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = holds(out_of, 0, row)
    assert [warning.category for warning in seen] == [CorruptCacheWarning] * warned
    return found


@pytest.mark.fault("killed in an answer of the knowledge store")
@pytest.mark.parametrize("layout", [LAYOUT, RecordFormat(2, 1, 1)], ids=["filled up", "whole words"])
def test_an_answer_half_written_never_counts(tmp_path: Path, layout: RecordFormat) -> None:
    size = layout.dtype.itemsize
    ours = store(tmp_path, layout=layout)
    write(ours, 0, 6)
    path = ours.path(0)
    record = path.read_bytes()[6 * size : 7 * size]
    for length in range(size):
        for half in (record[:length] + bytes(size - length), bytes(size - length) + record[size - length :]):
            patch(path, 6 * size, half)
            complete, begun = half == record, any(half[:8])
            for reader in (ours, store(tmp_path, layout=layout)):
                assert accepted(reader, 6, begun and not complete) == complete


@pytest.mark.fault("killed in an answer of the knowledge store")
def test_an_answer_half_written_over_an_older_one_is_neither(tmp_path: Path) -> None:
    ours, path = whole(tmp_path)
    rows = np.array([6])
    old = path.read_bytes()[6 * RECORD : 7 * RECORD]
    ours.write(0, rows, encoded(5, rows))
    new = path.read_bytes()[6 * RECORD : 7 * RECORD]
    for length in range(RECORD + 1):
        half = new[:length] + old[length:]
        patch(path, 6 * RECORD, half)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptCacheWarning)
            assert (read(ours, 0, 6) is not None) == (half in (old, new))


@pytest.mark.fault("a knowledge store's file cut")
def test_a_file_cut_off_at_any_byte_is_completed_and_the_rest_of_it_used(tmp_path: Path) -> None:
    _, path = whole(tmp_path)
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        again = store(tmp_path)
        used = sound[:length] + bytes(len(sound) - length)
        complete = [used[n : n + RECORD] == sound[n : n + RECORD] for n in range(0, len(sound), RECORD)]
        cut = length // RECORD
        known = [row for row in range(COUNT) if complete[row]]
        assert len(known) in (cut, cut + 1)
        assert not known or holds(again, 0, *known)
        begun = any(used[cut * RECORD : cut * RECORD + 8])
        assert accepted(again, cut, begun and not complete[cut]) == complete[cut]
        assert path.read_bytes() == used
        assert again.verify_epoch(0) == (len(known), int(begun and not complete[cut]))


def test_a_longer_file_is_used_as_far_as_the_epoch_goes(tmp_path: Path) -> None:
    _, path = whole(tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    assert holds(store(tmp_path), 0, *range(COUNT))


@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_examining_counts_and_mends(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "ROWS_AT_ONCE", at_once)
    ours = store(tmp_path)
    write(ours, 0, 0, 2, 3, 5, 8, 9)
    for row in (2, 9):
        patch(ours.path(0), row * RECORD + 10, b"\xaa\xbb")
    assert ours.verify_epoch(0) == (4, 2)
    assert store(tmp_path).verify_epoch(0) == (4, 2), "looking changes nothing"
    assert ours.verify_epoch(0, mend=True) == (4, 2)
    assert ours.verify_epoch(0) == store(tmp_path).verify_epoch(0) == (4, 0)
    assert read(ours, 0, 2) is None, "unknown now, without a warning"
    assert not any(ours.path(0).read_bytes()[2 * RECORD : 3 * RECORD])
    assert holds(ours, 0, 0, 3, 5, 8)


# --- several at once


def test_two_instances_on_one_folder_share_what_they_know(tmp_path: Path) -> None:
    one, two = store(tmp_path), store(tmp_path)
    write(one, 0, 0, 1)
    write(two, 0, 2, 3)  # must not begin the file anew
    for out_of in (one, two, store(tmp_path)):
        assert holds(out_of, 0, 0, 1, 2, 3)
    write(one, 1, 5)
    write(one, 0, 4)
    assert holds(two, 1, 5)
    assert holds(two, 0, 4, 3)


CALL = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
SHARED, KILLED = 400, 1000


def start(function: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that calls a function of this file."""
    command = [sys.executable, "-W", "error", "-c", CALL, __file__, function, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_every_second(folder: str, first: str) -> None:
    """In a process of its own: say that it is ready, wait for a line, write every second row, a few at a time."""
    ours = store(Path(folder), SHARED, LARGE)
    print("ready", flush=True)
    sys.stdin.readline()
    rows = np.arange(int(first), SHARED, 2)
    for epoch, some in itertools.product(range(2), np.array_split(rows, 40)):
        ours.write(epoch, some, encoded(epoch, some, LARGE))


@pytest.mark.fault("two writers of one knowledge store")
def test_two_processes_write_into_one_folder(tmp_path: Path) -> None:
    children = [start("write_every_second", tmp_path / "store", first) for first in (0, 1)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        assert child.communicate()[1] == ""
        assert child.returncode == 0
    both = store(tmp_path / "store", SHARED, LARGE)
    assert all(holds(both, epoch, *range(SHARED)) for epoch in (0, 1))
    assert Manifest.of(tmp_path / "store") == both.manifest
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"store.json", "epoch-0000.bin", "epoch-0001.bin"}


def write_for_ever(folder: str) -> None:
    """In a process of its own: write one epoch after the other and say so each time."""
    ours, rows = store(Path(folder), KILLED, LARGE), np.arange(KILLED)
    for epoch in range(100_000):
        ours.write(epoch, rows, encoded(epoch, rows, LARGE))
        print(epoch, flush=True)


@pytest.mark.fault("killed in an answer of the knowledge store")
def test_all_sound_answers_of_a_process_that_was_killed_are_read(tmp_path: Path) -> None:
    child = start("write_for_ever", tmp_path)
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(4)]
    child.kill()
    rest, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors
    written = [int(line) for line in "".join([*said, rest]).split()]
    after = store(tmp_path, KILLED, LARGE)
    assert written == list(range(len(written)))
    for epoch in written:
        assert after.verify_epoch(epoch) == (KILLED, 0)
        assert holds(after, epoch, *range(KILLED))
    for epoch in set(after.epochs()) - set(written):
        known = [row for row in range(KILLED) if after.contains(epoch, np.array([row]))]
        assert not known or holds(after, epoch, *known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptCacheWarning)
            complete = holds(after, epoch, *range(KILLED))
        assert complete == (len(known) == KILLED)
        write(after, epoch, *range(KILLED))
        assert holds(after, epoch, *range(KILLED))


# --- no room


@pytest.mark.fault("disk full in the knowledge store")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_leaves_no_file(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, full = store(tmp_path / "store"), [True]
    reserve = os.posix_fallocate

    def maybe(*arguments: int) -> None:
        if full:
            raise OSError(number, os.strerror(number))
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", maybe)
    for _ in range(2):
        with pytest.raises(CacheFullError, match=rf"no room for .* B .* {re.escape(str(tmp_path / 'store'))}: .*prune"):
            write(ours, 0, 1)
        assert ours.epochs() == []
    assert issubclass(CacheFullError, InputError)
    full.clear()
    write(ours, 0, 1)
    assert holds(ours, 0, 1)


def test_what_was_there_stays_where_a_full_disk_has_no_room_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = whole(tmp_path)
    path.write_bytes(path.read_bytes()[: 4 * RECORD])

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(CacheFullError):
            write(store(tmp_path), 0, 9)
    assert holds(store(tmp_path), 0, 0, 1, 2, 3)


def test_another_mistake_of_the_system_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output error"):
        write(store(tmp_path), 0, 1)
    assert store(tmp_path).epochs() == []


# --- the manifest, and which stores there are


@pytest.mark.parametrize(
    "layout", [LAYOUT, RecordFormat(1000, 7, 7), RecordFormat(2, 1, 1)], ids=["exact", "many classes", "two classes"]
)
def test_the_manifest_is_read_as_it_was_written(tmp_path: Path, layout: RecordFormat) -> None:
    ours = store(tmp_path, layout=layout)
    write(ours, 0, 1)
    assert Manifest.of(tmp_path) == ours.manifest == manifest(layout=layout)
    assert Manifest.of(tmp_path).layout.dtype == layout.dtype
    assert holds(Store(tmp_path, Manifest.of(tmp_path)), 0, 1)


def test_a_manifest_cut_off_at_any_byte_is_an_input_error(tmp_path: Path) -> None:
    write(store(tmp_path), 0, 1)
    sound = (tmp_path / "store.json").read_bytes()
    for length in range(len(sound.rstrip())):
        (tmp_path / "store.json").write_bytes(sound[:length])
        with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))} is not a whole knowledge store"):
            Manifest.of(tmp_path)


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda values: [values],
    "nothing": lambda values: None,
    "without a name": lambda values: without(values, "teacher"),
    "without a layout": lambda values: without(values, "layout"),
    "a layout that is a word": lambda values: {**values, "layout": "small"},
    "a layout without a bias": lambda values: {**values, "layout": without(values["layout"], "bias")},
    "a layout without a height": lambda values: {**values, "layout": without(values["layout"], "height")},
    "a layout with a depth": lambda values: {**values, "layout": {**values["layout"], "depth": 3}},
    "a bias that is a number": lambda values: {**values, "layout": {**values["layout"], "bias": 3}},
    "no pictures": lambda values: {**values, "count": 0},
    "fewer than none": lambda values: {**values, "count": -1},
    "more pictures than a disk holds": lambda values: {**values, "count": 1 << 50},
    "a class alone": lambda values: {**values, "layout": {**values["layout"], "classes": 1}},
}


@pytest.mark.fault("a damaged manifest of the knowledge store")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_an_input_error(tmp_path: Path, damage: str) -> None:
    """With a checksum that is right, as a program with a fault would write it."""
    manifest().write(tmp_path)
    values = load_checksummed(tmp_path / "store.json")
    assert Manifest.of(tmp_path) == manifest()
    damaged = DAMAGES[damage](values)
    text = dump_checksummed(damaged) if isinstance(damaged, dict) else json.dumps(damaged)
    (tmp_path / "store.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"is not a whole knowledge store \(.*\): the next run"):
        Manifest.of(tmp_path)


def test_a_folder_without_a_manifest_or_with_bytes_for_one_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the next run"):
        Manifest.of(tmp_path)
    (tmp_path / "store.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="the next run"):
        Manifest.of(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_stores_come_least_recently_used_first(cache: Path) -> None:
    assert list_stores() == []
    for name in ("b", "a", "c"):
        write(Store(store_folder(name), replace(manifest(), augment_seed=1)), 0, 1)
    (cache / "teacher" / "stray").mkdir()
    for when, name in enumerate(("c", "a", "b"), 1_000_000):
        os.utime(store_folder(name) / "store.json", (when, when))
    assert [path.name for path in list_stores()] == ["c", "a", "b"]
    store(store_folder("c")).touch()
    assert [path.name for path in list_stores()] == ["a", "b", "c"]
    assert store_folder("a").parent == cache / "teacher"


@pytest.mark.parametrize(
    ("old", "new"), [('"height": 2', '"height": 3'), (f'"count": {COUNT}', '"count": "10"'), ("}", "")]
)
def test_a_changed_manifest_is_refused_and_the_next_run_mends_it(tmp_path: Path, old: str, new: str) -> None:
    whole = store(tmp_path)
    write(whole, 0, 1, 2)
    text, answers = (tmp_path / "store.json").read_text(), whole.path(0).read_bytes()
    assert old in text
    (tmp_path / "store.json").write_text(text.replace(old, new))
    with pytest.raises(InputError, match="not a whole knowledge store"):
        Manifest.of(tmp_path)
    store(tmp_path).touch()
    assert Manifest.of(tmp_path) == whole.manifest
    (tmp_path / "store.json").unlink()
    store(tmp_path).touch()
    assert Manifest.of(tmp_path) == whole.manifest
    assert whole.path(0).read_bytes() == answers


def test_a_file_of_somebody_elses_is_no_epoch(tmp_path: Path) -> None:
    write(store(tmp_path), 3, 1)
    for name in ("epoch-old.bin", "epoch-0001.bin.bak", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert store(tmp_path).epochs() == [3]
