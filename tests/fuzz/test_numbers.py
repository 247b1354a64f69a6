"""Augmented views, loss terms and maps are finite for finite input of any shape and magnitude."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camkd.cams import predict, resize
from camkd.data.augment import POLICIES
from camkd.data.dataset import Split
from camkd.data.views import Views
from camkd.distill.cache import RecordFormat
from camkd.distill.losses.maps import CAM, control_maps
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.evaluate.metrics import cosine, iou_top, pearson, pointing_match, spearman
from camkd.models import build
from camkd.types import Prediction

FLOAT16_MAX = 65_504.0
"""Largest value in cached teacher outputs."""

seeds = st.integers(0, 1 << 20)
sides = st.integers(1, 9)
grids = st.tuples(sides, sides)
kinds = st.sampled_from(["normal", "huge", "mixed", "tiny", "zero", "constant", "one-hot"])
term_names = st.sampled_from(
    [*TERMS, *(f"cam {norm} {classes}" for norm in ("raw", "minmax") for classes in ("all", "target"))]
)


def make_values(seed: int, kind: str, *shape: int) -> Tensor:
    """Draw values of ordinary or extreme magnitude."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if kind == "huge":
        return FLOAT16_MAX * x.sign()
    if kind == "mixed":
        exponents = torch.randint(-30, 5, shape, generator=generator)
        return (x * 10.0**exponents).clamp(-FLOAT16_MAX, FLOAT16_MAX)
    if kind == "one-hot":
        index = torch.tensor([seed % max(1, x.numel())])
        return torch.zeros(shape).flatten().index_fill(0, index, FLOAT16_MAX).view(shape)
    return {"normal": x, "tiny": 1e-38 * x, "zero": 0 * x, "constant": torch.full(shape, 7.5)}[kind]


def make_prediction(seed: int, kind: str, count: int, classes: int, grid: tuple[int, int], channels: int) -> Prediction:
    height, width = grid
    stages = tuple(
        make_values(seed + 2 + level, kind, count, channels, height * (2 - level), width * (2 - level))
        for level in (0, 1)
    )
    cams = make_values(seed + 1, kind, count, classes, height, width)
    return Prediction(make_values(seed, kind, count, classes), cams, stages)


def make_term(name: str) -> Term:
    if name in TERMS:
        return TERMS[name]()
    _, norm, classes = name.split()
    return CAM(classes=classes, norm=norm)  # type: ignore[arg-type]


@settings(max_examples=250)
@given(term_names, seeds, kinds, kinds, st.integers(1, 4), st.integers(2, 5), grids, st.booleans())
def test_terms_and_gradients_are_finite(
    name: str,
    seed: int,
    student_kind: str,
    teacher_kind: str,
    count: int,
    classes: int,
    grid: tuple[int, int],
    mixed: bool,
) -> None:
    student = make_prediction(seed, student_kind, count, classes, grid, 3)
    teacher = make_prediction(seed + 9, teacher_kind, count, classes, grid, 5)
    inputs = [student.logits, student.cams, *(student.features or ())]
    for tensor in inputs:
        assert tensor is not None
        tensor.requires_grad_()
    labels = make_values(seed, "normal", count, classes).softmax(1) if mixed else torch.arange(count) % classes
    term = make_term(name)
    if isinstance(term, NeedsAdapter):
        if count == 1:
            return  # batch normalization needs several images
        torch.manual_seed(seed)
        term = term.build_adapter(student, teacher)
    loss = term(student, teacher, labels)
    assert loss.shape == (count,)
    assert loss.isfinite().all()
    assert (loss >= -1e-3 * loss.abs().max().clamp(min=1)).all()
    if loss.requires_grad:
        loss.sum().backward()
    for tensor in inputs:
        assert tensor is not None
        assert tensor.grad is None or tensor.grad.isfinite().all()


@settings(max_examples=60)
@given(st.sampled_from(["ce", "kd", "lskd", "dkd", "cam", "sdd", "at"]), seeds, st.integers(2, 5), grids)
def test_loss_of_an_image_is_independent_of_the_batch(name: str, seed: int, count: int, grid: tuple[int, int]) -> None:
    student = make_prediction(seed, "normal", count, 4, grid, 3)
    teacher = make_prediction(seed + 9, "normal", count, 4, grid, 5)
    labels = torch.arange(count) % 4
    order = torch.randperm(count)

    def select(prediction: Prediction, rows: Tensor) -> Prediction:
        assert prediction.cams is not None
        assert prediction.features is not None
        stages = tuple(stage[rows] for stage in prediction.features)
        return Prediction(prediction.logits[rows], prediction.cams[rows], stages)

    term = TERMS[name]()
    losses = term(student, teacher, labels)
    permuted = term(select(student, order), select(teacher, order), labels[order])
    torch.testing.assert_close(permuted, losses[order])
    first = torch.tensor([0])
    torch.testing.assert_close(term(select(student, first), select(teacher, first), labels[:1]), losses[:1])


@settings(max_examples=100)
@given(seeds, kinds, kinds, st.integers(1, 3), grids)
def test_map_similarities_are_bounded_and_symmetric(
    seed: int, first_kind: str, second_kind: str, count: int, grid: tuple[int, int]
) -> None:
    a = make_values(seed, first_kind, count, *grid)
    b = make_values(seed + 1, second_kind, count, *grid)
    for similarity, minimum in ((cosine, 0), (pearson, -1), (spearman, -1), (iou_top, 0), (pointing_match, 0)):
        value = similarity(a, b)
        assert value.shape == (count,)
        assert ((minimum <= value) & (value <= 1)).all(), similarity.__name__  # neither infinite nor NaN
        torch.testing.assert_close(value, similarity(b, a))


@settings(max_examples=100)
@given(seeds, kinds, grids, grids, st.sampled_from(["none", "shuffled", "center"]))
def test_resized_maps_keep_their_range_and_control_maps_their_mean(
    seed: int, kind: str, grid: tuple[int, int], new_grid: tuple[int, int], control: str
) -> None:
    maps = make_values(seed, kind, 2, 3, *grid)
    resized = resize(maps, new_grid)
    assert resized.shape == (2, 3, *new_grid)
    tolerance = 1e-6 * maps.abs().amax()
    low = maps.amin((2, 3), True) - tolerance
    high = maps.amax((2, 3), True) + tolerance
    assert ((low <= resized) & (resized <= high)).all()
    changed = control_maps(maps, control)  # type: ignore[arg-type]
    torch.testing.assert_close(changed.mean((2, 3)), maps.mean((2, 3)), rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


@settings(max_examples=60)
@given(seeds, kinds, st.sampled_from([1.0, 1e30]), st.integers(2, 130), grids)
def test_cached_teacher_outputs_are_finite_and_accurate(
    seed: int, kind: str, scale: float, classes: int, grid: tuple[int, int]
) -> None:
    logits = scale * make_values(seed, kind, 3, classes)
    cams = scale * make_values(seed + 1, kind, 3, classes, *grid)
    record_format = RecordFormat(classes, *grid)
    decoded = record_format.decode(record_format.encode(Prediction(logits, cams)))
    assert decoded.cams is not None
    assert decoded.logits.isfinite().all()
    assert decoded.cams.isfinite().all()
    torch.testing.assert_close(decoded.logits, logits.clamp(-FLOAT16_MAX, FLOAT16_MAX), rtol=1e-3, atol=1e-7)


@settings(max_examples=60)
@given(st.sampled_from(sorted(POLICIES)), seeds, st.integers(1, 20), st.integers(1, 4), st.sampled_from([0, 255, None]))
def test_augmented_views_are_valid_images(policy: str, seed: int, side: int, count: int, shade: int | None) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    if shade is not None:
        images[:] = shade
    split = Split(images, np.arange(count) % 2)
    views = Views(split, 2, policy, seed, torch.device("cpu"))
    samples = torch.arange(count)
    batch = views[seed % 7, samples]
    assert batch.x.shape == (count, 3, side, side)
    assert batch.x.dtype == torch.float32
    assert ((batch.x >= 0) & (batch.x <= 1)).all()
    if batch.labels.ndim == 2:
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(count))
        assert (batch.labels >= 0).all()
    reversed_batch = views[seed % 7, samples.flip(0)]
    assert torch.equal(reversed_batch.x.flip(0), batch.x)
    assert torch.equal(reversed_batch.labels.flip(0), batch.labels)


@settings(max_examples=12)
@given(st.sampled_from(["cam-net", "resnet8"]), seeds, kinds, st.sampled_from([8, 16, 33]))
def test_predictions_of_networks_are_finite(name: str, seed: int, kind: str, side: int) -> None:
    model = build(name, 3, side).eval()
    prediction = predict(model, make_values(seed, kind, 2, 3, side, side).sigmoid())
    assert prediction.cams is not None
    assert prediction.cams.isfinite().all()
    assert prediction.logits.isfinite().all()
