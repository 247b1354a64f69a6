"""The store on disk returns what was written or None: corrupt, truncated, shared, killed or without disk space."""

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
from support.fault_injection import umask

NUM_SAMPLES = 10
FORMAT = RecordFormat(3, 2, 1, (0.5, -1.25, 3.0))  # 8 + 12 bytes, padded to 24
RECORD_BYTES = FORMAT.dtype.itemsize
LARGE_FORMAT = RecordFormat(10, 8, 8)


def make_manifest(num_samples: int = NUM_SAMPLES, record_format: RecordFormat = FORMAT) -> Manifest:
    return Manifest(
        teacher="/runs/übel",
        architecture="resnet8",
        data="easy",
        augment="light",
        augment_seed=7,
        precision="fp32",
        num_samples=num_samples,
        record_format=record_format,
    )


def corrupt_manifest(folder: Path) -> str:
    """Pattern of the error for a manifest that is missing or corrupt."""
    pattern = r"must be a complete teacher cache, got an incomplete one \(.+\)\. The next use repairs the cache\."
    return rf"^{re.escape(str(folder))} {pattern}$"


def make_store(folder: Path, num_samples: int = NUM_SAMPLES, record_format: RecordFormat = FORMAT) -> Store:
    return Store(folder, make_manifest(num_samples, record_format))


def make_prediction(epoch: int, samples: NDArray[np.int64], record_format: RecordFormat = FORMAT) -> Prediction:
    """Nonzero values that differ between epochs, samples and cells."""
    base = torch.from_numpy(samples).float()[:, None] + 1 + 100 * epoch
    num_cells = record_format.classes * record_format.height * record_format.width
    cams = base + torch.linspace(0.1, 0.9, num_cells)
    cams = cams.view(-1, record_format.classes, record_format.height, record_format.width)
    return Prediction(base * torch.linspace(1, 2, record_format.classes), cams)


def make_records(epoch: int, samples: NDArray[np.int64], record_format: RecordFormat = FORMAT) -> NDArray[np.void]:
    return record_format.encode(make_prediction(epoch, samples, record_format))


def write(store: Store, epoch: int, *samples: int) -> None:
    indices = np.array(samples)
    store.write(epoch, indices, make_records(epoch, indices, store.record_format))


def read(store: Store, epoch: int, *samples: int) -> Prediction | None:
    return store.read(epoch, np.array(samples))


def holds(store: Store, epoch: int, *samples: int) -> bool:
    """Return whether the store has these samples. What it has must equal what was written."""
    prediction = read(store, epoch, *samples)
    if prediction is None:
        return False
    expected = store.record_format.decode(make_records(epoch, np.array(samples), store.record_format))
    assert torch.equal(prediction.logits, expected.logits)
    assert prediction.cams is not None
    assert expected.cams is not None
    assert torch.equal(prediction.cams, expected.cams)
    return True


def full_store(folder: Path) -> tuple[Store, Path]:
    """A store with all of epoch 0, and the epoch's file."""
    store = make_store(folder)
    write(store, 0, *range(NUM_SAMPLES))
    return store, store.path(0)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


# --- reading and writing


@settings(max_examples=20)
@given(data=st.data())
def test_read_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    record_format = data.draw(st.sampled_from([FORMAT, RecordFormat(3, 1, 2), RecordFormat(101, 1, 3)]))
    folder = tmp_path_factory.mktemp("store")
    writer = make_store(folder, record_format=record_format)
    written: set[tuple[int, int]] = set()
    batches = st.lists(st.integers(0, NUM_SAMPLES - 1), min_size=1, max_size=NUM_SAMPLES, unique=True)
    for epoch, samples in data.draw(st.lists(st.tuples(st.integers(0, 2), batches), max_size=6)):
        write(writer, epoch, *samples)
        written |= {(epoch, sample) for sample in samples}
    for store in (writer, make_store(folder, record_format=record_format)):
        assert store.epochs() == sorted({epoch for epoch, _ in written})
        for epoch, samples in data.draw(st.lists(st.tuples(st.integers(0, 2), batches), max_size=6)):
            expected = all((epoch, sample) in written for sample in samples)
            assert holds(store, epoch, *samples) == store.contains(epoch, np.array(samples)) == expected


def test_reading_an_empty_store_creates_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "none")
    assert read(store, 0, 1) is None
    assert not store.contains(0, np.array([1]))
    assert store.verify_epoch(0) == (0, 0)
    assert store.epochs() == []
    assert not (tmp_path / "none").exists()
    write(store, 1, 2, 3)
    assert read(store, 0, 2) is None
    assert read(store, 1, 2, 4) is None
    assert holds(store, 1, 3, 2)
    assert store.epochs() == [1]


def test_an_epoch_is_one_file_of_records(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write(store, 3, 8)
    write(store, 12345, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"store.json", "epoch-0003.bin", "epoch-12345.bin"}
    assert store.epochs() == [3, 12345]
    content = store.path(3).read_bytes()
    assert len(content) == store.epoch_bytes == NUM_SAMPLES * RECORD_BYTES
    assert not any(content[: 8 * RECORD_BYTES] + content[9 * RECORD_BYTES :])
    maps = np.frombuffer(content[8 * RECORD_BYTES + 8 : 8 * RECORD_BYTES + 20], "<f2")
    cams = make_prediction(3, np.array([8])).cams
    assert cams is not None
    assert maps.tolist() == cams.half().flatten().tolist()


def test_first_write_reserves_the_space_of_the_epoch(tmp_path: Path) -> None:
    store = make_store(tmp_path, 500, LARGE_FORMAT)
    write(store, 0, 499)
    assert store.path(0).stat().st_blocks * 512 >= store.epoch_bytes


def test_records_can_be_overwritten(tmp_path: Path) -> None:
    store, _ = full_store(tmp_path)
    samples = np.array([4])
    store.write(0, samples, make_records(9, samples))
    prediction = read(store, 0, 4)
    assert prediction is not None
    assert torch.equal(prediction.logits, FORMAT.decode(make_records(9, samples)).logits)
    assert holds(store, 0, 3, 5)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_file_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        write(make_store(tmp_path / "store"), 0, 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").iterdir()}
    assert modes == {"store.json": 0o666 & ~mask, "epoch-0000.bin": 0o666 & ~mask}


def test_other_files_are_not_epochs(tmp_path: Path) -> None:
    write(make_store(tmp_path), 3, 1)
    for name in ("epoch-old.bin", "epoch-0001.bin.bak", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert make_store(tmp_path).epochs() == [3]


# --- corrupt records


@pytest.mark.fault("corrupted byte in the teacher cache")
def test_flipped_byte_is_detected_and_can_be_rewritten(tmp_path: Path) -> None:
    store, path = full_store(tmp_path)
    intact = path.read_bytes()
    for offset in range(4 * RECORD_BYTES, 5 * RECORD_BYTES):
        overwrite(path, offset, bytes([intact[offset] ^ 0x10]))
        with pytest.warns(CorruptCacheWarning, match=rf"^1 of .* {re.escape(str(path))} failed the checksum"):
            assert read(store, 0, 3, 4, 5) is None
        with pytest.warns(CorruptCacheWarning):
            assert not store.contains(0, np.array([4]))
        assert holds(store, 0, *(sample for sample in range(NUM_SAMPLES) if sample != 4))
        write(store, 0, 4)
        assert holds(store, 0, 3, 4, 5)
        assert path.read_bytes() == intact


def test_warning_counts_corrupt_but_not_missing_records(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    write(store, 0, 0, 1, 2, 3)
    for sample in (1, 3):
        overwrite(store.path(0), sample * RECORD_BYTES + 9, b"\xff\xff")
    with pytest.warns(CorruptCacheWarning) as caught:
        assert read(store, 0, 0, 1, 3, 7) is None
    expected = (
        f"2 of the cached teacher outputs in {tmp_path / 'epoch-0000.bin'} failed the checksum and will be recomputed."
    )
    assert [str(warning.message) for warning in caught] == [expected]
    assert holds(store, 0, 2, 0)


@pytest.mark.parametrize("source", [(0, 5), (1, 4)], ids=["sample", "epoch"])
def test_record_of_another_sample_or_epoch_is_corrupt(tmp_path: Path, source: tuple[int, int]) -> None:
    store, path = full_store(tmp_path)
    write(store, 1, 4)
    epoch, sample = source
    record = store.path(epoch).read_bytes()[sample * RECORD_BYTES : (sample + 1) * RECORD_BYTES]
    overwrite(path, 4 * RECORD_BYTES, record)
    with pytest.warns(CorruptCacheWarning):
        assert read(store, 0, 4) is None


def holds_with_warning(store: Store, sample: int, is_corrupt: bool) -> bool:
    """Return whether the store has a sample, and assert that it warns if and only if the record is corrupt."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = holds(store, 0, sample)
    assert [warning.category for warning in caught] == [CorruptCacheWarning] * is_corrupt
    return result


@pytest.mark.fault("SIGKILL while writing records of the teacher cache")
@pytest.mark.parametrize("record_format", [FORMAT, RecordFormat(2, 1, 1)], ids=["padded", "unpadded"])
def test_partially_written_record_is_not_read(tmp_path: Path, record_format: RecordFormat) -> None:
    size = record_format.dtype.itemsize
    store = make_store(tmp_path, record_format=record_format)
    write(store, 0, 6)
    path = store.path(0)
    record = path.read_bytes()[6 * size : 7 * size]
    for length in range(size):
        for partial in (record[:length] + bytes(size - length), bytes(size - length) + record[size - length :]):
            overwrite(path, 6 * size, partial)
            is_complete = partial == record
            is_corrupt = any(partial[:8]) and not is_complete
            for reader in (store, make_store(tmp_path, record_format=record_format)):
                assert holds_with_warning(reader, 6, is_corrupt) == is_complete


@pytest.mark.fault("SIGKILL while writing records of the teacher cache")
def test_partially_overwritten_record_is_not_read(tmp_path: Path) -> None:
    store, path = full_store(tmp_path)
    samples = np.array([6])
    old = path.read_bytes()[6 * RECORD_BYTES : 7 * RECORD_BYTES]
    store.write(0, samples, make_records(5, samples))
    new = path.read_bytes()[6 * RECORD_BYTES : 7 * RECORD_BYTES]
    for length in range(RECORD_BYTES + 1):
        partial = new[:length] + old[length:]
        overwrite(path, 6 * RECORD_BYTES, partial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptCacheWarning)
            assert (read(store, 0, 6) is not None) == (partial in (old, new))


@pytest.mark.fault("truncated file of the teacher cache")
def test_truncated_file_is_extended_and_its_records_are_used(tmp_path: Path) -> None:
    _, path = full_store(tmp_path)
    intact = path.read_bytes()
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        store = make_store(tmp_path)
        extended = intact[:length] + bytes(len(intact) - length)
        offsets = range(0, len(intact), RECORD_BYTES)
        is_complete = [extended[n : n + RECORD_BYTES] == intact[n : n + RECORD_BYTES] for n in offsets]
        last = length // RECORD_BYTES
        complete = [sample for sample in range(NUM_SAMPLES) if is_complete[sample]]
        assert len(complete) in (last, last + 1)
        assert not complete or holds(store, 0, *complete)
        has_checksum = any(extended[last * RECORD_BYTES : last * RECORD_BYTES + 8])
        is_corrupt = has_checksum and not is_complete[last]
        assert holds_with_warning(store, last, is_corrupt) == is_complete[last]
        assert path.read_bytes() == extended
        assert store.verify_epoch(0) == (len(complete), int(is_corrupt))


def test_bytes_after_the_epoch_are_ignored(tmp_path: Path) -> None:
    _, path = full_store(tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    assert holds(make_store(tmp_path), 0, *range(NUM_SAMPLES))


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_verify_epoch_counts_and_repairs(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "VERIFY_CHUNK", chunk)
    store = make_store(tmp_path)
    write(store, 0, 0, 2, 3, 5, 8, 9)
    for sample in (2, 9):
        overwrite(store.path(0), sample * RECORD_BYTES + 10, b"\xaa\xbb")
    assert store.verify_epoch(0) == (4, 2)
    assert make_store(tmp_path).verify_epoch(0) == (4, 2), "verifying without repair changes nothing"
    assert store.verify_epoch(0, repair=True) == (4, 2)
    assert store.verify_epoch(0) == make_store(tmp_path).verify_epoch(0) == (4, 0)
    assert read(store, 0, 2) is None, "missing, without a warning"
    assert not any(store.path(0).read_bytes()[2 * RECORD_BYTES : 3 * RECORD_BYTES])
    assert holds(store, 0, 0, 3, 5, 8)


# --- several instances and processes


def test_two_instances_share_a_folder(tmp_path: Path) -> None:
    first = make_store(tmp_path)
    second = make_store(tmp_path)
    write(first, 0, 0, 1)
    write(second, 0, 2, 3)  # must not truncate the file
    for store in (first, second, make_store(tmp_path)):
        assert holds(store, 0, 0, 1, 2, 3)
    write(first, 1, 5)
    write(first, 0, 4)
    assert holds(second, 1, 5)
    assert holds(second, 0, 4, 3)


CALL = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
SHARED_SAMPLES = 400
KILLED_SAMPLES = 1000


def start_process(function: str, *arguments: object) -> subprocess.Popen[str]:
    """Call a function of this file in another process."""
    command = [sys.executable, "-W", "error", "-c", CALL, __file__, function, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def write_alternate_samples(folder: str, first: str) -> None:
    """In another process: print "ready", wait for a line, then write every second sample in small batches."""
    store = make_store(Path(folder), SHARED_SAMPLES, LARGE_FORMAT)
    print("ready", flush=True)
    sys.stdin.readline()
    samples = np.arange(int(first), SHARED_SAMPLES, 2)
    for epoch, batch in itertools.product(range(2), np.array_split(samples, 40)):
        store.write(epoch, batch, make_records(epoch, batch, LARGE_FORMAT))


@pytest.mark.slow
@pytest.mark.fault("two processes that write one teacher cache")
def test_two_processes_write_to_one_folder(tmp_path: Path) -> None:
    processes = [start_process("write_alternate_samples", tmp_path / "store", first) for first in (0, 1)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate()[1] == ""
        assert process.returncode == 0
    store = make_store(tmp_path / "store", SHARED_SAMPLES, LARGE_FORMAT)
    assert all(holds(store, epoch, *range(SHARED_SAMPLES)) for epoch in (0, 1))
    assert Manifest.read(tmp_path / "store") == store.manifest
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"store.json", "epoch-0000.bin", "epoch-0001.bin"}


def write_epochs(folder: str) -> None:
    """In another process: write one epoch after the other and print each number."""
    store = make_store(Path(folder), KILLED_SAMPLES, LARGE_FORMAT)
    samples = np.arange(KILLED_SAMPLES)
    for epoch in range(100_000):
        store.write(epoch, samples, make_records(epoch, samples, LARGE_FORMAT))
        print(epoch, flush=True)


@pytest.mark.slow
@pytest.mark.fault("SIGKILL while writing records of the teacher cache")
def test_records_of_a_killed_process_are_read(tmp_path: Path) -> None:
    process = start_process("write_epochs", tmp_path)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    process.kill()
    remaining_lines, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    finished = [int(line) for line in "".join([*lines, remaining_lines]).split()]
    store = make_store(tmp_path, KILLED_SAMPLES, LARGE_FORMAT)
    assert finished == list(range(len(finished)))
    for epoch in finished:
        assert store.verify_epoch(epoch) == (KILLED_SAMPLES, 0)
        assert holds(store, epoch, *range(KILLED_SAMPLES))
    for epoch in set(store.epochs()) - set(finished):
        complete = [sample for sample in range(KILLED_SAMPLES) if store.contains(epoch, np.array([sample]))]
        assert not complete or holds(store, epoch, *complete)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorruptCacheWarning)
            is_complete = holds(store, epoch, *range(KILLED_SAMPLES))
        assert is_complete == (len(complete) == KILLED_SAMPLES)
        write(store, epoch, *range(KILLED_SAMPLES))
        assert holds(store, epoch, *range(KILLED_SAMPLES))


# --- no disk space


@pytest.mark.fault("full disk while writing the teacher cache")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_raises_and_leaves_no_file(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")

    def fail(*arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        for _ in range(2):
            with pytest.raises(CacheFullError, match=rf"{re.escape(str(tmp_path / 'store'))} .* 240 B .*prune"):
                write(store, 0, 1)
            assert store.epochs() == []
    assert issubclass(CacheFullError, InputError)
    write(store, 0, 1)
    assert holds(store, 0, 1)


def test_full_disk_keeps_existing_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = full_store(tmp_path)
    path.write_bytes(path.read_bytes()[: 4 * RECORD_BYTES])

    def fail(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        with pytest.raises(CacheFullError):
            write(make_store(tmp_path), 0, 9)
    assert holds(make_store(tmp_path), 0, 0, 1, 2, 3)


def test_other_system_errors_are_not_reported_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write(make_store(tmp_path), 0, 1)
    assert make_store(tmp_path).epochs() == []


# --- manifests


@pytest.mark.parametrize(
    "record_format",
    [FORMAT, RecordFormat(1000, 7, 7), RecordFormat(2, 1, 1)],
    ids=["exact", "many classes", "two classes"],
)
def test_manifest_is_read_as_written(tmp_path: Path, record_format: RecordFormat) -> None:
    store = make_store(tmp_path, record_format=record_format)
    write(store, 0, 1)
    manifest = Manifest.read(tmp_path)
    assert manifest == store.manifest == make_manifest(record_format=record_format)
    assert manifest.record_format.dtype == record_format.dtype
    assert holds(Store(tmp_path, manifest), 0, 1)


def test_keys_of_the_manifest(tmp_path: Path) -> None:
    """They are part of the file format: a new name needs a new version."""
    make_manifest().write(tmp_path)
    assert load_checksummed(tmp_path / "store.json") == {
        "version": 1,
        "teacher": "/runs/übel",
        "architecture": "resnet8",
        "data": "easy",
        "augment": "light",
        "augment_seed": 7,
        "precision": "fp32",
        "num_samples": NUM_SAMPLES,
        "record_format": {"classes": 3, "height": 2, "width": 1, "bias": [0.5, -1.25, 3.0]},
    }


def test_missing_optional_keys_have_defaults_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    make_manifest().write(tmp_path)
    values = without(load_checksummed(tmp_path / "store.json"), "version")
    (tmp_path / "store.json").write_text(dump_checksummed({**values, "comment": "new"}), encoding="utf-8")
    assert Manifest.read(tmp_path) == make_manifest()


def test_manifest_truncated_at_any_byte_raises(tmp_path: Path) -> None:
    write(make_store(tmp_path), 0, 1)
    intact = (tmp_path / "store.json").read_bytes()
    for length in range(len(intact.rstrip())):
        (tmp_path / "store.json").write_bytes(intact[:length])
        with pytest.raises(InputError, match=corrupt_manifest(tmp_path)):
            Manifest.read(tmp_path)


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def with_format(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**values, "record_format": {**values["record_format"], **changes}}


CORRUPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "list": lambda values: [values],
    "null": lambda values: None,
    "another version": lambda values: {**values, "version": 2},
    "no teacher": lambda values: without(values, "teacher"),
    "no record format": lambda values: without(values, "record_format"),
    "record format is a string": lambda values: {**values, "record_format": "small"},
    "record format without bias": lambda values: {**values, "record_format": without(values["record_format"], "bias")},
    "record format without height": lambda values: {
        **values,
        "record_format": without(values["record_format"], "height"),
    },
    "record format with depth": lambda values: with_format(values, depth=3),
    "bias is a number": lambda values: with_format(values, bias=3),
    "no samples": lambda values: {**values, "num_samples": 0},
    "negative number of samples": lambda values: {**values, "num_samples": -1},
    "more samples than a disk holds": lambda values: {**values, "num_samples": 1 << 50},
    "one class": lambda values: with_format(values, classes=1),
}


@pytest.mark.fault("corrupt manifest of the teacher cache")
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupt_manifest_with_valid_checksum_raises(tmp_path: Path, corruption: str) -> None:
    make_manifest().write(tmp_path)
    values = load_checksummed(tmp_path / "store.json")
    assert Manifest.read(tmp_path) == make_manifest()
    corrupt = CORRUPTIONS[corruption](values)
    text = dump_checksummed(corrupt) if isinstance(corrupt, dict) else json.dumps(corrupt)
    (tmp_path / "store.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=corrupt_manifest(tmp_path)):
        Manifest.read(tmp_path)


def test_message_for_a_corrupt_manifest(tmp_path: Path) -> None:
    make_manifest().write(tmp_path)
    values = load_checksummed(tmp_path / "store.json")
    (tmp_path / "store.json").write_text(dump_checksummed(without(values, "teacher")), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        Manifest.read(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} must be a complete teacher cache, got an incomplete one (key 'teacher' is missing). The next "
        "use repairs the cache."
    )


def test_missing_or_binary_manifest_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=corrupt_manifest(tmp_path)):
        Manifest.read(tmp_path)
    (tmp_path / "store.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=corrupt_manifest(tmp_path)):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"height": 2', '"height": 3'), (f'"num_samples": {NUM_SAMPLES}', '"num_samples": "10"'), ("}", "")],
)
def test_changed_manifest_raises_and_is_repaired_on_use(tmp_path: Path, old: str, new: str) -> None:
    store = make_store(tmp_path)
    write(store, 0, 1, 2)
    text = (tmp_path / "store.json").read_text()
    content = store.path(0).read_bytes()
    assert old in text
    (tmp_path / "store.json").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=corrupt_manifest(tmp_path)):
        Manifest.read(tmp_path)
    make_store(tmp_path).mark_used()
    assert Manifest.read(tmp_path) == store.manifest
    (tmp_path / "store.json").unlink()
    make_store(tmp_path).mark_used()
    assert Manifest.read(tmp_path) == store.manifest
    assert store.path(0).read_bytes() == content


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_list_stores_is_sorted_by_last_use(cache: Path) -> None:
    assert list_stores() == []
    for name in ("b", "a", "c"):
        write(Store(store_folder(name), replace(make_manifest(), augment_seed=1)), 0, 1)
    (cache / "teacher" / "other").mkdir()
    for time, name in enumerate(("c", "a", "b"), 1_000_000):
        os.utime(store_folder(name) / "store.json", (time, time))
    assert [path.name for path in list_stores()] == ["c", "a", "b"]
    make_store(store_folder("c")).mark_used()
    assert [path.name for path in list_stores()] == ["a", "b", "c"]
    assert store_folder("a").parent == cache / "teacher"
