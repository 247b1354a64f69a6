"""The teacher's answers: a view is asked once, what is read is what was said, and whatever differs is another store."""

from __future__ import annotations

import copy
import errno
import os
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import camkd.distill.cache
from camkd.cams import predict
from camkd.config import DistillConfig, TrainConfig
from camkd.data import augment as views_module
from camkd.data.augment import Policy, Views
from camkd.data.dataset import Dataset, Split
from camkd.distill.cache import CacheFullError, CorruptCacheWarning, Manifest, RecordFormat, Store, TeacherCache, key_of
from camkd.distill.cache import build as teachers
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.teacher import Teacher, load_teacher
from camkd.models import MODELS, build
from camkd.models.io import ModelInfo, save
from camkd.models.resnet import BasicBlock, ResNet
from camkd.types import Prediction

COUNT, CLASSES = 10, 3
LAYOUT = RecordFormat(CLASSES, 2, 3)


def view(epoch: int, samples: Tensor) -> Tensor:
    """A stand-in for a batch of views that says which views they are."""
    x = torch.zeros(len(samples), 3, 4, 4)
    x[:, 0], x[:, 1] = samples[:, None, None].float(), float(epoch)
    return x


def answer(x: Tensor) -> Prediction:
    """What the teacher says of a view: another number in every place, with more digits than float16 has."""
    sample, epoch = x[:, 0, 0, 0], x[:, 1, 0, 0]
    base = 1 + sample / 7 + 10 * epoch
    logits = base[:, None] * torch.tensor([1.0, -2.0, 1e-3]) / 3
    cells = torch.linspace(-1, 1, CLASSES * 2 * 3).view(1, CLASSES, 2, 3) / 3
    return Prediction(logits, base[:, None, None, None] * cells)


def rounded(said: Prediction) -> Prediction:
    """To float16 and back, by numpy."""
    assert said.cams is not None
    logits, cams = (torch.from_numpy(part.numpy().astype("<f2").astype("<f4")) for part in (said.logits, said.cams))
    return Prediction(logits, cams)


class Fake:
    """Counts the pictures it is asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Prediction:
        self.asked += x[:, 0, 0, 0].int().tolist()
        return answer(x)


def store_in(folder: Path, count: int = COUNT) -> Store:
    return Store(folder, Manifest("there", "fake", "none", "light", 0, "fp32", count, LAYOUT))


def knowledge(folder: Path) -> tuple[TeacherCache, Fake]:
    teacher = Fake()
    return TeacherCache(teacher, store_in(folder)), teacher


def tell(known: TeacherCache, epoch: int, *samples: int) -> Prediction:
    """As the training loop does: recall, else ask."""
    rows = torch.tensor(samples)
    found = known.get(epoch, rows)
    return known.compute(epoch, rows, view(epoch, rows)) if found is None else found


def truth(epoch: int, *samples: int) -> Prediction:
    return rounded(answer(view(epoch, torch.tensor(samples))))


def same(a: Prediction, b: Prediction) -> bool:
    assert a.cams is not None
    assert b.cams is not None
    return torch.equal(a.logits, b.logits) and torch.equal(a.cams, b.cams)


# --- a view is asked once


def test_what_is_read_is_what_was_asked_as_float16(tmp_path: Path) -> None:
    known, teacher = knowledge(tmp_path)
    rows = torch.tensor([4, 1, 7])
    assert known.get(0, rows) is None
    first, again = known.compute(0, rows, view(0, rows)), known.get(0, rows)
    assert teacher.asked == [4, 1, 7]
    exact = answer(view(0, rows))
    assert exact.cams is not None
    for said in (first, again):
        assert said is not None
        assert said.cams is not None
        assert said.features is None
        assert said.class_ids is None
        assert said.logits.dtype == said.cams.dtype == torch.float32
        assert same(said, truth(0, 4, 1, 7))
        assert not torch.equal(said.cams, exact.cams)
        torch.testing.assert_close(said.cams, exact.cams, rtol=2**-11, atol=2**-25)
        torch.testing.assert_close(said.logits, exact.logits, rtol=2**-11, atol=2**-25)
    assert known.asked == 3


@settings(max_examples=10)
@given(order=st.permutations(range(COUNT)), sizes=st.tuples(st.integers(1, COUNT), st.integers(1, COUNT)))
def test_a_run_that_reads_sees_the_numbers_of_the_run_that_filled(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], sizes: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    filling, teacher = knowledge(folder)
    filled: dict[int, Prediction] = {}
    for rows in torch.arange(COUNT).split(sizes[0]):
        said = tell(filling, 1, *rows.tolist())
        assert said.cams is not None
        for n, row in enumerate(rows.tolist()):
            filled[row] = Prediction(said.logits[n], said.cams[n])
    assert sorted(teacher.asked) == list(range(COUNT))
    reading, idle = knowledge(folder)
    for rows in torch.tensor(order).split(sizes[1]):
        said = tell(reading, 1, *rows.tolist())
        assert said.cams is not None
        for n, row in enumerate(rows.tolist()):
            assert same(Prediction(said.logits[n], said.cams[n]), filled[row])
    assert not idle.asked
    assert reading.asked == 0


def test_another_epoch_is_another_view(tmp_path: Path) -> None:
    known, teacher = knowledge(tmp_path)
    zero, one = tell(known, 0, 2, 3), tell(known, 1, 2, 3)
    assert not same(zero, one)
    assert teacher.asked == [2, 3, 2, 3]
    assert same(tell(known, 0, 2, 3), zero)
    assert same(tell(known, 1, 3), truth(1, 3))
    assert len(teacher.asked) == 4


def test_without_a_store_the_teacher_is_asked_each_time_and_answers_as_it_does(tmp_path: Path) -> None:
    teacher = Fake()
    known = TeacherCache(teacher)
    for _ in range(2):
        assert same(tell(known, 0, 1, 2), answer(view(0, torch.tensor([1, 2]))))
    assert teacher.asked == [1, 2, 1, 2]
    assert known.asked == 4


def test_a_teacher_that_fails_leaves_nothing_that_counts_as_known(tmp_path: Path) -> None:
    def fail(x: Tensor) -> Prediction:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tell(TeacherCache(fail, store_in(tmp_path)), 0, 1)
    known, teacher = knowledge(tmp_path)
    tell(known, 0, 1)
    assert teacher.asked == [1]


def test_an_instance_that_is_overtaken_while_it_asks_keeps_the_others_answers(tmp_path: Path) -> None:
    other, others = knowledge(tmp_path)

    def slowly(x: Tensor) -> Prediction:
        tell(other, 0, 5)
        return answer(x)

    slow = TeacherCache(slowly, store_in(tmp_path))
    tell(slow, 0, 6)
    assert same(tell(slow, 0, 5, 6), truth(0, 5, 6))
    assert same(tell(other, 0, 5, 6), truth(0, 5, 6))
    assert others.asked == [5]


def test_a_damaged_answer_is_asked_again_with_a_warning_and_known_from_then_on(tmp_path: Path) -> None:
    known, teacher = knowledge(tmp_path)
    tell(known, 0, 2, 3, 4)
    path = tmp_path / "epoch-0000.bin"
    content = bytearray(path.read_bytes())
    content[3 * LAYOUT.dtype.itemsize + 12] ^= 1
    path.write_bytes(content)
    again, teacher = knowledge(tmp_path)
    assert same(tell(again, 0, 2, 4), truth(0, 2, 4))
    assert teacher.asked == []
    with pytest.warns(CorruptCacheWarning, match=r"^1 of .*epoch-0000\.bin failed the checksum"):
        assert same(tell(again, 0, 2, 3, 4), truth(0, 2, 3, 4))
    assert teacher.asked == [2, 3, 4]
    assert same(tell(again, 0, 2, 3, 4), truth(0, 2, 3, 4))
    assert teacher.asked == [2, 3, 4]


# --- no room


def fill_a_full_disk(folder: str, limit: str) -> None:
    """In a process of its own that may write no files larger than ``limit`` bytes."""
    place, hard = Path(folder), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    known = TeacherCache(Fake(), store_in(place, 1000))
    size = known.store.epoch_bytes  # type: ignore[union-attr]
    assert size > int(limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    with pytest.raises(CacheFullError, match=re.escape(folder)):
        known.store.write(0, np.array([1]), LAYOUT.encode(answer(view(0, torch.tensor([1])))))  # type: ignore[union-attr]
    for _ in range(2):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            said = tell(known, 0, 1, 999)
        assert [folder in str(warning.message) for warning in seen] == [True]
        assert "asked at every step" in str(seen[0].message)
        assert same(said, truth(0, 1, 999))
    assert known.asked == 4
    assert not list(place.glob("epoch-*"))
    assert not list(place.glob(".*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    tell(known, 0, 1, 999)
    assert same(tell(known, 0, 1, 999), truth(0, 1, 999))
    assert known.asked == 6
    assert (place / "epoch-0000.bin").stat().st_size == size


@pytest.mark.parametrize("limit", [4096, 0], ids=["no room for an epoch", "no room at all"])
def test_on_a_full_disk_it_warns_and_goes_on_with_the_numbers_it_would_have_read(tmp_path: Path, limit: int) -> None:
    call = "import runpy, sys; runpy.run_path(sys.argv[1])['fill_a_full_disk'](*sys.argv[2:])"
    command = [sys.executable, "-W", "error", "-c", call, __file__, str(tmp_path / "store"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_cut_off_on_a_full_disk_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = knowledge(tmp_path)
    tell(first, 0, 1, 2)
    path = tmp_path / "epoch-0000.bin"
    path.write_bytes(path.read_bytes()[:-1])

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    known, _ = knowledge(tmp_path)
    with pytest.warns(UserWarning, match="no space"):
        assert same(tell(known, 0, 8, 9), truth(0, 8, 9))


# --- the key


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())


PARTS: dict[str, str | int | float] = {"data": "abc", "views": "light", "augment_seed": 0, "precision": "fp32"}


def test_the_key_is_that_of_equal_teachers_and_parts_in_any_order() -> None:
    model = Network()
    key = key_of(model, PARTS)
    assert key_of(copy.deepcopy(model), dict(reversed(PARTS.items()))) == key
    assert key_of(model.eval(), PARTS) == key, "modes are no part: a teacher is always in evaluation"
    assert key_of(model.requires_grad_(False), PARTS) == key
    assert key_of(model.to(memory_format=torch.channels_last), PARTS) == key  # type: ignore[call-overload]
    assert key.isalnum(), "it is a folder's name"


def next_float(model: nn.Module) -> None:
    weight = model.state_dict()["0.weight"]
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "the last bit of a weight": next_float,
    "a statistic": lambda model: model[1].running_mean.add_(0.1),  # type: ignore[operator, union-attr]
    "a bias": lambda model: model.state_dict()["0.bias"].add_(0.1),
    "an activation": lambda model: model.__setitem__(2, nn.GELU()),
    "a layer more": lambda model: model.append(nn.Identity()),
    "a stride": lambda model: model.__setitem__(0, _strided(model[0])),  # type: ignore[arg-type]
    "the number format": lambda model: model.double(),
}


def _strided(before: nn.Conv2d) -> nn.Conv2d:
    layer = nn.Conv2d(3, 4, 1, stride=2)
    layer.load_state_dict(before.state_dict())
    return layer


@pytest.mark.parametrize("change", CHANGES)
def test_another_teacher_has_another_key(change: str) -> None:
    model = Network()
    other = copy.deepcopy(model)
    CHANGES[change](other)
    assert key_of(other, PARTS) != key_of(model, PARTS)


@pytest.mark.parametrize(
    "other",
    [
        {**PARTS, "data": "abd"},
        {**PARTS, "views": "strong"},
        {**PARTS, "augment_seed": 1},
        {**PARTS, "augment_seed": "0"},
        {**PARTS, "precision": "bf16"},
        {**PARTS, "size": 32},
        {name: value for name, value in PARTS.items() if name != "views"},
    ],
)
def test_other_data_views_seeds_or_formats_have_another_key(other: dict[str, str | int | float]) -> None:
    model = Network()
    assert key_of(model, other) != key_of(model, PARTS)


def test_a_teacher_in_bf16_has_a_key() -> None:
    model = Network().bfloat16()
    assert key_of(model, PARTS) == key_of(copy.deepcopy(model), PARTS) != key_of(Network(), PARTS)


def test_equal_bytes_of_another_number_format_have_another_key() -> None:
    one, other = nn.Identity(), nn.Identity()
    one.register_buffer("offset", torch.zeros(3))
    other.register_buffer("offset", torch.zeros(3, dtype=torch.int32))
    assert key_of(one, PARTS) != key_of(other, PARTS)


def test_records_of_another_kind_have_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    before = key_of(model, PARTS)
    monkeypatch.setattr(camkd.distill.cache, "VERSION", camkd.distill.cache.VERSION + 1)
    assert key_of(model, PARTS) != before


# --- a real teacher


FP32 = TrainConfig(epochs=2, batch_size=24, precision="fp32", device="cpu")


def _mlp(classes: int, size: int) -> ResNet:
    return ResNet(BasicBlock, (8, 16), (1, 1), classes, size, hidden=6)


@contextmanager
def _known_here() -> Iterator[None]:
    """A network with gradient-based maps among the built-in ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny-mlp", _mlp)
        yield


def save_teacher(folder: Path, name: str, data: Dataset, size: int = 16) -> Path:
    """A network with weights and statistics drawn at random, as a run folder."""
    model = build(name, len(data.classes), size, seed=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    model.set_normalization([0.3, 0.3, 0.3], [0.2, 0.2, 0.2])
    said = ModelInfo(name, data.classes, size, 0, 0, "teacher", "plain", data.name, data.fingerprint, 3)
    save(model, folder, said)
    return folder


@pytest.fixture(scope="module")
def place(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "resnet8", "resnet8", easy)


@pytest.fixture
def taught(easy: Dataset, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    """The teacher, and an empty cache of this test's own."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return load_teacher(place, easy, "cpu")


def folder_of(taught: Teacher, data: Dataset, config: TrainConfig = FP32, lesson: DistillConfig | None = None) -> Path:
    store = build_teacher_cache(taught, data, config, lesson or DistillConfig()).store
    assert store is not None
    return store.folder


def test_whatever_changes_no_answer_is_the_same_store(taught: Teacher, easy: Dataset, place: Path) -> None:
    folder = folder_of(taught, easy)
    others = [
        replace(FP32, seed=5, lr=0.7, epochs=9, label_smoothing=0.1, figure_every=1, ema_decay=0.5),
        replace(FP32, batch_size=7, augment_epochs=1),
    ]
    assert {folder_of(taught, easy, other) for other in others} == {folder}
    lessons = [
        DistillConfig("kd"),
        DistillConfig(cache_budget="1kB"),
        DistillConfig(cache_map_size=4),
        DistillConfig(cache_map_size=99),
    ]
    assert {folder_of(taught, easy, FP32, lesson) for lesson in lessons} == {folder}
    assert folder_of(load_teacher(place, easy, "cpu"), easy) == folder
    assert folder_of(taught, replace(easy, name="otherwise", notes=("seen",))) == folder
    assert folder.parent == Path(os.environ["CAMKD_CACHE"]) / "teacher"
    assert not folder.exists(), "it is made with the first answer"


def test_whatever_changes_an_answer_is_another_store(
    taught: Teacher, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        FP32,
        replace(FP32, augment="none"),
        replace(FP32, augment="strong"),
        replace(FP32, augment_seed=1),
        replace(FP32, precision="bf16"),
    ]
    found = [folder_of(taught, easy, config) for config in configs]
    found += [folder_of(taught, easy, FP32, DistillConfig(cache_map_size=side)) for side in (1, 2, 3)]
    found.append(folder_of(taught, replace(easy, fingerprint="e" * 64)))
    for name in ("layer2.0.conv1.weight", "layer3.0.bn2.running_var", "fc.bias", "std"):
        tensor = taught.model.state_dict()[name]
        first = (0,) * tensor.ndim
        before = tensor[first].clone()
        tensor[first] = torch.nextafter(before, torch.tensor(9.0))
        found.append(folder_of(taught, easy))
        tensor[first] = before
    assert folder_of(taught, easy) == found[0]
    with monkeypatch.context() as patch:
        patch.setattr(teachers, "VIEWS", teachers.VIEWS + 1)
        found.append(folder_of(taught, easy))
    with monkeypatch.context() as patch:
        patch.setitem(views_module.POLICIES, "light", Policy(crop=True))
        found.append(folder_of(taught, easy))
    assert len(set(found)) == len(found)


def test_another_picture_size_is_another_store(taught: Teacher, easy: Dataset, tmp_path: Path) -> None:
    def enlarged(split: Split) -> Split:
        return replace(split, images=split.images.repeat(2, 1).repeat(2, 2))

    splits = {name: enlarged(split) for name, split in easy.splits.items()}
    large = replace(easy, **splits)  # with the fingerprint of the small ones, which is not what tells them apart here
    same_weights = load_teacher(save_teacher(tmp_path / "large", "resnet8", easy, 32), large, "cpu")
    same_weights.model.load_state_dict(taught.model.state_dict())
    assert folder_of(same_weights, large) != folder_of(taught, easy)


def test_the_manifest_says_what_the_store_is_about(taught: Teacher, easy: Dataset, place: Path) -> None:
    known = build_teacher_cache(
        taught, easy, replace(FP32, augment="strong", augment_seed=4), DistillConfig(cache_map_size=2)
    )
    assert known.store is not None
    said = known.store.manifest
    assert (said.teacher, said.architecture, said.data) == (str(place.resolve()), "resnet8", "easy")
    assert (said.augment, said.augment_seed, said.precision, said.num_samples) == ("strong", 4, "fp32", 96)
    assert (said.record_format.classes, said.record_format.height, said.record_format.width) == (3, 2, 2)
    assert said.record_format.bias == tuple(taught.model.state_dict()["fc.bias"].tolist())
    known.compute(0, torch.tensor([0]), torch.rand(1, 3, 16, 16))
    assert Manifest.read(known.store.folder) == said


def test_features_are_not_kept(taught: Teacher, easy: Dataset, tmp_path: Path) -> None:
    known = build_teacher_cache(taught, easy, FP32, DistillConfig("at"), features=True)
    assert known.store is None
    x = torch.rand(3, 3, 16, 16)
    said = known.compute(0, torch.arange(3), x)
    assert known.get(0, torch.arange(3)) is None
    assert said.features is not None
    with torch.no_grad():
        expected = predict(taught.model, x, features=True).features
    assert expected is not None
    assert [stage.shape[1:] for stage in said.features] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    torch.testing.assert_close(said.features, expected, rtol=1e-4, atol=1e-4)
    many = known.compute(0, torch.arange(40), torch.rand(40, 3, 16, 16)).features  # more than are asked at once
    assert many is not None
    assert all(len(stage) == 40 and stage.dtype == torch.float32 for stage in many)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("side", "kept", "follow"), [(None, 4, True), (8, 4, True), (4, 4, True), (3, 3, False), (2, 2, True), (1, 1, True)]
)
def test_logits_are_kept_where_they_do_not_follow_from_the_maps(
    taught: Teacher, easy: Dataset, side: int | None, kept: int, follow: bool
) -> None:
    known = build_teacher_cache(taught, easy, FP32, DistillConfig(cache_map_size=side))
    assert known.store is not None
    layout = known.store.record_format
    assert (layout.height, layout.width) == (kept, kept)
    assert (layout.bias is not None) == follow
    x = views_of(easy, "light")[0, torch.arange(5)]
    with torch.no_grad():
        fresh = predict(taught.model, x)
    said = known.compute(0, torch.arange(5), x)
    assert fresh.cams is not None
    assert_rounded(said.logits, fresh.logits, fresh.cams.abs().mean((2, 3)) + fresh.logits.abs())


class _Xs:
    """The pictures of views alone."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, key: tuple[int, Tensor]) -> Tensor:
        return self.views[key].x


def views_of(data: Dataset, policy: str) -> Any:
    return _Xs(Views(data.train, 3, policy, FP32.augment_seed, torch.device("cpu")))


def assert_rounded(found: Tensor, exact: Tensor, size: Tensor, error: float = 2.0**-11) -> None:
    """``found`` is ``exact`` but for rounding ``size`` to float16, and what folding changes in fp32."""
    assert found.shape == exact.shape
    excess = (found - exact).abs() - error * size - 2e-5 * exact.abs().max()
    assert excess.max() <= 0, float(excess.max())


@pytest.mark.parametrize("model", ["resnet8", "tiny-mlp"])
@pytest.mark.parametrize("policy", ["none", "light", "strong"])
def test_what_is_read_is_what_the_teacher_says_of_the_view(
    taught: Teacher, easy: Dataset, tmp_path: Path, policy: str, model: str
) -> None:
    with _known_here():
        if model != "resnet8":
            taught = load_teacher(save_teacher(tmp_path / model, model, easy), easy, "cpu")
        config, xs = replace(FP32, augment=policy), views_of(easy, policy)
        runs = []
        for batch in (24, 17):
            known = build_teacher_cache(taught, easy, config, DistillConfig())
            rows = torch.randperm(96).split(batch)
            for epoch, some in ((epoch, some) for epoch in range(2) for some in rows):
                if known.get(epoch, some) is None:
                    known.compute(epoch, some, xs[epoch, some])
            assert known.asked == (2 * 96 if not runs else 0)
            runs.append([known.get(epoch, torch.arange(96)) for epoch in range(2)])
        for epoch, (first, again) in enumerate(zip(*runs, strict=True)):
            assert first is not None
            assert again is not None
            assert same(first, again)
            with torch.no_grad():
                fresh = predict(taught.model, xs[epoch, torch.arange(96)])
            assert again.cams is not None
            assert fresh.cams is not None
            assert_rounded(again.cams, fresh.cams, fresh.cams.abs())
            assert_rounded(again.logits, fresh.logits, fresh.cams.abs().mean((2, 3)) + fresh.logits.abs())
    if policy == "strong":
        mixed = xs.views[0, torch.arange(96)].labels
        assert 20 < ((mixed > 0).sum(1) > 1).sum() < 70
    elif policy == "light":
        assert not same(*runs[0])


def test_in_bf16_what_is_read_is_what_the_teacher_says_in_bf16(taught: Teacher, easy: Dataset) -> None:
    known = build_teacher_cache(taught, easy, replace(FP32, precision="bf16"), DistillConfig())
    rows, x = torch.arange(96), views_of(easy, "light")[0, torch.arange(96)]
    fresh = known.teacher(x)
    said = known.compute(0, rows, x)
    assert said.cams is not None
    assert fresh.cams is not None
    assert torch.equal(fresh.cams, fresh.cams.bfloat16().float()), "it was computed in bf16"
    assert torch.equal(said.cams, rounded(fresh).cams)  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = predict(taught.model, x).float()
    with torch.no_grad():
        exact = predict(taught.model, x)
    for other in (half, exact):
        assert other.cams is not None
        for ours, theirs in ((said.cams, other.cams), (said.logits, other.logits)):
            scale = theirs.std()
            assert (ours - theirs).square().mean().sqrt() < 0.03 * scale
            assert (ours - theirs).abs().max() < 0.15 * scale


def test_the_teacher_is_asked_in_parts_that_change_nothing(taught: Teacher, easy: Dataset) -> None:
    x = views_of(easy, "strong")[0, torch.arange(96)]
    ask = teachers.make_teacher_fn(taught.model, 16, FP32)
    whole = ask(x)
    assert whole.cams is not None
    for some in (slice(0, 1), slice(3, 40), slice(31, 96)):
        part = ask(x[some])
        torch.testing.assert_close(part.logits, whole.logits[some], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part.cams, whole.cams[some], rtol=1e-5, atol=1e-5)
    assert not whole.logits.requires_grad


def test_without_a_store_the_answers_are_what_a_store_would_give(tmp_path: Path) -> None:
    layout = RecordFormat(120, 2, 2)
    logits, cams = torch.randn(3, 120), torch.randn(3, 120, 2, 2)
    rows, x = torch.tensor([4, 0, 2]), torch.zeros(3, 3, 4, 4)
    kept = TeacherCache(
        lambda x: Prediction(logits, cams), Store(tmp_path, Manifest("t", "a", "d", "none", 0, "fp32", 9, layout))
    )
    unkept = TeacherCache(lambda x: Prediction(logits, cams), layout=layout)
    first, read, live = kept.compute(0, rows, x), kept.get(0, rows), unkept.compute(0, rows, x)
    assert read is not None
    for said in (read, live):
        for part, other in zip(said, first, strict=True):
            assert (part is None) == (other is None)
            assert part is None or torch.equal(part, other)
    assert live.class_ids is not None
    assert live.class_ids.shape == (3, 10)
    assert unkept.get(0, rows) is None
