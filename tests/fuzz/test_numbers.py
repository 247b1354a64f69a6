"""Views, terms and maps: finite in, finite out, whatever the shapes and however extreme the numbers."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camkd.cams import predict, resize
from camkd.data.augment import POLICIES, Views
from camkd.data.dataset import Split
from camkd.distill.cache import RecordFormat
from camkd.distill.losses.maps import CAM, control_maps
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.evaluate.metrics import cosine, iou_top, pearson, pointing_match, spearman
from camkd.models import build
from camkd.types import Prediction

LARGEST = 65_504.0
"""What stored answers hold (float16)."""

seeds = st.integers(0, 1 << 20)
sides = st.integers(1, 9)
kinds = st.sampled_from(["normal", "huge", "mixed", "tiny", "zero", "constant", "one"])
terms = st.sampled_from([*TERMS, *(f"cam {norm} {which}" for norm in ("raw", "minmax") for which in ("all", "target"))])


def drawn(seed: int, kind: str, *shape: int) -> Tensor:
    """Numbers of a kind: ordinary ones, or such as break formulas."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=made)
    if kind == "huge":
        return LARGEST * x.sign()
    if kind == "mixed":
        return (x * 10.0 ** torch.randint(-30, 5, shape, generator=made)).clamp(-LARGEST, LARGEST)
    if kind == "one":  # all nothing but one
        return torch.zeros(shape).flatten().index_fill(0, torch.tensor([seed % max(1, x.numel())]), LARGEST).view(shape)
    return {"normal": x, "tiny": 1e-38 * x, "zero": 0 * x, "constant": torch.full(shape, 7.5)}[kind]


def said(seed: int, kind: str, count: int, classes: int, grid: tuple[int, int], channels: int) -> Prediction:
    height, width = grid
    stages = tuple(
        drawn(seed + 2 + level, kind, count, channels, height * (2 - level), width * (2 - level)) for level in (0, 1)
    )
    cams = drawn(seed + 1, kind, count, classes, height, width)
    return Prediction(drawn(seed, kind, count, classes), cams, stages)


def term_named(name: str) -> Term:
    if name in TERMS:
        return TERMS[name]()
    _, norm, classes = name.split()
    return CAM(classes=classes, norm=norm)  # type: ignore[arg-type]


@settings(max_examples=250)
@given(terms, seeds, kinds, kinds, st.integers(1, 4), st.integers(2, 5), st.tuples(sides, sides), st.booleans())
def test_a_term_is_finite_and_so_is_its_gradient(
    name: str, seed: int, ours: str, theirs: str, count: int, classes: int, grid: tuple[int, int], mixed: bool
) -> None:
    student, teacher = said(seed, ours, count, classes, grid, 3), said(seed + 9, theirs, count, classes, grid, 5)
    parts = [student.logits, student.cams, *(student.features or ())]
    for part in parts:
        assert part is not None
        part.requires_grad_()
    labels = drawn(seed, "normal", count, classes).softmax(1) if mixed else torch.arange(count) % classes
    term = term_named(name)
    if isinstance(term, NeedsAdapter):
        if count == 1:
            return  # it normalises over the batch
        torch.manual_seed(seed)
        term = term.connect(student, teacher)
    value = term(student, teacher, labels)
    assert value.shape == (count,)
    assert value.isfinite().all()
    assert (value >= -1e-3 * value.abs().max().clamp(min=1)).all()
    if value.requires_grad:
        value.sum().backward()
    for part in parts:
        assert part is not None
        assert part.grad is None or part.grad.isfinite().all()


@settings(max_examples=60)
@given(
    st.sampled_from(["ce", "kd", "lskd", "dkd", "cam", "sdd", "at"]), seeds, st.integers(2, 5), st.tuples(sides, sides)
)
def test_what_a_picture_costs_does_not_depend_on_the_others(
    name: str, seed: int, count: int, grid: tuple[int, int]
) -> None:
    student, teacher = said(seed, "normal", count, 4, grid, 3), said(seed + 9, "normal", count, 4, grid, 5)
    order, labels = torch.randperm(count), torch.arange(count) % 4

    def of(answer: Prediction, rows: Tensor) -> Prediction:
        assert answer.cams is not None
        assert answer.features is not None
        return Prediction(answer.logits[rows], answer.cams[rows], tuple(stage[rows] for stage in answer.features))

    whole, term = TERMS[name]()(student, teacher, labels), TERMS[name]()
    torch.testing.assert_close(term(of(student, order), of(teacher, order), labels[order]), whole[order])
    first = torch.tensor([0])
    torch.testing.assert_close(term(of(student, first), of(teacher, first), labels[:1]), whole[:1])


@settings(max_examples=100)
@given(seeds, kinds, kinds, st.integers(1, 3), st.tuples(sides, sides))
def test_likeness_of_maps_is_finite_bounded_and_symmetric(
    seed: int, ours: str, theirs: str, count: int, grid: tuple[int, int]
) -> None:
    a, b = drawn(seed, ours, count, *grid), drawn(seed + 1, theirs, count, *grid)
    for likeness, least in ((cosine, 0), (pearson, -1), (spearman, -1), (iou_top, 0), (pointing_match, 0)):
        value = likeness(a, b)
        assert value.shape == (count,)
        assert ((least <= value) & (value <= 1)).all(), likeness.__name__  # so neither infinite nor NaN
        torch.testing.assert_close(value, likeness(b, a))


@settings(max_examples=100)
@given(seeds, kinds, st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(["none", "shuffled", "centre"]))
def test_maps_stay_within_what_they_were(
    seed: int, kind: str, grid: tuple[int, int], other: tuple[int, int], control: str
) -> None:
    maps = drawn(seed, kind, 2, 3, *grid)
    sized = resize(maps, other)
    assert sized.shape == (2, 3, *other)
    room = 1e-6 * maps.abs().amax()
    assert ((maps.amin((2, 3), True) - room <= sized) & (sized <= maps.amax((2, 3), True) + room)).all()
    lied = control_maps(maps, control)  # type: ignore[arg-type]
    torch.testing.assert_close(lied.mean((2, 3)), maps.mean((2, 3)), rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


@settings(max_examples=60)
@given(seeds, kinds, st.sampled_from([1.0, 1e30]), st.integers(2, 130), st.tuples(sides, sides))
def test_stored_answers_are_finite_and_near(
    seed: int, kind: str, scale: float, classes: int, grid: tuple[int, int]
) -> None:
    answer = Prediction(scale * drawn(seed, kind, 3, classes), scale * drawn(seed + 1, kind, 3, classes, *grid))
    layout = RecordFormat(classes, *grid)
    back = layout.decode(layout.encode(answer))
    assert back.cams is not None
    assert back.logits.isfinite().all()
    assert back.cams.isfinite().all()
    torch.testing.assert_close(back.logits, answer.logits.clamp(-LARGEST, LARGEST), rtol=1e-3, atol=1e-7)


@settings(max_examples=60)
@given(st.sampled_from(sorted(POLICIES)), seeds, st.integers(1, 20), st.integers(1, 4), st.sampled_from([0, 255, None]))
def test_views_are_pictures(policy: str, seed: int, side: int, count: int, shade: int | None) -> None:
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
    again = views[seed % 7, samples.flip(0)]
    assert torch.equal(again.x.flip(0), batch.x)
    assert torch.equal(again.labels.flip(0), batch.labels)


@settings(max_examples=12)
@given(st.sampled_from(["cam-net", "resnet8"]), seeds, kinds, st.sampled_from([8, 16, 33]))
def test_maps_of_networks_are_finite(name: str, seed: int, kind: str, side: int) -> None:
    model = build(name, 3, side).eval()
    answer = predict(model, drawn(seed, kind, 2, 3, side, side).sigmoid())
    assert answer.cams is not None
    assert answer.cams.isfinite().all()
    assert answer.logits.isfinite().all()
