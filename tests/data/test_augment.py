"""Augmented views: a pure function of (seed, epoch, sample), compared with reference implementations."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from torch import Tensor

from camkd.data import augment, batches
from camkd.data.augment import POLICIES, Policy, random_uniform
from camkd.data.batches import epoch_order, sequential_batches
from camkd.data.color import color_jitter
from camkd.data.dataset import Dataset, Split
from camkd.data.geometry import rotate
from camkd.data.views import Batch, Views
from camkd.types import InputError

COUNT = 24
CLASSES = 3
CPU = torch.device("cpu")

SINGLE_POLICIES = {
    "crop": Policy(crop=True),
    "flip": Policy(flip=True),
    "rotation": Policy(rotation=15.0),
    "color": Policy(color=0.3),
    "cutout": Policy(cutout=0.25),
    "mix": Policy(mix=1.0),
    "all and mix": Policy(True, True, 15.0, 0.3, 0.25, 1.0),
}
"""Policies with one kind of augmentation, and one with all kinds."""


@pytest.fixture(autouse=True)
def register_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, policy in SINGLE_POLICIES.items():
        monkeypatch.setitem(POLICIES, name, policy)


every_policy = pytest.mark.parametrize("policy", [*POLICIES, *SINGLE_POLICIES])


def noise(count: int = COUNT, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def make_views(policy: str, seed: int = 1, images: np.ndarray | None = None) -> Views:
    images = noise() if images is None else images
    return Views(Split(images, np.arange(len(images)) % CLASSES), CLASSES, policy, seed, CPU)


def whole_epoch(policy: str, seed: int = 1, epoch: int = 2) -> Batch:
    return make_views(policy, seed)[epoch, torch.arange(COUNT)]


# --- pure function


@every_policy
@settings(max_examples=6)
@given(order=st.permutations(range(COUNT)), size=st.integers(1, COUNT))
def test_view_is_independent_of_order_and_batch_size(policy: str, order: list[int], size: int) -> None:
    expected = whole_epoch(policy)
    views = make_views(policy)
    for samples in torch.tensor(order).split(size):
        x, labels, _ = views[2, samples]
        assert torch.equal(x, expected.x[samples])
        assert torch.equal(labels, expected.labels[samples])


@every_policy
def test_view_is_independent_of_memory_maps_and_random_states(policy: str, tmp_path: Path) -> None:
    """Shards of an epoch, each with its own memory map and its own state of the random generators."""
    np.save(tmp_path / "images.npy", noise())
    expected = whole_epoch(policy)
    for rank in range(3):
        torch.manual_seed(rank)
        np.random.seed(rank)  # noqa: NPY002
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
        samples = torch.arange(rank, COUNT, 3)
        rng_state = torch.get_rng_state()
        x, labels, _ = make_views(policy, images=images)[2, samples]
        assert torch.equal(torch.get_rng_state(), rng_state)
        assert torch.equal(x, expected.x[samples])
        assert torch.equal(labels, expected.labels[samples])
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), noise())


@pytest.mark.parametrize("policy", [name for name in [*POLICIES, *SINGLE_POLICIES] if name != "none"])
def test_view_changes_with_seed_and_epoch(policy: str) -> None:
    batch = whole_epoch(policy)
    for other in (whole_epoch(policy, seed=2), whole_epoch(policy, epoch=3), whole_epoch(policy, seed=2, epoch=1)):
        equal = [torch.equal(a, b) for a, b in zip(batch.x, other.x, strict=True)]
        assert sum(equal) < 0.75 * COUNT


def test_two_samples_of_the_same_image_have_different_views() -> None:
    x, *_ = make_views("light", images=np.repeat(noise(1), COUNT, 0))[0, torch.arange(COUNT)]
    assert len({view.numpy().tobytes() for view in x}) > COUNT / 2


# --- batches


@every_policy
@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_batch_has_documented_shape_dtype_and_range(policy: str, shape: tuple[int, int]) -> None:
    images = noise(COUNT, *shape)
    images[0] = 0
    images[1] = 255
    x, labels, _ = make_views(policy, images=images)[0, torch.arange(5)]
    assert x.shape == (5, 3, *shape)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() >= 0
    assert x.max() <= 1
    if POLICIES[policy].mix:
        assert labels.shape == (5, CLASSES)
        assert labels.dtype == torch.float32
        assert (labels >= 0).all()
        torch.testing.assert_close(labels.sum(1), torch.ones(5))
    else:
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 1, 2, 0, 1]


def test_policy_none_returns_the_image() -> None:
    x, labels, _ = make_views("none")[7, torch.tensor([5, 2, 2])]
    np.testing.assert_array_equal(x.permute(0, 2, 3, 1).numpy(), noise()[[5, 2, 2]].astype(np.float32) / 255)
    assert labels.tolist() == [2, 2, 2]


def test_epoch_order_is_a_permutation_in_equal_batches() -> None:
    batches = epoch_order(100, seed=3, epoch=1, batch_size=16)
    assert torch.cat(batches).sort().values.tolist() == list(range(100))
    assert {len(samples) for samples in batches} == {16, 17}
    assert torch.equal(torch.cat(epoch_order(100, seed=3, epoch=1, batch_size=50)), torch.cat(batches))
    assert not torch.equal(torch.cat(epoch_order(100, seed=3, epoch=2, batch_size=16)), torch.cat(batches))


def test_sequential_batches_are_limited_in_images_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(noise(), np.arange(COUNT) % CLASSES)
    assert [len(samples) for samples in sequential_batches(split, 10)] == [10, 10, 4]
    assert torch.equal(torch.cat(sequential_batches(split, 10)), torch.arange(COUNT))
    monkeypatch.setattr(batches, "MAX_BATCH_BYTES", 16 * 16 * 3 * 7)
    assert [len(samples) for samples in sequential_batches(split)] == [7, 7, 7, 3]


# --- policies


def test_message_of_an_unknown_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SINGLE_POLICIES:
        monkeypatch.delitem(POLICIES, name)
    with pytest.raises(InputError) as caught:
        make_views("heavy")
    assert str(caught.value) == (
        "augment must be one of none, light, strong, photo, photo-mix, got 'heavy'. Choose a policy from the list."
    )


def test_policies() -> None:
    assert POLICIES["none"] == Policy()
    assert POLICIES["light"] == Policy(crop=True, flip=True)
    assert POLICIES["strong"] == Policy(crop=True, flip=True, rotation=15.0, color=0.3, cutout=0.25, mix=0.5)


STRONG_KEY = "version=2 crop=1 flip=1 rotation=15.0 color=0.3 cutout=0.25 mix=0.5"


def test_policy_key_is_stable() -> None:
    assert POLICIES["none"].key() == "version=2 crop=0 flip=0 rotation=0.0 color=0.0 cutout=0.0 mix=0.0"
    assert POLICIES["light"].key() == "version=2 crop=1 flip=1 rotation=0.0 color=0.0 cutout=0.0 mix=0.0"
    assert POLICIES["strong"].key() == STRONG_KEY


def test_policy_key_is_independent_of_the_class_name_and_of_number_types() -> None:
    Renamed = type("Renamed", (Policy,), {})
    assert Renamed(**vars(POLICIES["strong"])).key() == STRONG_KEY
    assert replace(POLICIES["strong"], rotation=15).key() == STRONG_KEY


@pytest.mark.parametrize("name", [field.name for field in fields(Policy)])
def test_policy_key_changes_with_each_setting(name: str) -> None:
    value = getattr(POLICIES["strong"], name)
    change: dict[str, Any] = {name: not value if isinstance(value, bool) else value / 2}
    assert replace(POLICIES["strong"], **change).key() != STRONG_KEY


def test_policy_key_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "VERSION", 3)
    assert POLICIES["strong"].key() != STRONG_KEY


# --- random numbers


def test_random_numbers_are_uniform_in_every_stream() -> None:
    u = random_uniform(3, 5, torch.arange(20_000))
    assert u.shape == (20_000, 16)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    for stream in range(16):
        assert stats.kstest(u[:, stream].numpy(), "uniform").pvalue > 1e-3, stream


def test_random_numbers_of_streams_samples_epochs_and_seeds_are_uncorrelated() -> None:
    samples = torch.arange(20_000)
    u = random_uniform(0, 0, samples).double()
    seeds_and_epochs = ((0, 1), (1, 0), (1, 1), (-1, 0), (1 << 40, 0))
    others = [random_uniform(seed, epoch, samples).double() for seed, epoch in seeds_and_epochs]
    columns = torch.cat([u, *others, u.roll(1, 0), u.roll(2, 0)], 1)
    correlation = np.corrcoef(columns.numpy().T) - np.eye(columns.shape[1])
    assert abs(correlation).max() < 5 / np.sqrt(len(samples))  # 8,128 pairs: the maximum by chance is near 4


def test_seed_is_taken_modulo_64_bits() -> None:
    samples = torch.arange(5)
    assert torch.equal(random_uniform(1 << 64, 0, samples), random_uniform(0, 0, samples))


def test_random_numbers_of_large_sample_indices_are_distinct() -> None:
    large = torch.tensor([0, 1, 1 << 24, (1 << 24) + 1, (1 << 32), (1 << 40) + 1, (1 << 59) - 1])
    u = random_uniform(0, 0, large)
    assert len({tuple(row.tolist()) for row in u}) == len(large)
    beyond_24_bits = random_uniform(0, 0, torch.arange(1 << 24, (1 << 24) + 20_000))
    assert stats.kstest(beyond_24_bits[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert len(beyond_24_bits[:, 0].unique()) > 19_900


def test_random_numbers_are_splitmix64_in_counter_mode() -> None:
    """Reference in Python integers: ``state = key + (16 sample + stream + 1) golden``."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF, "the first output of the reference program for seed 0"
    golden = 0x9E3779B97F4A7C15
    for seed, epoch, sample in ((0, 0, 0), (7, 3, 12345), (1, 0, 1 << 40)):
        key = mix(mix(seed) ^ epoch * golden & mask)
        expected = [(mix(key + (16 * sample + stream + 1) * golden & mask) >> 40) / 2**24 for stream in range(16)]
        assert random_uniform(seed, epoch, torch.tensor([sample]))[0].tolist() == expected


# --- crop and flip


def reference_crop_and_flip(image: np.ndarray, u: Tensor) -> np.ndarray:
    """Reflection padding and crop with NumPy, flip with Pillow."""
    height, width, _ = image.shape
    pad_y = height // 8
    pad_x = width // 8
    padded = np.pad(image, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
    top = int(u[augment.CROP_Y].item() * (2 * pad_y + 1))
    left = int(u[augment.CROP_X].item() * (2 * pad_x + 1))
    crop = Image.fromarray(padded[top : top + height, left : left + width])
    return np.asarray(ImageOps.mirror(crop) if u[augment.FLIP] >= 0.5 else crop)


@pytest.mark.parametrize("shape", [(16, 16), (32, 24), (9, 7)])
def test_crop_and_flip_match_the_reference(shape: tuple[int, int]) -> None:
    images = noise(60, *shape)
    x, *_ = make_views("light", seed=4, images=images)[6, torch.arange(60)]
    u = random_uniform(4, 6, torch.arange(60))
    for n in range(60):
        expected = reference_crop_and_flip(images[n], u[n]).astype(np.float32) / 255
        np.testing.assert_array_equal(x[n].permute(1, 2, 0).numpy(), expected)


def test_crop_offsets_are_equally_likely() -> None:
    images = np.zeros((4000, 16, 1, 3), np.uint8)
    images[:, 8] = 255
    x, *_ = make_views("crop", images=images)[0, torch.arange(4000)]
    offsets = x[:, 0, :, 0].argmax(1) - 8
    counts = torch.bincount(offsets + 2)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_flip_has_probability_one_half() -> None:
    images = np.zeros((4000, 1, 2, 3), np.uint8)
    images[:, :, 1] = 255
    x, *_ = make_views("flip", images=images)[0, torch.arange(4000)]
    assert stats.binomtest(int(x[:, 0, 0, 0].sum()), 4000).pvalue > 1e-3


# --- rotation, color, cutout


def random_batch(count: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_rotation_by_multiples_of_90_degrees_is_exact() -> None:
    x = random_batch()
    torch.testing.assert_close(rotate(x, torch.zeros(3)), x, rtol=0, atol=1e-5)
    by_90 = rotate(x, torch.full((3,), np.pi / 2))
    torch.testing.assert_close(by_90, x.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    wide = random_batch(3, 8, 14)
    by_180 = rotate(wide, torch.full((3,), np.pi))
    torch.testing.assert_close(by_180, wide.flip(2, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 12), (8, 14)])
def test_rotation_matches_scipy(shape: tuple[int, int]) -> None:
    x = random_batch(3, *shape)
    angles = torch.tensor([0.2, -0.26, 0.05])
    rotated = rotate(x, angles)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    center_y = (shape[0] - 1) / 2
    center_x = (shape[1] - 1) / 2
    for n, angle in enumerate(angles.tolist()):
        source_x = np.cos(angle) * (columns - center_x) - np.sin(angle) * (rows - center_y) + center_x
        source_y = np.sin(angle) * (columns - center_x) + np.cos(angle) * (rows - center_y) + center_y
        for channel in range(3):
            expected = ndimage.map_coordinates(x[n, channel].numpy(), [source_y, source_x], order=1, mode="reflect")
            np.testing.assert_allclose(rotated[n, channel].numpy(), expected, atol=1e-4)


def test_rotation_angles_are_uniform_in_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[Tensor] = []
    monkeypatch.setattr("camkd.data.views.rotate", lambda x, angle: angles.append(angle) or x)
    make_views("rotation", images=noise(2000, 2, 2))[0, torch.arange(2000)]
    degrees = torch.rad2deg(angles[0])
    assert stats.kstest(degrees.numpy(), stats.uniform(-15, 30).cdf).pvalue > 1e-3


def test_color_jitter_by_factors_of_one_is_the_identity() -> None:
    jittered = color_jitter(random_batch(), torch.ones(3, 3))
    torch.testing.assert_close(jittered, random_batch(), rtol=0, atol=1e-6)


def test_color_jitter_matches_pillow() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(90, 150, (4, 12, 12, 3), np.uint8)  # no intermediate value is clipped
    factors = torch.tensor([[1.2, 1.0, 1.0], [1.0, 0.7, 1.0], [1.0, 1.0, 1.3], [0.8, 1.2, 0.75]])
    x = color_jitter(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, factors)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for n, row in enumerate(factors.tolist()):
        expected = Image.fromarray(images[n])
        for enhancer, factor in zip(enhancers, row, strict=True):
            expected = enhancer(expected).enhance(factor)
        jittered = x[n].permute(1, 2, 0).numpy() * 255
        assert abs(jittered - np.asarray(expected, np.float32)).max() < 2.5, n
        assert abs(jittered - images[n]).max() > 5, "the factors change the image"


def test_color_jitter_is_clipped_to_0_and_1() -> None:
    x = color_jitter(random_batch(), torch.full((3, 3), 1.9))
    assert x.min() == 0
    assert x.max() == 1


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_cutout_is_a_gray_square(shape: tuple[int, int]) -> None:
    images = noise(40, *shape)
    side = round(shape[1] * 0.25)
    x, *_ = make_views("cutout", seed=2, images=images)[1, torch.arange(40)]
    u = random_uniform(2, 1, torch.arange(40))
    for n in range(40):
        expected = images[n].astype(np.float32) / 255
        center_y = u[n, augment.CUTOUT_Y].item() * shape[0]
        center_x = u[n, augment.CUTOUT_X].item() * shape[1]
        for row, column in product(*map(range, shape)):
            if abs(row + 0.5 - center_y) < side / 2 and abs(column + 0.5 - center_x) < side / 2:
                expected[row, column] = 0.5
        np.testing.assert_array_equal(x[n].permute(1, 2, 0).numpy(), expected)
        gray_pixels = int((x[n] == 0.5).all(0).sum())
        assert 0 < gray_pixels <= side * side + 2 * side + 1


# --- mixup and CutMix


def one_color_per_class(count: int, side: int = 8) -> np.ndarray:
    """Return images of class 0, 1, 2, 0, ... in red, green and blue: the mean color of a view is its label."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[np.arange(count), :, :, np.arange(count) % CLASSES] = 255
    return images


@pytest.mark.parametrize("policy", ["mix", "light mix"])
def test_mixed_label_is_the_fraction_of_each_class_in_the_pixels(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "light mix", Policy(crop=True, flip=True, rotation=15.0, mix=0.5))
    x, labels, _ = make_views(policy, images=one_color_per_class(600))[3, torch.arange(600)]
    torch.testing.assert_close(x.mean((2, 3)), labels, rtol=0, atol=1e-5)
    assert (labels.max(1).values < 0.99).any()


def test_mixup_and_cutmix_are_equally_likely() -> None:
    count = 3000
    x, labels, _ = make_views("mix", images=one_color_per_class(count))[0, torch.arange(count)]
    is_mixed = labels.max(1).values < 1 - 1e-6  # with another class
    is_constant = (x.amax((2, 3)) - x.amin((2, 3))).amax(1) < 1e-6
    is_binary = ((x < 1e-6) | (x > 1 - 1e-6)).all(1).all(1).all(1)
    assert (is_constant | is_binary)[is_mixed].all(), "every mixed image is mixup or CutMix"
    mixup = int((is_mixed & is_constant).sum())
    cutmix = int((is_mixed & ~is_constant).sum())
    assert mixup == pytest.approx(count / 2 * 2 / 3, rel=0.1)  # two partners in three have another class
    assert cutmix < mixup, "boxes outside the image or without a pixel change nothing"
    assert cutmix > 0.8 * mixup


def test_mix_uses_the_augmented_view_of_the_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with mixup and CutMix of the views that the image and its partner have without mixing."""
    monkeypatch.setitem(POLICIES, "unmixed", Policy(crop=True, flip=True))
    monkeypatch.setitem(POLICIES, "mixed", Policy(crop=True, flip=True, mix=1.0))
    samples = torch.arange(COUNT)
    unmixed = make_views("unmixed")[2, samples].x
    mixed = make_views("mixed")[2, samples].x
    u = random_uniform(1, 2, samples)
    for n in range(COUNT):
        fraction = u[n, augment.PARTNER].item() + u[n, augment.PARTNER_LOW].item() / 2**24
        partner = unmixed[int(fraction * COUNT)]
        weight = u[n, augment.WEIGHT].item()
        if u[n, augment.MIX] < 0.5:
            expected = (1 - weight) * unmixed[n] + weight * partner
        else:
            expected = unmixed[n].clone()
            half = 16 * weight**0.5 / 2
            for row, column in product(range(16), range(16)):
                distance_y = abs(row + 0.5 - 16 * u[n, augment.BOX_Y].item())
                distance_x = abs(column + 0.5 - 16 * u[n, augment.BOX_X].item())
                if distance_y < half and distance_x < half:
                    expected[:, row, column] = partner[:, row, column]
        torch.testing.assert_close(mixed[n], expected, rtol=0, atol=1e-6)


def test_mix_probability_and_uniform_partners() -> None:
    count = 4000
    u = random_uniform(1, 0, torch.arange(count))
    fraction = (u[:, augment.PARTNER].double() + u[:, augment.PARTNER_LOW].double() / 2**24).numpy()
    assert stats.kstest(fraction, "uniform").pvalue > 1e-3
    _, labels, _ = make_views("strong", images=one_color_per_class(count, 4))[0, torch.arange(count)]
    unmixed = int((labels.max(1).values == 1).sum())
    expected = count * (0.5 + 0.5 / 3)  # not mixed, or mixed with the same class
    assert expected < unmixed < expected + 0.12 * count  # plus boxes that contain no pixel center


@pytest.mark.parametrize("policy", ["strong", "photo-mix"])
def test_view_in_a_batch_of_one_large_image_has_the_same_bits_on_several_threads(policy: str) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        views = make_views(policy, images=noise(8, 224, 224))
        expected = views[1, torch.arange(8)]
        for sample in range(8):
            x, labels, _ = views[1, torch.tensor([sample])]
            assert torch.equal(x[0], expected.x[sample])
            assert torch.equal(labels[0], expected.labels[sample])
    finally:
        torch.set_num_threads(num_threads)


# --- weights


@pytest.mark.parametrize("policy", ["none", "light", "strong", "photo-mix"])
def test_weights_of_views(easy: Dataset, policy: str) -> None:
    indices = torch.arange(40)

    def batch(weights: np.ndarray | None) -> Batch:
        return Views(replace(easy.train, weights=weights), 3, policy, 1, CPU)[0, indices]

    values = np.linspace(0, 2, len(easy.train), dtype=np.float32)
    plain, weighted = batch(None), batch(values)
    assert plain.weights is None
    assert torch.equal(plain.x, weighted.x)
    assert torch.equal(plain.labels, weighted.labels)
    assert weighted.weights is not None
    if plain.labels.ndim == 1:
        assert weighted.weights.tolist() == values[:40].tolist()
        return
    assert (weighted.weights.sum(1) - torch.from_numpy(values[:40])).abs().lt(1e-6).sum() >= 10  # half are not mixed
    ones = batch(np.ones_like(values))
    torch.testing.assert_close(ones.weights, plain.labels)
    for k in range(3):  # only the part of class k has a weight
        of_class = batch((easy.train.labels == k).astype(np.float32))
        torch.testing.assert_close(of_class.weights, plain.labels * torch.eye(3)[k])
