"""An answer in bytes is the answer to float16 rounding, and its checksum, literally computed, sees every change."""

from __future__ import annotations

import struct
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from camkd.distill.cache import RecordFormat
from camkd.distill.cache.records import VERSION, checksums
from camkd.types import Prediction
from camkd.utils.hashing import GOLDEN_GAMMA

LARGEST = 65504.0  # of float16
WORD = (1 << 64) - 1

sides = st.integers(1, 9)
layouts = st.builds(
    lambda classes, height, width, exact: RecordFormat(
        classes, height, width, tuple(draw(9, classes).tolist()) if exact and classes <= 100 else None
    ),
    st.sampled_from([1, 2, 3, 10, 100, 101, 103]),
    sides,
    sides,
    st.booleans(),
)


def draw(seed: int, *shape: int) -> Tensor:
    return 5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def answer(layout: RecordFormat, count: int, seed: int = 0) -> Prediction:
    """What a network says whose maps have the layout's size: logits follow from the maps where it says so."""
    cams = draw(seed, count, layout.classes, layout.height, layout.width)
    logits = draw(seed + 1, count, layout.classes)
    return Prediction(logits if layout.bias is None else cams.mean((2, 3)) + torch.tensor(layout.bias), cams)


def rounded(x: Tensor) -> Tensor:
    """To float16 and back, by numpy."""
    return torch.from_numpy(x.numpy().astype(np.float16).astype(np.float32))


def summed(layout: RecordFormat, count: int = 4, epoch: int = 3, first: int = 0) -> tuple[NDArray[np.void], list[int]]:
    """Records of ``count`` samples, and their checksums."""
    records = layout.encode(answer(layout, count))
    return records, checksums(records, epoch, np.arange(first, first + count)).tolist()


SMALL = RecordFormat(3, 2, 3)
EVERY = [SMALL, RecordFormat(3, 2, 2, (0.5, -1.0, 2.0)), RecordFormat(101, 1, 1), RecordFormat(10, 4, 4)]


# --- what is kept


@settings(max_examples=50)
@given(layout=layouts, count=st.integers(1, 5), seed=st.integers(0, 1000))
def test_what_is_decoded_is_the_answer_to_float16_rounding(layout: RecordFormat, count: int, seed: int) -> None:
    said = answer(layout, count, seed)
    found = layout.decode(layout.encode(said))
    assert said.cams is not None
    assert found.cams is not None
    assert found.features is None
    assert found.logits.dtype == found.cams.dtype == torch.float32
    if layout.classes <= 100:
        assert found.class_ids is None
        assert torch.equal(found.cams, rounded(said.cams))
    else:
        assert found.class_ids is not None
        assert found.class_ids.dtype == torch.int64
        likeliest = np.argsort(-said.logits.numpy(), axis=1, kind="stable")[:, :10]
        assert found.class_ids.tolist() == likeliest.tolist()
        expected = np.take_along_axis(said.cams.numpy(), likeliest[:, :, None, None], 1)
        assert torch.equal(found.cams, rounded(torch.from_numpy(expected)))
    if layout.bias is None:
        assert torch.equal(found.logits, rounded(said.logits))
    else:  # the error of a mean is at most the mean of the errors
        error = 2.0**-11 * said.cams.abs().mean((2, 3)) + 1e-5
        assert ((found.logits - said.logits).abs() <= error).all()


def test_logits_that_follow_are_the_mean_of_the_kept_map_and_the_bias() -> None:
    layout = RecordFormat(2, 2, 2, (0.5, -3.0))
    cams = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -8.0]]]])
    found = layout.decode(layout.encode(Prediction(torch.tensor([[99.0, 99.0]]), cams)))
    assert found.logits.tolist() == [[3.0 + 0.5, -2.0 - 3.0]]
    assert "logits" not in (layout.dtype.names or ())


def test_of_many_classes_the_ten_likeliest_have_maps_and_all_have_logits() -> None:
    layout = RecordFormat(150, 2, 2)
    logits = torch.arange(150.0).roll(7)[None]  # the likeliest is class 6, then 5, ... 0, then 149, 148, 147
    cams = torch.arange(150.0)[None, :, None, None] + torch.tensor([[0.0, 0.25], [0.5, 0.75]])
    found = layout.decode(layout.encode(Prediction(logits, cams)))
    assert found.class_ids is not None
    assert found.class_ids.tolist() == [[6, 5, 4, 3, 2, 1, 0, 149, 148, 147]]
    assert torch.equal(found.logits, logits)
    assert found.cams is not None
    assert torch.equal(found.cams, cams[:, found.class_ids[0]])


@pytest.mark.parametrize(("classes", "kept"), [(1, 1), (10, 10), (100, 100), (101, 10), (1000, 10)])
def test_maps_of_how_many_classes_are_kept(classes: int, kept: int) -> None:
    layout = RecordFormat(classes, 2, 2)
    assert layout.kept == kept
    assert layout.dtype["cams"].shape == (kept, 2, 2)


def test_larger_maps_are_pooled_which_keeps_their_mean() -> None:
    cams = draw(0, 2, 3, 4, 6)
    layout = RecordFormat(3, 2, 3, (0.0, 1.0, 2.0))
    found = layout.decode(layout.encode(Prediction(cams.mean((2, 3)) + torch.tensor([0.0, 1.0, 2.0]), cams)))
    assert found.cams is not None
    for n, k, i, j in product(range(2), range(3), range(2), range(3)):
        block = cams[n, k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert found.cams[n, k, i, j] == pytest.approx(float(block.mean()), rel=2**-10, abs=1e-4)
    torch.testing.assert_close(found.logits, cams.mean((2, 3)) + torch.tensor([0.0, 1.0, 2.0]), rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("value", [65505.0, 7e4, 1e30, float("inf")])
@pytest.mark.parametrize("layout", [RecordFormat(2, 1, 2), RecordFormat(2, 1, 2, (0.0, 0.0))], ids=["kept", "follow"])
def test_values_beyond_float16_are_its_largest_and_finite(layout: RecordFormat, value: float) -> None:
    cams = torch.tensor([[[[value, 1.0]], [[-value, -value]]]])
    found = layout.decode(layout.encode(Prediction(torch.tensor([[value, -value]]), cams)))
    assert found.cams is not None
    assert found.cams.tolist() == [[[[LARGEST, 1.0]], [[-LARGEST, -LARGEST]]]]
    assert found.logits.isfinite().all()
    assert found.logits[0, 1] == -LARGEST


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_answers_of_another_number_format_are_kept_as_well(dtype: torch.dtype) -> None:
    said = answer(SMALL, 2)
    assert said.cams is not None
    other = Prediction(said.logits.to(dtype), said.cams.to(dtype))
    assert other.cams is not None
    other.logits[0, 0] = other.cams[0, 0, 0, 0] = 1e6  # the largest float16 is no number of bfloat16
    found = SMALL.decode(SMALL.encode(other))
    assert torch.equal(found.logits, rounded(other.logits.float().clamp_max(LARGEST)))
    assert found.cams is not None
    assert torch.equal(found.cams, rounded(other.cams.float().clamp_max(LARGEST)))


@settings(max_examples=30)
@given(layout=layouts)
def test_a_record_is_whole_words_of_which_the_parts_leave_less_than_one_unused(layout: RecordFormat) -> None:
    size = layout.dtype.itemsize
    bare = 8 + 2 * layout.kept * layout.height * layout.width
    bare += 0 if layout.bias is not None else 2 * layout.classes
    bare += 4 * layout.kept if layout.classes > 100 else 0
    assert size % 8 == 0
    assert 0 <= size - bare < 8


def test_the_bytes_of_a_record_by_hand() -> None:
    layout = RecordFormat(101, 1, 1)
    logits, cams = -torch.arange(101.0)[None], torch.arange(101.0)[None, :, None, None] / 8
    (record,) = layout.encode(Prediction(logits, cams))
    maps, shown = [k / 8 for k in range(10)], range(10)
    said = struct.pack("<Q10e101e10i", 0, *maps, *[-float(k) for k in range(101)], *shown)
    assert record.tobytes() == said + bytes(-len(said) % 8)


@settings(max_examples=40)
@given(layout=layouts, count=st.integers(1, 40), data=st.data())
def test_decoding_is_a_function_of_the_bytes_whatever_the_batch(
    layout: RecordFormat, count: int, data: st.DataObject
) -> None:
    records = layout.encode(answer(layout, count, seed=5))
    whole = layout.decode(records)
    rows = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count))
    assert whole.cams is not None
    for chosen in (rows, rows[:1]):
        part = layout.decode(records[chosen])
        assert part.cams is not None
        assert torch.equal(part.logits, whole.logits[chosen])
        assert torch.equal(part.cams, whole.cams[chosen])
        if whole.class_ids is not None:
            assert part.class_ids is not None
            assert torch.equal(part.class_ids, whole.class_ids[chosen])


def test_what_was_decoded_does_not_follow_the_records() -> None:
    for layout in EVERY:
        records = layout.encode(answer(layout, 2))
        found = layout.decode(records)
        before = [None if part is None else part.clone() for part in found]
        records.view(np.uint8)[:] = 255
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True) if a is not None and b is not None)


def test_encoding_leaves_the_answer_and_the_checksum_alone() -> None:
    said = answer(SMALL, 2)
    assert said.cams is not None
    before = said.logits.clone(), said.cams.clone()
    records = SMALL.encode(said)
    assert torch.equal(said.logits, before[0])
    assert torch.equal(said.cams, before[1])
    assert records["sum"].tolist() == [0, 0]


# --- checksums, in Python's own integers


def splitmix(z: int) -> int:
    """The finaliser of SplitMix64, from the paper."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def checksum_literally(record: bytes, epoch: int, row: int) -> int:
    words = struct.unpack(f"<{len(record) // 8}Q", record)[1:]
    total = sum(splitmix(word + place * GOLDEN_GAMMA & WORD) for place, word in enumerate(words, 1))
    start = splitmix(splitmix(VERSION) ^ epoch * GOLDEN_GAMMA & WORD)
    return splitmix(total + splitmix(row * GOLDEN_GAMMA + start & WORD) & WORD) | 1


@settings(max_examples=50)
@given(
    layout=st.sampled_from(EVERY),
    epoch=st.integers(0, 100_000),
    row=st.integers(0, 2**40),
    content=st.binary(min_size=16, max_size=600),
)
def test_the_checksum_is_the_formula(layout: RecordFormat, epoch: int, row: int, content: bytes) -> None:
    size = layout.dtype.itemsize
    raw = (content * (size // len(content) + 1))[:size]
    records = np.frombuffer(raw, layout.dtype)
    assert checksums(records, epoch, np.array([row])).tolist() == [checksum_literally(raw, epoch, row)]


@settings(max_examples=100)
@given(st.sampled_from(EVERY), st.integers(0, 1000), st.integers(0, 10**9))
def test_a_checksum_is_never_nought_and_not_that_of_another_epoch_or_sample(
    layout: RecordFormat, epoch: int, row: int
) -> None:
    records = np.zeros(1, layout.dtype)
    sums = {int(checksums(records, e, np.array([r]))[0]) for e in (epoch, epoch + 1) for r in (row, row + 1)}
    assert len(sums) == 4
    assert 0 not in sums


def test_the_checksums_of_an_epoch_and_its_neighbours_are_all_different() -> None:
    records = np.zeros(1000, SMALL.dtype)
    sums = {word for epoch in range(5) for word in checksums(records, epoch, np.arange(1000)).tolist()}
    assert len(sums) == 5 * 1000


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_the_checksum_does_not_cover_itself_and_does_not_depend_on_the_batch(layout: RecordFormat) -> None:
    records, sums = summed(layout)
    records["sum"] = 77
    assert checksums(records, 3, np.arange(4)).tolist() == sums
    assert [int(checksums(records[n : n + 1], 3, np.array([n]))[0]) for n in range(4)] == sums
    assert checksums(records[::-1], 3, np.arange(4)[::-1]).tolist() == sums[::-1]


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_every_flipped_bit_changes_the_checksum(layout: RecordFormat) -> None:
    (record,), (sound,) = summed(layout, count=1)
    bits = 8 * (layout.dtype.itemsize - 8)
    flipped = np.tile(np.frombuffer(record.tobytes(), np.uint8), (bits, 1))
    place = np.arange(bits)
    flipped[place, 8 + place // 8] ^= (1 << place % 8).astype(np.uint8)
    sums = checksums(flipped.view(layout.dtype)[:, 0], 3, np.zeros(bits, np.int64)).tolist()
    assert len({sound, *sums}) == 1 + bits


@settings(max_examples=200)
@given(layout=st.sampled_from(EVERY), data=st.data())
def test_two_flipped_bits_change_the_checksum(layout: RecordFormat, data: st.DataObject) -> None:
    (record,), (sound,) = summed(layout, count=1)
    bits = st.integers(64, 8 * layout.dtype.itemsize - 1)
    raw = bytearray(record.tobytes())
    for bit in data.draw(st.lists(bits, min_size=2, max_size=2, unique=True)):
        raw[bit // 8] ^= 1 << bit % 8
    assert checksums(np.frombuffer(raw, layout.dtype), 3, np.array([0])).tolist() != [sound]


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_swapped_words_and_swapped_records_change_the_checksum(layout: RecordFormat) -> None:
    (record,), (sound,) = summed(layout, count=1)
    words = np.frombuffer(record.tobytes(), np.uint64)
    for i, j in product(range(1, len(words)), repeat=2):
        swapped = words.copy()
        swapped[[i, j]] = swapped[[j, i]]
        same = checksums(swapped.view(layout.dtype), 3, np.array([0])).tolist() == [sound]
        assert same == (words[i] == words[j])
    records, sums = summed(layout)
    assert not set(checksums(records[[1, 0, 3, 2]], 3, np.arange(4)).tolist()) & set(sums)
