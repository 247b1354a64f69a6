"""The teacher's answers: what is read is what was asked, and a view is asked once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.views import Views
from camkd.knowledge import GIGABYTE, Knowledge, epochs_within, key_of, record
from camkd.models import build
from camkd.types import Prediction

COUNT, CLASSES = 10, 3


def view(epoch: int, samples: Tensor) -> Tensor:
    """A stand-in for a batch of views that says which views they are."""
    x = torch.zeros(len(samples), 3, 4, 4)
    x[:, 0], x[:, 1] = samples[:, None, None].float(), float(epoch)
    return x


def answer(x: Tensor, height: int = 2, width: int = 3) -> Prediction:
    """What the teacher says of a view: another number in every place, with more digits than float16 has."""
    sample, epoch = x[:, 0, 0, 0], x[:, 1, 0, 0]
    base = 1 + sample / 7 + 10 * epoch
    logits = base[:, None] * torch.tensor([1.0, -2.0, 1e-3]) / 3
    cells = torch.linspace(-1, 1, CLASSES * height * width).view(1, CLASSES, height, width) / 3
    return Prediction(logits, base[:, None, None, None] * cells)


class Teacher:
    """Counts the pictures it is asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor) -> Prediction:
        self.asked += x[:, 0, 0, 0].int().tolist()
        return answer(x)


def knowledge(folder: Path, kept: int = 5) -> tuple[Knowledge, Teacher]:
    teacher = Teacher()
    return Knowledge(teacher, folder, COUNT, kept), teacher


def ask(store: Knowledge, epoch: int, *samples: int) -> Prediction:
    rows = torch.tensor(samples)
    return store(epoch, rows, view(epoch, rows))


def same(a: Prediction, b: Prediction) -> bool:
    assert a.cams is not None
    assert b.cams is not None
    return torch.equal(a.logits, b.logits) and torch.equal(a.cams, b.cams)


def test_what_is_read_is_what_was_asked_with_the_maps_as_float16(tmp_path: Path) -> None:
    store, teacher = knowledge(tmp_path)
    first, again = ask(store, 0, 4, 1, 7), ask(store, 0, 4, 1, 7)
    truth = answer(view(0, torch.tensor([4, 1, 7])))
    assert teacher.asked == [4, 1, 7]
    assert truth.cams is not None
    for said in (first, again):
        assert said.cams is not None
        assert said.features is None
        assert said.logits.dtype == said.cams.dtype == torch.float32
        assert torch.equal(said.logits, truth.logits)
        assert torch.equal(said.cams, truth.cams.half().float())
        assert not torch.equal(said.cams, truth.cams)
        torch.testing.assert_close(said.cams, truth.cams, rtol=2**-11, atol=2**-25)
    assert store.asked == 3


@settings(max_examples=10)
@given(order=st.permutations(range(COUNT)), sizes=st.tuples(st.integers(1, COUNT), st.integers(1, COUNT)))
def test_a_run_that_reads_sees_the_numbers_of_the_run_that_filled(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], sizes: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    filling, teacher = knowledge(folder)
    filled: dict[int, Prediction] = {}
    for rows in torch.arange(COUNT).split(sizes[0]):
        said = filling(1, rows, view(1, rows))
        assert said.cams is not None
        for n, row in enumerate(rows.tolist()):
            filled[row] = Prediction(said.logits[n], said.cams[n])
    assert sorted(teacher.asked) == list(range(COUNT))
    reading, idle = knowledge(folder)
    for rows in torch.tensor(order).split(sizes[1]):
        said = reading(1, rows, view(1, rows))
        assert said.cams is not None
        for n, row in enumerate(rows.tolist()):
            assert same(Prediction(said.logits[n], said.cams[n]), filled[row])
    assert not idle.asked
    assert reading.asked == 0


def test_another_epoch_is_another_view(tmp_path: Path) -> None:
    store, teacher = knowledge(tmp_path)
    zero, one = ask(store, 0, 2, 3), ask(store, 1, 2, 3)
    assert not same(zero, one)
    assert teacher.asked == [2, 3, 2, 3]
    assert same(ask(store, 0, 2, 3), zero)
    assert same(ask(store, 1, 3), Prediction(one.logits[1:], one.cams[1:]))  # type: ignore[index]
    assert len(teacher.asked) == 4


def test_epochs_beyond_the_budget_are_asked_each_time_and_not_kept(tmp_path: Path) -> None:
    store, teacher = knowledge(tmp_path, kept=1)
    for _ in range(2):
        assert same(ask(store, 0, 1), Prediction(*(p[:] for p in ask(store, 0, 1)[:2])))  # type: ignore[index]
        ask(store, 1, 1)
    assert teacher.asked == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0000.npy"]
    none_kept, teacher = knowledge(tmp_path / "none", kept=0)
    ask(none_kept, 0, 1)
    ask(none_kept, 0, 1)
    assert teacher.asked == [1, 1]
    assert not (tmp_path / "none").exists()


def test_a_record_without_its_mark_is_asked_again(tmp_path: Path) -> None:
    store, _ = knowledge(tmp_path)
    truth = ask(store, 0, 2, 3, 4)
    records = np.load(tmp_path / "epoch-0000.npy", mmap_mode="r+")
    records["cams"][3], records["logits"][3], records["known"][3] = 99, 99, 0  # as after an interrupted write
    records.flush()
    again, teacher = knowledge(tmp_path)
    assert same(ask(again, 0, 2), Prediction(truth.logits[:1], truth.cams[:1]))  # type: ignore[index]
    assert teacher.asked == []
    assert same(ask(again, 0, 2, 3, 4), truth)
    assert 3 in teacher.asked
    count = len(teacher.asked)
    assert same(ask(again, 0, 3), Prediction(truth.logits[1:2], truth.cams[1:2]))  # type: ignore[index]
    assert len(teacher.asked) == count


def test_a_teacher_that_fails_leaves_nothing_that_counts_as_known(tmp_path: Path) -> None:
    def fail(x: Tensor) -> Prediction:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Knowledge(fail, tmp_path, COUNT, 5)(0, torch.tensor([1]), view(0, torch.tensor([1])))
    store, teacher = knowledge(tmp_path)
    ask(store, 0, 1)
    assert teacher.asked == [1]


def test_two_instances_on_one_folder_share_what_they_know(tmp_path: Path) -> None:
    (one, first), (two, second) = knowledge(tmp_path), knowledge(tmp_path)
    ask(one, 0, 0, 1)
    ask(two, 0, 2, 3)  # must not begin the file anew
    assert same(ask(two, 0, 0, 1, 2, 3), ask(one, 0, 0, 1, 2, 3))
    assert (first.asked, second.asked) == ([0, 1], [2, 3])


def test_an_instance_that_is_overtaken_while_it_asks_keeps_the_others_answers(tmp_path: Path) -> None:
    other, others = knowledge(tmp_path)

    def slowly(x: Tensor) -> Prediction:
        ask(other, 0, 5)
        return answer(x)

    slow = Knowledge(slowly, tmp_path, COUNT, 5)
    ask(slow, 0, 6)
    assert same(ask(slow, 0, 5, 6), answer_rounded(0, 5, 6))
    assert same(ask(other, 0, 5, 6), answer_rounded(0, 5, 6))
    assert others.asked == [5]


def answer_rounded(epoch: int, *samples: int) -> Prediction:
    logits, cams, _ = answer(view(epoch, torch.tensor(samples)))
    assert cams is not None
    return Prediction(logits, cams.half().float())


def test_a_files_layout_is_the_records_and_holds_one_epoch(tmp_path: Path) -> None:
    store, _ = knowledge(tmp_path)
    ask(store, 3, 8)
    records = np.load(tmp_path / "epoch-0003.npy")
    assert records.shape == (COUNT,)
    assert records.dtype == record(CLASSES, 2, 3)
    assert records.dtype.itemsize == 1 + 4 * CLASSES + 2 * CLASSES * 2 * 3
    assert records["known"].nonzero()[0].tolist() == [8]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0003.npy"], "nothing temporary"


def test_the_budget_in_epochs_by_hand() -> None:
    assert epochs_within(8.0, 1000, GIGABYTE // 1000) == 8
    assert epochs_within(0.5, 1, GIGABYTE) == 0
    assert epochs_within(1.0, 3, GIGABYTE // 2) == 0
    assert epochs_within(1.5, 3, GIGABYTE // 2) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_answers_of_another_number_format_are_kept_as_well(tmp_path: Path, dtype: torch.dtype) -> None:
    def said(x: Tensor) -> Prediction:
        logits, cams, _ = answer(x)
        assert cams is not None
        return Prediction(logits.to(dtype), cams.to(dtype))

    store = Knowledge(said, tmp_path, COUNT, 5)
    first = ask(store, 0, 1, 2)
    assert first.cams is not None
    assert first.cams.dtype == first.logits.dtype == torch.float32
    assert same(ask(store, 0, 1, 2), first)


def test_a_real_teacher_on_real_views(tmp_path: Path) -> None:
    model = build("resnet8", CLASSES, 8).eval()
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    views = Views(images, np.arange(COUNT) % CLASSES, CLASSES, "strong", 0, torch.device("cpu"))

    @torch.no_grad()
    def teach(x: Tensor) -> Prediction:
        return predict(model, x)

    runs = []
    for _ in range(2):
        store = Knowledge(teach, tmp_path, COUNT, 2)
        runs.append([store(e, rows, views[e, rows].x) for e in range(2) for rows in torch.arange(COUNT).split(4)])
        assert store.asked == (2 * COUNT if len(runs) == 1 else 0)
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    live = teach(views[1, torch.arange(4)].x)
    assert live.cams is not None
    assert runs[1][3].cams is not None
    torch.testing.assert_close(runs[1][3].logits, live.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(runs[1][3].cams, live.cams, rtol=1e-3, atol=1e-3)


# --- the key


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())


PARTS: dict[str, str | int | float] = {"data": "abc", "views": "light", "view_seed": 0, "precision": "fp32"}


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
        {**PARTS, "view_seed": 1},
        {**PARTS, "view_seed": "0"},
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
