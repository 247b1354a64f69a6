"""Precomputing: the same outputs as those of a training run, at the estimated cost."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from camkd.config import Balance, DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.batches import epoch_order
from camkd.data.dataset import Dataset, no_progress
from camkd.data.sources import open_data
from camkd.distill.cache import CacheFullError, CorruptCacheWarning, Store, TeacherCache
from camkd.distill.cache import precompute as precompute_module
from camkd.distill.cache.precompute import CacheCost, estimate_architecture_cost, estimate_cost, precompute
from camkd.distill.teacher import Teacher, load_teacher
from camkd.experiments import pipeline
from camkd.experiments.pipeline import prepare_teacher, train_run
from camkd.types import InputError, Prediction
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)
SMALL_BATCHES = replace(TRAIN, batch_size=4)  # 24 batches per epoch, in three tasks
RECORD_BYTES = 8 + 2 * 3 * 4 * 4  # checksum and three maps of 4x4 cells; the logits follow from the maps


@pytest.fixture(scope="module")
def teacher_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("teacher") / "resnet8", "resnet8", easy)


@pytest.fixture
def use_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that switches to another cache, empty at first, and returns the folder of its stores."""

    def use(name: str) -> Path:
        monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / name))
        return tmp_path / name / "teacher"

    return use


@pytest.fixture(autouse=True)
def stores(use_cache: Callable[[str], Path]) -> Path:
    """The folder of the stores of an empty cache for each test."""
    return use_cache("cache")


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each batch that the teacher processes while precomputing."""
    sizes: list[int] = []
    build_teacher_cache = precompute_module.build_teacher_cache

    def build_recording(*arguments: Any) -> TeacherCache:
        cache = build_teacher_cache(*arguments)
        teacher_fn = cache.teacher_fn

        def record(x: Tensor) -> Prediction:
            sizes.append(len(x))
            return teacher_fn(x)

        cache.teacher_fn = record
        return cache

    monkeypatch.setattr(precompute_module, "build_teacher_cache", build_recording)
    return sizes


def run_config(teacher_folder: Path, train: TrainConfig = TRAIN, data: str = "easy", **settings: Any) -> RunConfig:
    return RunConfig(DataConfig(data), train, DistillConfig(str(teacher_folder), **settings), model="resnet8")


def interrupt_after(num_images: int) -> Callable[[int, int, str], None]:
    """Return a progress callback that interrupts after a number of images."""

    def progress(done: int, total: int, description: str) -> None:
        if done >= num_images:
            raise KeyboardInterrupt

    return progress


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each epoch file in a folder."""
    files = sorted(folder.rglob("epoch-*.bin"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_complete(store: Store, num_epochs: int) -> bool:
    return [store.verify_epoch(epoch) for epoch in store.epochs()] == [(96, 0)] * num_epochs


# --- outputs


@pytest.mark.parametrize(("policy", "balance"), [("light", "none"), ("strong", "none"), ("strong", "sampler")])
def test_training_after_precomputing_equals_training_without(
    teacher_folder: Path,
    easy: Dataset,
    tmp_path: Path,
    use_cache: Callable[[str], Path],
    policy: str,
    balance: Balance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "evaluate_and_save", lambda *arguments: {})
    monkeypatch.setattr(Teacher, "check_accuracy", lambda *arguments: "")
    teacher = load_teacher(teacher_folder, easy, "cpu")
    config = run_config(teacher_folder, replace(TRAIN, augment=policy, balance=balance))

    def train(name: str) -> int:
        teacher_with_cache, resolved = prepare_teacher(teacher, config)
        assert teacher_with_cache.cache is not None
        train_run(tmp_path / name, resolved, easy, teacher_with_cache)
        return teacher_with_cache.cache.num_computed

    trained_stores = use_cache("trained")
    assert train("cold") == 2 * 96
    assert train("warm") == 0
    precomputed_stores = use_cache("precomputed")
    precompute(config, easy, 1, no_progress)
    assert train("precomputed") == 0
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("cold", "warm", "precomputed")}
    assert len(weights) == 1
    assert hashes(trained_stores) == hashes(precomputed_stores)
    assert len(hashes(trained_stores)) == 2


def test_progress_counts_images(teacher_folder: Path, easy: Dataset, stores: Path, batch_sizes: list[int]) -> None:
    calls: list[tuple[int, int, str]] = []
    store = precompute(run_config(teacher_folder, SMALL_BATCHES), easy, 1, lambda *arguments: calls.append(arguments))
    assert [done for done, _, _ in calls] == [32, 64, 96, 128, 160, 192]
    assert {total for _, total, _ in calls} == {2 * 96}
    assert batch_sizes == [4] * 48
    assert is_complete(store, 2)
    assert store.folder.parent == stores


def test_interrupted_work_resumes_with_missing_outputs(
    teacher_folder: Path, easy: Dataset, use_cache: Callable[[str], Path], stores: Path, batch_sizes: list[int]
) -> None:
    config = run_config(teacher_folder, SMALL_BATCHES)
    with pytest.raises(KeyboardInterrupt):
        precompute(config, easy, 1, interrupt_after(64))
    assert sum(batch_sizes) == 64
    batch_sizes.clear()
    store = precompute(config, easy, 1, no_progress)
    assert sum(batch_sizes) == 2 * 96 - 64
    assert is_complete(store, 2)
    batch_sizes.clear()
    precompute(config, easy, 1, no_progress)
    assert not batch_sizes
    uninterrupted_stores = use_cache("uninterrupted")
    precompute(config, easy, 1, no_progress)
    assert hashes(uninterrupted_stores) == hashes(stores)


def test_incomplete_and_corrupt_batches_are_computed_again(
    teacher_folder: Path, easy: Dataset, stores: Path, batch_sizes: list[int]
) -> None:
    config = run_config(teacher_folder, SMALL_BATCHES)
    store = precompute(config, easy, 1, no_progress)
    intact = hashes(stores)
    batch_sizes.clear()
    with store.path(1).open("r+b") as stream:
        stream.seek(17 * RECORD_BYTES)
        stream.write(bytes(RECORD_BYTES))  # not computed
        stream.seek(50 * RECORD_BYTES + 20)
        stream.write(b"\x11\x22\x33")  # corrupt
    order = epoch_order(96, SMALL_BATCHES.augment_seed, 1, SMALL_BATCHES.batch_size)
    num_batches = sum(bool({17, 50} & set(samples.tolist())) for samples in order)
    with pytest.warns(CorruptCacheWarning, match=r"^1 of "):
        precompute(config, easy, 1, no_progress)
    assert batch_sizes == [4] * num_batches
    assert hashes(stores) == intact


def test_several_processes_compute_the_outputs_of_one(
    teacher_folder: Path, easy_folder: Path, use_cache: Callable[[str], Path]
) -> None:
    data = open_data(easy_folder)
    config = run_config(teacher_folder, SMALL_BATCHES, str(easy_folder))
    stores_of_one = use_cache("one")
    precompute(config, data, 1, no_progress)
    stores_of_two = use_cache("two")
    with pytest.raises(KeyboardInterrupt):
        precompute(config, data, 1, interrupt_after(1))
    assert hashes(stores_of_two) != hashes(stores_of_one)
    calls: list[tuple[int, int]] = []
    store = precompute(config, data, 2, lambda done, total, description: calls.append((done, total)))
    assert hashes(stores_of_two) == hashes(stores_of_one)
    assert is_complete(store, 2)
    assert calls[-1] == (2 * 96, 2 * 96)
    assert calls == sorted(calls)


def test_row_of_a_store_is_the_index_of_a_training_image(teacher_folder: Path, easy: Dataset) -> None:
    store = precompute(run_config(teacher_folder, replace(TRAIN, augment="none", epochs=1)), easy, 1, no_progress)
    rows = np.array([5, 90])
    x = torch.from_numpy(easy.train.images[rows]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = load_teacher(teacher_folder, easy, "cpu").model(x)
    outputs = store.read(0, rows)
    assert outputs is not None
    torch.testing.assert_close(outputs.logits, logits, rtol=2e-3, atol=2e-3)


# --- budget and disk


@pytest.mark.parametrize("budget", ["0", f"{96 * RECORD_BYTES - 1}B"])
def test_budget_below_one_epoch_is_refused(teacher_folder: Path, easy: Dataset, stores: Path, budget: str) -> None:
    config = run_config(teacher_folder, cache_budget=budget)
    with pytest.raises(InputError, match=rf"--cache-budget must .* got {budget}\."):
        precompute(config, easy, 1, no_progress)
    assert estimate_cost(config, easy).summary()["bytes"] == 0
    assert not stores.exists()


@pytest.mark.parametrize(
    ("budget", "epochs"), [(96 * RECORD_BYTES, 1), (2 * 96 * RECORD_BYTES - 1, 1), (2 * 96 * RECORD_BYTES, 2)]
)
def test_budget_limits_the_number_of_epochs(
    teacher_folder: Path, easy: Dataset, stores: Path, budget: int, epochs: int
) -> None:
    config = run_config(teacher_folder, cache_budget=f"{budget}B")
    assert estimate_cost(config, easy).epochs == epochs
    store = precompute(config, easy, 1, no_progress)
    assert store.epochs() == list(range(epochs))
    assert is_complete(store, epochs)
    assert sum(path.stat().st_size for path in stores.rglob("*.bin")) <= budget


def test_full_disk_is_an_input_error(
    teacher_folder: Path, easy: Dataset, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_no_space(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", raise_no_space)
    with pytest.raises(CacheFullError, match="got a full disk"):
        precompute(run_config(teacher_folder), easy, 1, no_progress)
    assert not list(stores.rglob("*.bin"))


# --- estimates


def test_summary_of_a_cost() -> None:
    cost = CacheCost(bytes_per_image=104, images=96, epochs=2, images_per_second=50.0, computed_before=92)
    assert cost.summary() == {
        "bytes_per_image": 104,
        "images": 96,
        "epochs": 2,
        "images_per_second": 50.0,
        "computed_before": 92,
        "bytes_per_epoch": 9984,
        "bytes": 19_968,
        "seconds": 2.0,
    }


@pytest.mark.parametrize("map_size", [None, 2, 3])
def test_estimated_size_is_that_of_the_files(teacher_folder: Path, easy: Dataset, map_size: int | None) -> None:
    config = run_config(teacher_folder, cache_map_size=map_size)
    before = estimate_cost(config, easy)
    assert (before.images, before.epochs, before.computed_before) == (96, 2, 0)
    assert before.images_per_second > 0
    if map_size is None:
        assert before.bytes_per_image == RECORD_BYTES
    store = precompute(config, easy, 1, no_progress)
    files = [path.stat().st_size for path in store.folder.glob("*.bin")]
    summary = before.summary()
    assert summary["bytes"] == sum(files) == 2 * 96 * before.bytes_per_image
    assert files == [summary["bytes_per_epoch"]] * 2
    assert summary["seconds"] == pytest.approx(2 * 96 / before.images_per_second)
    after = estimate_cost(config, easy)
    assert after.computed_before == 2 * 96
    assert after.summary()["seconds"] == 0
    assert after.summary()["bytes"] == summary["bytes"]


def test_cached_outputs_reduce_the_estimated_time(teacher_folder: Path, easy: Dataset) -> None:
    config = run_config(teacher_folder, SMALL_BATCHES)
    with pytest.raises(KeyboardInterrupt):
        precompute(config, easy, 1, interrupt_after(1))
    cost = estimate_cost(config, easy)
    assert cost.computed_before == 32
    assert cost.summary()["seconds"] == pytest.approx((192 - 32) / cost.images_per_second)
    precompute(run_config(teacher_folder, replace(SMALL_BATCHES, epochs=3)), easy, 1, no_progress)
    assert estimate_cost(config, easy).computed_before == 192, "the third epoch does not count"


def test_estimate_without_images_equals_that_with_images(teacher_folder: Path, easy: Dataset, stores: Path) -> None:
    config = run_config(teacher_folder)
    with_images = estimate_cost(config, easy)
    without_images = estimate_architecture_cost("resnet8", config, images=96, classes=3, size=16)
    assert without_images._replace(images_per_second=0) == with_images._replace(images_per_second=0)
    assert without_images.images_per_second > 0
    assert not stores.exists()


def test_estimate_for_a_thousand_classes_counts_ten_maps(teacher_folder: Path) -> None:
    train = replace(TRAIN, epochs=30, batch_size=2)
    config = run_config(teacher_folder, train, cache_budget="20GB")
    cost = estimate_architecture_cost("resnet8", config, images=1_280_000, classes=1000, size=64)
    record_bytes = 8 + 10 * 8 * 8 * 2 + 1000 * 2 + 10 * 4
    assert record_bytes % 8 == 0
    summary = cost.summary()
    assert cost.bytes_per_image == record_bytes
    assert summary["bytes_per_epoch"] == 1_280_000 * record_bytes
    assert cost.epochs == 20_000_000_000 // (1_280_000 * record_bytes) == 4
    assert summary["bytes"] == 4 * 1_280_000 * record_bytes
    assert summary["seconds"] == pytest.approx(4 * 1_280_000 / cost.images_per_second)
