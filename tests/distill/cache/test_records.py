"""Records of teacher outputs: exact to float16 rounding, and checksums against a reference in Python integers."""

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

FLOAT16_MAX = 65504.0
UINT64_MAX = (1 << 64) - 1

sides = st.integers(1, 9)
record_formats = st.builds(
    lambda classes, height, width, exact: RecordFormat(
        classes, height, width, tuple(randn(9, classes).tolist()) if exact and classes <= 100 else None
    ),
    st.sampled_from([1, 2, 3, 10, 100, 101, 103]),
    sides,
    sides,
    st.booleans(),
)


def randn(seed: int, *shape: int) -> Tensor:
    return 5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_prediction(record_format: RecordFormat, count: int, seed: int = 0) -> Prediction:
    """Maps of the size of the format; with a bias, logits that are the mean of the map plus the bias."""
    cams = randn(seed, count, record_format.classes, record_format.height, record_format.width)
    logits = randn(seed + 1, count, record_format.classes)
    if record_format.bias is not None:
        logits = cams.mean((2, 3)) + torch.tensor(record_format.bias)
    return Prediction(logits, cams)


def round_to_float16(x: Tensor) -> Tensor:
    """Convert to float16 and back with NumPy."""
    return torch.from_numpy(x.numpy().astype(np.float16).astype(np.float32))


def records_and_checksums(
    record_format: RecordFormat, count: int = 4, epoch: int = 3, first: int = 0
) -> tuple[NDArray[np.void], list[int]]:
    records = record_format.encode(random_prediction(record_format, count))
    return records, checksums(records, epoch, np.arange(first, first + count)).tolist()


SMALL = RecordFormat(3, 2, 3)
FORMATS = [SMALL, RecordFormat(3, 2, 2, (0.5, -1.0, 2.0)), RecordFormat(101, 1, 1), RecordFormat(10, 4, 4)]


# --- encode and decode


@settings(max_examples=50)
@given(record_format=record_formats, count=st.integers(1, 5), seed=st.integers(0, 1000))
def test_decode_inverts_encode_to_float16_rounding(record_format: RecordFormat, count: int, seed: int) -> None:
    prediction = random_prediction(record_format, count, seed)
    decoded = record_format.decode(record_format.encode(prediction))
    assert prediction.cams is not None
    assert decoded.cams is not None
    assert decoded.features is None
    assert decoded.logits.dtype == decoded.cams.dtype == torch.float32
    if record_format.classes <= 100:
        assert decoded.class_ids is None
        assert torch.equal(decoded.cams, round_to_float16(prediction.cams))
    else:
        assert decoded.class_ids is not None
        assert decoded.class_ids.dtype == torch.int64
        top_classes = np.argsort(-prediction.logits.numpy(), axis=1, kind="stable")[:, :10]
        assert decoded.class_ids.tolist() == top_classes.tolist()
        expected = np.take_along_axis(prediction.cams.numpy(), top_classes[:, :, None, None], 1)
        assert torch.equal(decoded.cams, round_to_float16(torch.from_numpy(expected)))
    if record_format.bias is None:
        assert torch.equal(decoded.logits, round_to_float16(prediction.logits))
    else:  # the error of a mean is at most the mean of the errors
        tolerance = 2.0**-11 * prediction.cams.abs().mean((2, 3)) + 1e-5
        assert ((decoded.logits - prediction.logits).abs() <= tolerance).all()


def test_logits_are_computed_from_maps_and_bias() -> None:
    record_format = RecordFormat(2, 2, 2, (0.5, -3.0))
    cams = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, -8.0]]]])
    decoded = record_format.decode(record_format.encode(Prediction(torch.tensor([[99.0, 99.0]]), cams)))
    assert decoded.logits.tolist() == [[3.0 + 0.5, -2.0 - 3.0]]
    assert "logits" not in (record_format.dtype.names or ())


def test_many_classes_store_all_logits_and_the_maps_of_the_top_ten() -> None:
    record_format = RecordFormat(150, 2, 2)
    logits = torch.arange(150.0).roll(7)[None]  # in descending order: class 6, 5, ... 0, 149, 148, 147
    cams = torch.arange(150.0)[None, :, None, None] + torch.tensor([[0.0, 0.25], [0.5, 0.75]])
    decoded = record_format.decode(record_format.encode(Prediction(logits, cams)))
    assert decoded.class_ids is not None
    assert decoded.class_ids.tolist() == [[6, 5, 4, 3, 2, 1, 0, 149, 148, 147]]
    assert torch.equal(decoded.logits, logits)
    assert decoded.cams is not None
    assert torch.equal(decoded.cams, cams[:, decoded.class_ids[0]])


@pytest.mark.parametrize(("classes", "num_maps"), [(1, 1), (10, 10), (100, 100), (101, 10), (1000, 10)])
def test_number_of_maps(classes: int, num_maps: int) -> None:
    record_format = RecordFormat(classes, 2, 2)
    assert record_format.num_maps == num_maps
    assert record_format.dtype["cams"].shape == (num_maps, 2, 2)


def test_larger_maps_are_pooled_with_equal_mean() -> None:
    cams = randn(0, 2, 3, 4, 6)
    record_format = RecordFormat(3, 2, 3, (0.0, 1.0, 2.0))
    logits = cams.mean((2, 3)) + torch.tensor([0.0, 1.0, 2.0])
    decoded = record_format.decode(record_format.encode(Prediction(logits, cams)))
    assert decoded.cams is not None
    for n, k, i, j in product(range(2), range(3), range(2), range(3)):
        block = cams[n, k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert decoded.cams[n, k, i, j] == pytest.approx(float(block.mean()), rel=2**-10, abs=1e-4)
    torch.testing.assert_close(decoded.logits, logits, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("value", [65505.0, 7e4, 1e30, float("inf")])
@pytest.mark.parametrize(
    "record_format", [RecordFormat(2, 1, 2), RecordFormat(2, 1, 2, (0.0, 0.0))], ids=["stored logits", "bias"]
)
def test_values_beyond_float16_are_clamped(record_format: RecordFormat, value: float) -> None:
    cams = torch.tensor([[[[value, 1.0]], [[-value, -value]]]])
    decoded = record_format.decode(record_format.encode(Prediction(torch.tensor([[value, -value]]), cams)))
    assert decoded.cams is not None
    assert decoded.cams.tolist() == [[[[FLOAT16_MAX, 1.0]], [[-FLOAT16_MAX, -FLOAT16_MAX]]]]
    assert decoded.logits.isfinite().all()
    assert decoded.logits[0, 1] == -FLOAT16_MAX


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_encode_accepts_other_float_types(dtype: torch.dtype) -> None:
    prediction = random_prediction(SMALL, 2)
    assert prediction.cams is not None
    converted = Prediction(prediction.logits.to(dtype), prediction.cams.to(dtype))
    assert converted.cams is not None
    converted.logits[0, 0] = 1e6  # clamped to the maximum of float16, which bfloat16 cannot represent
    converted.cams[0, 0, 0, 0] = 1e6
    decoded = SMALL.decode(SMALL.encode(converted))
    assert torch.equal(decoded.logits, round_to_float16(converted.logits.float().clamp_max(FLOAT16_MAX)))
    assert decoded.cams is not None
    assert torch.equal(decoded.cams, round_to_float16(converted.cams.float().clamp_max(FLOAT16_MAX)))


@settings(max_examples=30)
@given(record_format=record_formats)
def test_record_size_is_a_multiple_of_8_bytes(record_format: RecordFormat) -> None:
    size = record_format.dtype.itemsize
    unpadded = 8 + 2 * record_format.num_maps * record_format.height * record_format.width
    unpadded += 0 if record_format.bias is not None else 2 * record_format.classes
    unpadded += 4 * record_format.num_maps if record_format.classes > 100 else 0
    assert size % 8 == 0
    assert 0 <= size - unpadded < 8


def test_bytes_of_a_record_by_hand() -> None:
    record_format = RecordFormat(101, 1, 1)
    logits = -torch.arange(101.0)[None]
    cams = torch.arange(101.0)[None, :, None, None] / 8
    (record,) = record_format.encode(Prediction(logits, cams))
    maps = [k / 8 for k in range(10)]
    expected = struct.pack("<Q10e101e10i", 0, *maps, *[-float(k) for k in range(101)], *range(10))
    assert record.tobytes() == expected + bytes(-len(expected) % 8)


@settings(max_examples=40)
@given(record_format=record_formats, count=st.integers(1, 40), data=st.data())
def test_decode_is_independent_of_the_batch(record_format: RecordFormat, count: int, data: st.DataObject) -> None:
    records = record_format.encode(random_prediction(record_format, count, seed=5))
    full = record_format.decode(records)
    rows = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count))
    assert full.cams is not None
    for selection in (rows, rows[:1]):
        part = record_format.decode(records[selection])
        assert part.cams is not None
        assert torch.equal(part.logits, full.logits[selection])
        assert torch.equal(part.cams, full.cams[selection])
        if full.class_ids is not None:
            assert part.class_ids is not None
            assert torch.equal(part.class_ids, full.class_ids[selection])


def test_decoded_tensors_do_not_share_memory_with_records() -> None:
    for record_format in FORMATS:
        records = record_format.encode(random_prediction(record_format, 2))
        decoded = record_format.decode(records)
        before = [None if part is None else part.clone() for part in decoded]
        records.view(np.uint8)[:] = 255
        assert all(torch.equal(a, b) for a, b in zip(decoded, before, strict=True) if a is not None and b is not None)


def test_encode_leaves_inputs_unchanged_and_checksums_zero() -> None:
    prediction = random_prediction(SMALL, 2)
    assert prediction.cams is not None
    logits = prediction.logits.clone()
    cams = prediction.cams.clone()
    records = SMALL.encode(prediction)
    assert torch.equal(prediction.logits, logits)
    assert torch.equal(prediction.cams, cams)
    assert records["checksum"].tolist() == [0, 0]


# --- checksums, with Python integers as reference


def reference_mix64(z: int) -> int:
    """``mix64`` of SplitMix64, from the paper."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & UINT64_MAX
    z = (z ^ z >> 27) * 0x94D049BB133111EB & UINT64_MAX
    return z ^ z >> 31


def reference_checksum(record: bytes, epoch: int, sample: int) -> int:
    words = struct.unpack(f"<{len(record) // 8}Q", record)[1:]
    content = sum(reference_mix64(word + i * GOLDEN_GAMMA & UINT64_MAX) for i, word in enumerate(words, 1))
    seed = reference_mix64(reference_mix64(VERSION) ^ epoch * GOLDEN_GAMMA & UINT64_MAX)
    identity = reference_mix64(sample * GOLDEN_GAMMA + seed & UINT64_MAX)
    return reference_mix64(content + identity & UINT64_MAX) | 1


@settings(max_examples=50)
@given(
    record_format=st.sampled_from(FORMATS),
    epoch=st.integers(0, 100_000),
    sample=st.integers(0, 2**40),
    content=st.binary(min_size=16, max_size=600),
)
def test_checksum_matches_formula(record_format: RecordFormat, epoch: int, sample: int, content: bytes) -> None:
    size = record_format.dtype.itemsize
    raw = (content * (size // len(content) + 1))[:size]
    records = np.frombuffer(raw, record_format.dtype)
    assert checksums(records, epoch, np.array([sample])).tolist() == [reference_checksum(raw, epoch, sample)]


@settings(max_examples=100)
@given(st.sampled_from(FORMATS), st.integers(0, 1000), st.integers(0, 10**9))
def test_checksum_is_nonzero_and_bound_to_epoch_and_sample(
    record_format: RecordFormat, epoch: int, sample: int
) -> None:
    records = np.zeros(1, record_format.dtype)
    pairs = product((epoch, epoch + 1), (sample, sample + 1))
    values = {int(checksums(records, e, np.array([s]))[0]) for e, s in pairs}
    assert len(values) == 4
    assert 0 not in values


def test_checksums_of_neighboring_epochs_are_distinct() -> None:
    records = np.zeros(1000, SMALL.dtype)
    values = {value for epoch in range(5) for value in checksums(records, epoch, np.arange(1000)).tolist()}
    assert len(values) == 5 * 1000


@pytest.mark.parametrize("record_format", FORMATS, ids=str)
def test_checksum_excludes_its_own_field_and_is_independent_of_the_batch(record_format: RecordFormat) -> None:
    records, expected = records_and_checksums(record_format)
    records["checksum"] = 77
    assert checksums(records, 3, np.arange(4)).tolist() == expected
    assert [int(checksums(records[n : n + 1], 3, np.array([n]))[0]) for n in range(4)] == expected
    assert checksums(records[::-1], 3, np.arange(4)[::-1]).tolist() == expected[::-1]


@pytest.mark.parametrize("record_format", FORMATS, ids=str)
def test_any_flipped_bit_changes_the_checksum(record_format: RecordFormat) -> None:
    (record,), (unflipped,) = records_and_checksums(record_format, count=1)
    num_bits = 8 * (record_format.dtype.itemsize - 8)
    flipped = np.tile(np.frombuffer(record.tobytes(), np.uint8), (num_bits, 1))
    bits = np.arange(num_bits)
    flipped[bits, 8 + bits // 8] ^= (1 << bits % 8).astype(np.uint8)
    values = checksums(flipped.view(record_format.dtype)[:, 0], 3, np.zeros(num_bits, np.int64)).tolist()
    assert len({unflipped, *values}) == 1 + num_bits


@settings(max_examples=200)
@given(record_format=st.sampled_from(FORMATS), data=st.data())
def test_two_flipped_bits_change_the_checksum(record_format: RecordFormat, data: st.DataObject) -> None:
    (record,), (unflipped,) = records_and_checksums(record_format, count=1)
    bits = st.integers(64, 8 * record_format.dtype.itemsize - 1)
    raw = bytearray(record.tobytes())
    for bit in data.draw(st.lists(bits, min_size=2, max_size=2, unique=True)):
        raw[bit // 8] ^= 1 << bit % 8
    assert checksums(np.frombuffer(raw, record_format.dtype), 3, np.array([0])).tolist() != [unflipped]


@pytest.mark.parametrize("record_format", FORMATS, ids=str)
def test_swapped_words_and_swapped_records_change_the_checksum(record_format: RecordFormat) -> None:
    (record,), (unswapped,) = records_and_checksums(record_format, count=1)
    words = np.frombuffer(record.tobytes(), np.uint64)
    for i, j in product(range(1, len(words)), repeat=2):
        swapped = words.copy()
        swapped[[i, j]] = swapped[[j, i]]
        is_equal = checksums(swapped.view(record_format.dtype), 3, np.array([0])).tolist() == [unswapped]
        assert is_equal == (words[i] == words[j])
    records, values = records_and_checksums(record_format)
    assert not set(checksums(records[[1, 0, 3, 2]], 3, np.arange(4)).tolist()) & set(values)
