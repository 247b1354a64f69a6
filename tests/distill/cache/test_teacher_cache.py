"""Teacher cache: every view is computed once, and cached outputs equal computed outputs."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camkd.distill.cache import CacheFullError, CorruptCacheWarning, Manifest, RecordFormat, Store, TeacherCache
from camkd.types import Prediction

NUM_SAMPLES = 10
CLASSES = 3
FORMAT = RecordFormat(CLASSES, 2, 3)


def make_views(epoch: int | Tensor, samples: Tensor) -> Tensor:
    """Stand-in for augmented images: channel 0 is the sample, channel 1 the epoch."""
    x = torch.zeros(len(samples), 3, 4, 4)
    x[:, 0] = samples[:, None, None].float()
    x[:, 1] = torch.as_tensor(epoch).float().reshape(-1, 1, 1)
    return x


def teacher_outputs(x: Tensor) -> Prediction:
    """Outputs that differ between samples, epochs and cells, with more digits than float16 has."""
    sample = x[:, 0, 0, 0]
    epoch = x[:, 1, 0, 0]
    base = 1 + sample / 7 + 10 * epoch
    logits = base[:, None] * torch.tensor([1.0, -2.0, 1e-3]) / 3
    cells = torch.linspace(-1, 1, CLASSES * 2 * 3).view(1, CLASSES, 2, 3) / 3
    return Prediction(logits, base[:, None, None, None] * cells)


def round_to_float16(prediction: Prediction) -> Prediction:
    """Convert to float16 and back with NumPy."""
    assert prediction.cams is not None
    logits = torch.from_numpy(prediction.logits.numpy().astype("<f2").astype("<f4"))
    cams = torch.from_numpy(prediction.cams.numpy().astype("<f2").astype("<f4"))
    return Prediction(logits, cams)


class RecordingTeacher:
    """Teacher that records the samples it processes."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def __call__(self, x: Tensor) -> Prediction:
        self.samples += x[:, 0, 0, 0].int().tolist()
        return teacher_outputs(x)


def make_store(folder: Path, num_samples: int = NUM_SAMPLES) -> Store:
    return Store(folder, Manifest("runs/teacher", "fake", "none", "light", 0, "fp32", num_samples, FORMAT))


def make_cache(folder: Path) -> tuple[TeacherCache, RecordingTeacher]:
    teacher = RecordingTeacher()
    return TeacherCache(teacher, make_store(folder)), teacher


def get_or_compute(cache: TeacherCache, epoch: int, *samples: int) -> Prediction:
    """Return the cached outputs, or compute them, as the training loop does."""
    indices = torch.tensor(samples)
    cached = cache.get(epoch, indices)
    return cache.compute(epoch, indices, make_views(epoch, indices)) if cached is None else cached


def expected_outputs(epoch: int, *samples: int) -> Prediction:
    return round_to_float16(teacher_outputs(make_views(epoch, torch.tensor(samples))))


def equal(a: Prediction, b: Prediction) -> bool:
    assert a.cams is not None
    assert b.cams is not None
    return torch.equal(a.logits, b.logits) and torch.equal(a.cams, b.cams)


# --- get and compute


def test_cached_and_computed_outputs_are_equal_and_rounded_to_float16(tmp_path: Path) -> None:
    cache, teacher = make_cache(tmp_path)
    samples = torch.tensor([4, 1, 7])
    assert cache.get(0, samples) is None
    computed = cache.compute(0, samples, make_views(0, samples))
    cached = cache.get(0, samples)
    assert teacher.samples == [4, 1, 7]
    exact = teacher_outputs(make_views(0, samples))
    assert exact.cams is not None
    for outputs in (computed, cached):
        assert outputs is not None
        assert outputs.cams is not None
        assert outputs.features is None
        assert outputs.class_ids is None
        assert outputs.logits.dtype == outputs.cams.dtype == torch.float32
        assert equal(outputs, expected_outputs(0, 4, 1, 7))
        assert not torch.equal(outputs.cams, exact.cams)
        torch.testing.assert_close(outputs.cams, exact.cams, rtol=2**-11, atol=2**-25)
        torch.testing.assert_close(outputs.logits, exact.logits, rtol=2**-11, atol=2**-25)
    assert cache.num_computed == 3


@settings(max_examples=10)
@given(
    order=st.permutations(range(NUM_SAMPLES)),
    batch_sizes=st.tuples(st.integers(1, NUM_SAMPLES), st.integers(1, NUM_SAMPLES)),
)
def test_outputs_do_not_depend_on_batches_or_on_the_run(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], batch_sizes: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    first_cache, teacher = make_cache(folder)
    computed: dict[int, Prediction] = {}
    for samples in torch.arange(NUM_SAMPLES).split(batch_sizes[0]):
        outputs = get_or_compute(first_cache, 1, *samples.tolist())
        assert outputs.cams is not None
        for row, sample in enumerate(samples.tolist()):
            computed[sample] = Prediction(outputs.logits[row], outputs.cams[row])
    assert sorted(teacher.samples) == list(range(NUM_SAMPLES))
    second_cache, idle_teacher = make_cache(folder)
    for samples in torch.tensor(order).split(batch_sizes[1]):
        outputs = get_or_compute(second_cache, 1, *samples.tolist())
        assert outputs.cams is not None
        for row, sample in enumerate(samples.tolist()):
            assert equal(Prediction(outputs.logits[row], outputs.cams[row]), computed[sample])
    assert not idle_teacher.samples
    assert second_cache.num_computed == 0


def test_epochs_are_cached_separately(tmp_path: Path) -> None:
    cache, teacher = make_cache(tmp_path)
    first = get_or_compute(cache, 0, 2, 3)
    second = get_or_compute(cache, 1, 2, 3)
    assert not equal(first, second)
    assert teacher.samples == [2, 3, 2, 3]
    assert equal(get_or_compute(cache, 0, 2, 3), first)
    assert equal(get_or_compute(cache, 1, 3), expected_outputs(1, 3))
    assert len(teacher.samples) == 4


def test_without_store_and_format_outputs_are_computed_every_time_in_fp32() -> None:
    teacher = RecordingTeacher()
    cache = TeacherCache(teacher)
    for _ in range(2):
        outputs = get_or_compute(cache, 0, 1, 2)
        assert equal(outputs, teacher_outputs(make_views(0, torch.tensor([1, 2]))))
    assert teacher.samples == [1, 2, 1, 2]
    assert cache.num_computed == 4


def test_without_store_outputs_equal_those_of_a_store(tmp_path: Path) -> None:
    record_format = RecordFormat(120, 2, 2)
    logits = torch.randn(3, 120)
    cams = torch.randn(3, 120, 2, 2)
    samples = torch.tensor([4, 0, 2])
    x = torch.zeros(3, 3, 4, 4)
    store = Store(tmp_path, Manifest("t", "a", "d", "none", 0, "fp32", 9, record_format))
    with_store = TeacherCache(lambda x: Prediction(logits, cams), store)
    without_store = TeacherCache(lambda x: Prediction(logits, cams), record_format=record_format)
    computed = with_store.compute(0, samples, x)
    cached = with_store.get(0, samples)
    uncached = without_store.compute(0, samples, x)
    assert cached is not None
    for outputs in (cached, uncached):
        for part, expected in zip(outputs, computed, strict=True):
            assert (part is None) == (expected is None)
            assert part is None or torch.equal(part, expected)
    assert uncached.class_ids is not None
    assert uncached.class_ids.shape == (3, 10)
    assert without_store.get(0, samples) is None


def test_failed_teacher_leaves_no_valid_record(tmp_path: Path) -> None:
    def fail(x: Tensor) -> Prediction:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get_or_compute(TeacherCache(fail, make_store(tmp_path)), 0, 1)
    cache, teacher = make_cache(tmp_path)
    get_or_compute(cache, 0, 1)
    assert teacher.samples == [1]


def test_two_caches_share_a_store_while_both_compute(tmp_path: Path) -> None:
    fast_cache, fast_teacher = make_cache(tmp_path)

    def slow_teacher(x: Tensor) -> Prediction:
        get_or_compute(fast_cache, 0, 5)
        return teacher_outputs(x)

    slow_cache = TeacherCache(slow_teacher, make_store(tmp_path))
    get_or_compute(slow_cache, 0, 6)
    assert equal(get_or_compute(slow_cache, 0, 5, 6), expected_outputs(0, 5, 6))
    assert equal(get_or_compute(fast_cache, 0, 5, 6), expected_outputs(0, 5, 6))
    assert fast_teacher.samples == [5]


def test_corrupt_record_is_computed_again_with_a_warning(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path)
    get_or_compute(cache, 0, 2, 3, 4)
    path = tmp_path / "epoch-0000.bin"
    content = bytearray(path.read_bytes())
    content[3 * FORMAT.dtype.itemsize + 12] ^= 1
    path.write_bytes(content)
    cache, teacher = make_cache(tmp_path)
    assert equal(get_or_compute(cache, 0, 2, 4), expected_outputs(0, 2, 4))
    assert teacher.samples == []
    with pytest.warns(CorruptCacheWarning, match=r"^1 of .*epoch-0000\.bin"):
        assert equal(get_or_compute(cache, 0, 2, 3, 4), expected_outputs(0, 2, 3, 4))
    assert teacher.samples == [2, 3, 4]
    assert equal(get_or_compute(cache, 0, 2, 3, 4), expected_outputs(0, 2, 3, 4))
    assert teacher.samples == [2, 3, 4]


# --- full disk


def use_cache_on_a_full_disk(folder: str, limit: str) -> None:
    """Use a cache in a process that may write no file larger than ``limit`` bytes, then without that limit."""
    store_folder = Path(folder)
    hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    cache = TeacherCache(RecordingTeacher(), make_store(store_folder, 1000))
    assert cache.store is not None
    size = cache.store.epoch_bytes
    assert size > int(limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard_limit))
    records = FORMAT.encode(teacher_outputs(make_views(0, torch.tensor([1]))))
    with pytest.raises(CacheFullError, match=re.escape(folder)):
        cache.store.write(0, np.array([1]), records)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outputs = get_or_compute(cache, 0, 1, 999)
        (warning,) = caught
        assert folder in str(warning.message)
        assert "the teacher runs at every step" in str(warning.message)
        assert equal(outputs, expected_outputs(0, 1, 999))
    assert cache.num_computed == 4
    assert not list(store_folder.glob("epoch-*"))
    assert not list(store_folder.glob(".*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard_limit, hard_limit))
    get_or_compute(cache, 0, 1, 999)
    assert equal(get_or_compute(cache, 0, 1, 999), expected_outputs(0, 1, 999))
    assert cache.num_computed == 6
    assert (store_folder / "epoch-0000.bin").stat().st_size == size


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4096, 0], ids=["less than an epoch", "nothing"])
def test_full_disk_gives_a_warning_and_the_same_outputs(tmp_path: Path, limit: int) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['use_cache_on_a_full_disk'](*sys.argv[2:])"
    command = [sys.executable, "-W", "error", "-c", code, __file__, str(tmp_path / "store"), str(limit)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_truncated_file_on_a_full_disk_gives_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = make_cache(tmp_path)
    get_or_compute(cache, 0, 1, 2)
    path = tmp_path / "epoch-0000.bin"
    path.write_bytes(path.read_bytes()[:-1])

    def raise_no_space(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", raise_no_space)
    cache, _ = make_cache(tmp_path)
    with pytest.warns(UserWarning, match="a full disk"):
        assert equal(get_or_compute(cache, 0, 8, 9), expected_outputs(0, 8, 9))


# --- batches of samples of several epochs

EPOCHS = torch.tensor([0, 2, 0, 2, 1, 0])
SAMPLES = torch.tensor([1, 1, 4, 1, 9, 1])
PAIRS = {(0, 1), (2, 1), (0, 4), (1, 9)}


def test_outputs_of_samples_of_several_epochs(tmp_path: Path) -> None:
    """Each pair of epoch and sample is computed once, also if it occurs twice in a batch, and then read."""
    cache, teacher = make_cache(tmp_path)
    x = make_views(EPOCHS, SAMPLES)
    expected = round_to_float16(teacher_outputs(x))
    for num_computed in (len(PAIRS), len(PAIRS)):
        outputs = cache.outputs(EPOCHS, SAMPLES, x)
        assert torch.equal(outputs.logits, expected.logits)
        assert outputs.cams is not None
        assert expected.cams is not None
        assert torch.equal(outputs.cams, expected.cams)
        assert cache.num_computed == len(teacher.samples) == num_computed
    assert cache.get(2, torch.tensor([1])) is not None
    assert cache.get(2, torch.tensor([4])) is None


def test_cached_outputs_of_some_samples_are_not_replaced(tmp_path: Path) -> None:
    """A run that fills the cache uses the bits that a later run reads, so written records stay."""
    cache, teacher = make_cache(tmp_path)
    get_or_compute(cache, 0, 4)
    other, _ = make_cache(tmp_path)
    other.teacher_fn = lambda x: Prediction(*(-part for part in teacher_outputs(x)[:2] if part is not None))
    x = make_views(EPOCHS, SAMPLES)
    outputs = other.outputs(EPOCHS, SAMPLES, x).logits
    expected = round_to_float16(teacher_outputs(x)).logits
    is_cached = (EPOCHS == 0) & (SAMPLES == 4)
    assert torch.equal(outputs[is_cached], expected[is_cached])
    assert torch.equal(outputs[~is_cached], -expected[~is_cached])
    assert torch.equal(cache.outputs(EPOCHS, SAMPLES, x).logits, outputs)
    assert teacher.samples == [4]


def test_corrupt_outputs_of_samples_are_computed_again(tmp_path: Path) -> None:
    cache, teacher = make_cache(tmp_path)
    x = make_views(EPOCHS, SAMPLES)
    expected = cache.outputs(EPOCHS, SAMPLES, x)
    path = make_store(tmp_path).path(1)
    content = bytearray(path.read_bytes())
    content[9 * FORMAT.dtype.itemsize + 10] ^= 1
    path.write_bytes(content)
    cache, teacher = make_cache(tmp_path)
    with pytest.warns(CorruptCacheWarning, match="epoch-0001"):
        outputs = cache.outputs(EPOCHS, SAMPLES, x)
    assert teacher.samples == [9]
    assert torch.equal(outputs.logits, expected.logits)


def test_outputs_of_samples_without_a_store() -> None:
    teacher = RecordingTeacher()
    cache = TeacherCache(teacher, record_format=FORMAT)
    outputs = cache.outputs(EPOCHS, SAMPLES, make_views(EPOCHS, SAMPLES))
    assert torch.equal(outputs.logits, round_to_float16(teacher_outputs(make_views(EPOCHS, SAMPLES))).logits)
    assert len(teacher.samples) == len(SAMPLES)
