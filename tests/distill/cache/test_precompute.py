"""Asking ahead of time: the answers are those of a run that asks as it goes, and what it takes is what was said."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.dataset import Dataset, no_progress
from camkd.data.sources import open_data
from camkd.distill.cache import CacheFullError, CorruptCacheWarning, Store, TeacherCache
from camkd.distill.cache import precompute as filling
from camkd.distill.cache.precompute import Job, estimate_architecture_cost, estimate_cost, precompute
from camkd.distill.teacher import Teacher, load_teacher
from camkd.experiments import pipeline
from camkd.experiments.pipeline import prepare_teacher_cache, train_run
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.types import InputError, Prediction

TWO = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)
SMALL = replace(TWO, batch_size=4)  # three pieces of work an epoch: 24 batches
DATA = DataConfig(data="easy")
RECORD = 8 + 2 * 3 * 4 * 4  # checksum and three maps; the logits follow


def save_teacher(folder: Path, name: str, data: Dataset) -> Path:
    """A network with weights drawn at random, as a run folder."""
    model = build(name, len(data.classes), 16, seed=3)
    model.set_normalization([0.3, 0.3, 0.3], [0.2, 0.2, 0.2])
    save(model, folder, ModelInfo(name, data.classes, 16, 0, 0, "teacher", "plain", data.name, data.fingerprint, 3))
    return folder


@pytest.fixture(scope="module")
def teacher(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "resnet8", "resnet8", easy)


@pytest.fixture
def use_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go on with another cache, an empty one at first; returns the folder of its stores."""

    def use(name: str) -> Path:
        monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / name))
        return tmp_path / name / "teacher"

    use("cache")
    return use


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures in each batch that a teacher is asked about when it is asked ahead of time."""
    numbers: list[int] = []
    real = filling.build_teacher_cache

    def counting(*arguments: object) -> TeacherCache:
        known = real(*arguments)  # type: ignore[arg-type]
        answer = known.teacher

        def count(x: Tensor) -> Prediction:
            numbers.append(len(x))
            return answer(x)

        known.teacher = count
        return known

    monkeypatch.setattr(filling, "build_teacher_cache", counting)
    return numbers


def job(teacher: Path, train: TrainConfig = TWO, lesson: DistillConfig | None = None, data: DataConfig = DATA) -> Job:
    return Job(teacher, data, train, lesson or DistillConfig())


def contents(folder: Path) -> dict[str, str]:
    """The epochs' files of all stores in a folder."""
    files = sorted(folder.rglob("epoch-*.bin"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def everything_known(store: Store, epochs: int, count: int = 96) -> bool:
    return [store.verify_epoch(epoch) for epoch in store.epochs()] == [(count, 0)] * epochs


# --- it is what a run would have asked


@pytest.mark.parametrize("views", ["light", "strong"])
def test_filling_then_training_is_training_cold_then_warm(
    teacher: Path,
    easy: Dataset,
    tmp_path: Path,
    use_cache: Callable[[str], Path],
    views: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_draw", lambda *arguments: None)
    monkeypatch.setattr(Teacher, "check", lambda teacher: 1.0)  # it has learnt nothing
    config, lesson = replace(TWO, augment=views), DistillConfig("cam-kd")

    def learn(name: str) -> int:
        taught = load_teacher(teacher, easy, "cpu")
        known, used = prepare_teacher_cache(taught, easy, config, lesson)
        assert known is not None
        train_run(tmp_path / name, easy, "cam-net", "student", (DATA, used), lesson, taught, known)
        return known.asked

    first = use_cache("first")
    assert [learn("cold"), learn("warm")] == [2 * 96, 0]
    second = use_cache("second")
    precompute(job(teacher, config, lesson), easy, 1, no_progress)
    assert learn("filled") == 0
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("cold", "warm", "filled")}
    assert len(set(weights.values())) == 1
    assert contents(first) == contents(second)
    assert len(contents(first)) == 2


def test_progress_counts_the_views_up_to_all_of_them(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], asked: list[int]
) -> None:
    said: list[tuple[int, int, str]] = []
    store = precompute(job(teacher, SMALL), easy, 1, lambda *words: said.append(words))
    assert [done for done, _, _ in said] == [32, 64, 96, 128, 160, 192]
    assert {total for _, total, _ in said} == {2 * 96}
    assert asked == [4] * 48
    assert everything_known(store, 2)
    assert store.folder.parent == use_cache("cache")


def test_what_was_interrupted_goes_on_with_what_is_missing(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], asked: list[int]
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(job(teacher, SMALL), easy, 1, stop)
    assert sum(asked) == 64
    asked.clear()
    store = precompute(job(teacher, SMALL), easy, 1, no_progress)
    assert sum(asked) == 2 * 96 - 64
    assert everything_known(store, 2)
    asked.clear()
    precompute(job(teacher, SMALL), easy, 1, no_progress)
    assert not asked
    interrupted = contents(use_cache("cache"))
    whole = use_cache("whole")
    precompute(job(teacher, SMALL), easy, 1, no_progress)
    assert contents(whole) == interrupted


def test_a_batch_that_is_known_in_part_and_one_that_is_damaged_are_asked_again(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], asked: list[int]
) -> None:
    store = precompute(job(teacher, SMALL), easy, 1, no_progress)
    sound = contents(use_cache("cache"))
    asked.clear()
    with store.path(1).open("r+b") as stream:
        stream.seek(17 * RECORD)
        stream.write(bytes(RECORD))  # unknown
        stream.seek(50 * RECORD + 20)
        stream.write(b"\x11\x22\x33")  # damaged
    order = filling.epoch_order(96, SMALL.augment_seed, 1, SMALL.batch_size)
    batches = sum(bool({17, 50} & set(samples.tolist())) for samples in order)
    with pytest.warns(CorruptCacheWarning, match="1 of the teacher's answers"):
        precompute(job(teacher, SMALL), easy, 1, no_progress)
    assert asked == [4] * batches
    assert contents(use_cache("cache")) == sound


def test_several_processes_give_the_answers_of_one(
    teacher: Path, easy_folder: Path, use_cache: Callable[[str], Path]
) -> None:
    data_config = DataConfig(data=str(easy_folder))
    one = use_cache("one")
    data, work = open_data(str(easy_folder)), job(teacher, SMALL, data=data_config)
    precompute(work, data, 1, no_progress)
    several = use_cache("several")
    said: list[tuple[int, int]] = []

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(work, data, 1, stop)
    assert contents(several) != contents(one)
    store = precompute(work, data, 2, lambda done, total, what: said.append((done, total)))
    assert contents(several) == contents(one)
    assert everything_known(store, 2)
    assert said[-1] == (2 * 96, 2 * 96)
    assert said == sorted(said)


# --- room


def test_a_budget_without_room_for_an_epoch_is_an_input_error(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], asked: list[int]
) -> None:
    for budget in ("0", f"{96 * RECORD - 1}B"):
        with pytest.raises(InputError, match=rf"knowledge budget of {budget} has no room .* --cache-budget"):
            precompute(job(teacher, lesson=DistillConfig(cache_budget=budget)), easy, 1, no_progress)
        assert estimate_cost(job(teacher, lesson=DistillConfig(cache_budget=budget)), easy).figures["bytes"] == 0
    assert not use_cache("cache").exists()


@pytest.mark.parametrize(("budget", "epochs"), [(96 * RECORD, 1), (2 * 96 * RECORD - 1, 1), (2 * 96 * RECORD, 2)])
def test_no_more_epochs_are_asked_than_the_budget_has_room_for(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], budget: int, epochs: int
) -> None:
    work = job(teacher, lesson=DistillConfig(cache_budget=f"{budget}B"))
    assert estimate_cost(work, easy).epochs == epochs
    store = precompute(work, easy, 1, no_progress)
    assert store.epochs() == list(range(epochs))
    assert everything_known(store, epochs)
    assert sum(path.stat().st_size for path in use_cache("cache").rglob("*.bin")) <= budget


def test_a_full_disk_is_an_input_error(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheFullError, match="no space for"):
        precompute(job(teacher), easy, 1, no_progress)
    assert not list(use_cache("cache").rglob("*.bin"))


# --- what it takes


def test_the_size_that_is_said_is_that_of_the_files(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path]
) -> None:
    for lesson in (DistillConfig(), DistillConfig(cache_map_size=2), DistillConfig(cache_map_size=3)):
        work = job(teacher, lesson=lesson)
        before = estimate_cost(work, easy)
        assert (before.pictures, before.epochs, before.asked_before) == (96, 2, 0)
        store = precompute(work, easy, 1, no_progress)
        files = [path.stat().st_size for path in store.folder.glob("*.bin")]
        figures = before.figures
        assert figures["bytes"] == sum(files) == 2 * 96 * before.bytes_per_picture
        assert files == [figures["bytes_per_epoch"]] * 2
        assert before.pictures_per_second > 0
        assert figures["seconds"] == pytest.approx(2 * 96 / before.pictures_per_second)
        after = estimate_cost(work, easy)
        assert after.asked_before == 2 * 96
        assert after.figures["seconds"] == 0
        assert after.figures["bytes"] == figures["bytes"]
    assert estimate_cost(job(teacher), easy).bytes_per_picture == RECORD


def test_what_is_known_already_is_counted(teacher: Path, easy: Dataset, use_cache: Callable[[str], Path]) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(job(teacher, SMALL), easy, 1, stop)
    found = estimate_cost(job(teacher, SMALL), easy)
    assert found.asked_before == 32
    assert found.figures["seconds"] == pytest.approx((192 - 32) / found.pictures_per_second)
    precompute(job(teacher, replace(SMALL, epochs=3)), easy, 1, no_progress)
    assert estimate_cost(job(teacher, SMALL), easy).asked_before == 192, "the third epoch is not what is asked for"


def test_pictures_that_are_not_there_cost_what_those_that_are_do(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path]
) -> None:
    there, elsewhere = (
        estimate_cost(job(teacher), easy),
        estimate_architecture_cost("resnet8", TWO, DistillConfig(), 96, 3, 16),
    )
    assert elsewhere._replace(pictures_per_second=0) == there._replace(pictures_per_second=0)
    assert elsewhere.pictures_per_second > 0
    assert not use_cache("cache").exists()


def test_of_a_thousand_classes_ten_maps_are_counted(use_cache: Callable[[str], Path]) -> None:
    budget = DistillConfig(cache_budget="20GB")
    found = estimate_architecture_cost("resnet8", replace(TWO, epochs=30, batch_size=2), budget, 1_280_000, 1000, 64)
    record = 8 + 10 * 8 * 8 * 2 + 1000 * 2 + 10 * 4
    assert record % 8 == 0
    assert found.bytes_per_picture == record
    assert found.figures["bytes_per_epoch"] == 1_280_000 * record
    assert found.epochs == 20_000_000_000 // (1_280_000 * record) == 4
    assert found.figures["bytes"] == 4 * 1_280_000 * record
    assert found.figures["seconds"] == pytest.approx(4 * 1_280_000 / found.pictures_per_second)


def test_rows_of_a_store_are_the_training_pictures(
    teacher: Path, easy: Dataset, use_cache: Callable[[str], Path]
) -> None:
    work = job(teacher, replace(TWO, augment="none", epochs=1))
    store = precompute(work, easy, 1, no_progress)
    with torch.no_grad():
        logits = load_teacher(teacher, easy, "cpu").model(
            torch.from_numpy(easy.train.images[[5, 90]]).permute(0, 3, 1, 2) / 255
        )
    found = store.read(0, np.array([5, 90]))
    assert found is not None
    torch.testing.assert_close(found.logits, logits, rtol=2e-3, atol=2e-3)
