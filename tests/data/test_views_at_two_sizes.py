"""One augmented view rendered at two sizes: the geometry is that of the frame, in relative coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from camkd.data.augment import POLICIES, PhotoPolicy, Policy, random_photo
from camkd.data.dataset import Split
from camkd.data.trivial_augment import OPERATIONS, draw_operation
from camkd.data.views import Batch, Views
from camkd.types import InputError

COUNT = 12
CLASSES = 3
CPU = torch.device("cpu")
SIZES = (32, 64, 96, 128, 224)

WHOLE_PIXEL_POLICIES = {
    "crop": Policy(crop=True),
    "crop and flip": Policy(crop=True, flip=True),
    "cutout": Policy(cutout=0.25),
    "mix": Policy(mix=1.0),
    "color": Policy(color=0.3),
    "all but rotation": Policy(crop=True, flip=True, cutout=0.25, color=0.3, mix=1.0),
}
"""Policies that move whole pixels of the frame."""

OTHER_POLICIES = {"rotation": Policy(rotation=180.0), "all": Policy(True, True, 15.0, 0.3, 0.25, 1.0)}

every_policy = pytest.mark.parametrize("policy", [*POLICIES, *WHOLE_PIXEL_POLICIES, *OTHER_POLICIES])


@pytest.fixture(autouse=True)
def register_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, policy in (WHOLE_PIXEL_POLICIES | OTHER_POLICIES).items():
        monkeypatch.setitem(POLICIES, name, policy)


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, 3), np.uint8)


def make_views(policy: str, images: np.ndarray, frame: int | None = None, seed: int = 1) -> Views:
    return Views(Split(images, np.arange(len(images)) % CLASSES), CLASSES, policy, seed, CPU, frame=frame)


def render(policy: str, images: np.ndarray, frame: int | None = None, seed: int = 1, epoch: int = 2) -> Batch:
    return make_views(policy, images, frame, seed)[epoch, torch.arange(len(images))]


# --- exact cases


@every_policy
@pytest.mark.parametrize("side", [1, 7, 16, 33])
def test_frame_of_the_same_size_gives_bit_identical_views(policy: str, side: int) -> None:
    without = render(policy, noise(COUNT, side))
    with_frame = render(policy, noise(COUNT, side), frame=side)
    assert torch.equal(with_frame.x, without.x)
    assert torch.equal(with_frame.labels, without.labels)


@pytest.mark.parametrize("policy", ["none", "light", *WHOLE_PIXEL_POLICIES])
@pytest.mark.parametrize(("frame", "factor"), [(16, 2), (16, 7), (33, 2), (9, 3), (5, 4), (64, 3)])
def test_each_pixel_of_the_frame_is_a_block_of_the_larger_view(policy: str, frame: int, factor: int) -> None:
    """If the larger images consist of blocks, so do their views, at any border, square and box."""
    images = noise(COUNT, frame)
    small = render(policy, images)
    large = render(policy, images.repeat(factor, 1).repeat(factor, 2), frame)
    expected = small.x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(large.x, expected, rtol=0, atol=1e-4)
    assert torch.equal(large.labels, small.labels)


@every_policy
@pytest.mark.parametrize(("frame", "side"), [(64, 224), (96, 128), (50, 31), (32, 8)])
def test_labels_are_those_of_the_frame(policy: str, frame: int, side: int) -> None:
    count = 100
    assert torch.equal(
        render(policy, noise(count, side), frame).labels,
        render(policy, noise(count, frame)).labels,
    )


@every_policy
def test_result_has_the_shape_of_the_images_and_valid_values(policy: str) -> None:
    images = noise(COUNT, 24)
    images[0] = 0
    images[1] = 255
    x, *_ = render(policy, images, frame=16)
    assert x.shape == (COUNT, 3, 24, 24)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() >= 0
    assert x.max() <= 1


# --- a pure function of (seed, epoch, sample)


@every_policy
@settings(max_examples=6)
@given(order=st.permutations(range(COUNT)), size=st.integers(1, COUNT))
def test_view_is_independent_of_order_batch_size_and_process(policy: str, order: list[int], size: int) -> None:
    expected = render(policy, noise(COUNT, 24), frame=16)
    for samples in torch.tensor(order).split(size):  # each with views of its own, as another process has
        x, labels, _ = make_views(policy, noise(COUNT, 24), frame=16)[2, samples]
        assert torch.equal(x, expected.x[samples])
        assert torch.equal(labels, expected.labels[samples])


# --- a dot lands at the same relative position


def dot(side: int, center: tuple[float, float], deviation: float, background: int) -> np.ndarray:
    """Return one image with a white Gaussian dot, in relative coordinates ``(x, y)``."""
    axis = (np.arange(side) + 0.5) / side
    columns, rows = (np.exp(-0.5 * ((axis - middle) / deviation) ** 2) for middle in center)
    values = np.round(background + (255 - background) * rows[:, None] * columns).astype(np.uint8)
    return np.repeat(values[None, :, :, None], 3, 3)


def brightness_and_center(view: Tensor) -> tuple[float, Tensor]:
    """Return the mass of the dots relative to the image, and their center of mass in relative coordinates."""
    values = view.mean(0)
    values = (values - values.median()).abs()
    values[(view == 0.5).all(0)] = 0  # the square of cutout, or an erased rectangle
    values[values < 0.25 * values.max()] = 0
    axis = (torch.arange(view.shape[-1]) + 0.5) / view.shape[-1]
    mass = values.sum()
    center = torch.stack([(values.sum(0) * axis).sum(), (values.sum(1) * axis).sum()]) / mass
    return mass.item() / values.numel(), center


@every_policy
@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 100),
    frame=st.sampled_from(SIZES),
    side=st.sampled_from(SIZES),
    center=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@example(seed=0, epoch=0, frame=32, side=224, center=(0.02, 0.98)).via("mirrored at a corner")
def test_dot_lands_at_the_same_relative_position(
    policy: str, seed: int, epoch: int, frame: int, side: int, center: tuple[float, float]
) -> None:
    is_photo = isinstance(POLICIES[policy], PhotoPolicy)
    operation = draw_operation(random_photo(seed, epoch, torch.tensor([0])))[0]
    assume(not (is_photo and OPERATIONS[operation] == "Equalize"))  # depends on the number of pixels of each value
    deviation = 1.5 / min(frame, side)
    small, large = (dot(n, center, deviation, 127 if is_photo else 0) for n in (frame, side))  # gray as the outside is
    expected_mass, expected = brightness_and_center(render(policy, small, None, seed, epoch).x[0])
    mass, position = brightness_and_center(render(policy, large, frame, seed, epoch).x[0])
    whole_mass = 2 * np.pi * deviation**2
    assert mass == pytest.approx(expected_mass, abs=0.25 * whole_mass)
    if min(mass, expected_mass) > 0.3 * whole_mass:
        assert (position - expected).abs().max() < 0.35 / frame + 1 / max(frame, side)


@pytest.mark.parametrize("policy", ["light", "strong"])
@pytest.mark.parametrize(("frame", "side"), [(32, 64), (32, 160), (64, 192)])
def test_views_of_a_smooth_image_agree_everywhere(policy: str, frame: int, side: int) -> None:
    """Waves of a quarter of the side, at every pixel, with mirrored borders, squares and boxes."""

    def waves(size: int) -> np.ndarray:
        axis = 2 * np.pi * (np.arange(size) + 0.5) / size * 4
        phases = np.linspace(0, 3, 60)[:, None]
        values = 0.5 + 0.2 * np.sin(axis + phases)[:, :, None, None] + 0.2 * np.sin(axis - phases)[:, None, :, None]
        return np.round(255 * values).astype(np.uint8).repeat(3, 3)

    small = render(policy, waves(frame)).x
    large = render(policy, waves(side), frame).x
    reduced = F.interpolate(large, size=frame, mode="area")
    difference = (reduced - small).abs()
    assert difference.mean() < 0.01
    shifted = (reduced.roll(1, 3) - small).abs()
    assert shifted.mean() > 5 * difference.mean(), "a shift by one pixel of the frame would be seen"


# --- dependence on the frame, and invalid frames


@every_policy
def test_uses_frame_is_true_if_the_views_depend_on_the_frame(policy: str) -> None:
    images = noise(60, 24)
    equal = torch.equal(render(policy, images, frame=16).x, render(policy, images, frame=17).x)
    assert equal == (not POLICIES[policy].uses_frame)


@pytest.mark.parametrize("frame", [0, -8])
def test_message_of_a_frame_below_1(frame: int) -> None:
    with pytest.raises(InputError, match=f"frame must be 1 or more, got {frame}"):
        make_views("light", noise(2, 8), frame)


def test_message_of_a_frame_of_images_that_are_not_square() -> None:
    with pytest.raises(InputError, match="images of views with a frame must be square, got 8x6"):
        make_views("light", noise(2, 8)[:, :, :6], 8)
