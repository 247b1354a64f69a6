"""Views are a pure function of (seed, epoch, sample), and do to a picture what their policy says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from torch import Tensor

from camkd.data import augment as module
from camkd.data.augment import POLICIES, Batch, Policy, Views, uniform
from camkd.data.dataset import Split
from camkd.types import InputError

COUNT, CLASSES = 24, 3
CPU = torch.device("cpu")

#: every policy there is, and each ingredient of it alone
INGREDIENTS = {
    "crop": Policy(crop=True),
    "flip": Policy(flip=True),
    "rotation": Policy(rotation=15.0),
    "colour": Policy(colour=0.3),
    "cutout": Policy(cutout=0.25),
    "mix": Policy(mix=1.0),
    "all and mix": Policy(True, True, 15.0, 0.3, 0.25, 1.0),
}


@pytest.fixture(autouse=True)
def more_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, policy in INGREDIENTS.items():
        monkeypatch.setitem(POLICIES, name, policy)


every_policy = pytest.mark.parametrize("policy", [*POLICIES, *INGREDIENTS])


def noise(count: int = COUNT, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def views(policy: str, seed: int = 1, images: np.ndarray | None = None) -> Views:
    images = noise() if images is None else images
    return Views(Split(images, np.arange(len(images)) % CLASSES), CLASSES, policy, seed, CPU)


def everything(policy: str, seed: int = 1, epoch: int = 2) -> Batch:
    return views(policy, seed)[epoch, torch.arange(COUNT)]


# --- purity


@every_policy
@settings(max_examples=6)
@given(order=st.permutations(range(COUNT)), size=st.integers(1, COUNT))
def test_a_view_does_not_depend_on_order_batch_or_repetition(policy: str, order: list[int], size: int) -> None:
    whole, again = everything(policy), views(policy)
    for samples in torch.tensor(order).split(size):
        x, labels = again[2, samples]
        assert torch.equal(x, whole.x[samples])
        assert torch.equal(labels, whole.labels[samples])


@every_policy
def test_processes_that_share_the_work_see_what_one_would_see(policy: str, tmp_path: Path) -> None:
    """Each with its own memory map and a state of its own in every random generator there is."""
    np.save(tmp_path / "images.npy", noise())
    whole = everything(policy)
    for process in range(3):
        torch.manual_seed(process)
        np.random.seed(process)  # noqa: NPY002
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
        samples = torch.arange(process, COUNT, 3)
        before = torch.get_rng_state()
        x, labels = views(policy, images=images)[2, samples]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(x, whole.x[samples])
        assert torch.equal(labels, whole.labels[samples])
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), noise())


@pytest.mark.parametrize("policy", [name for name in [*POLICIES, *INGREDIENTS] if name != "none"])
def test_other_seeds_and_epochs_give_other_views(policy: str) -> None:
    whole = everything(policy)
    for other in (everything(policy, seed=2), everything(policy, epoch=3), everything(policy, seed=2, epoch=1)):
        same = [torch.equal(a, b) for a, b in zip(whole.x, other.x, strict=True)]
        assert sum(same) < 0.75 * COUNT


def test_the_same_picture_twice_in_a_split_is_seen_differently() -> None:
    x, _ = views("light", images=np.repeat(noise(1), COUNT, 0))[0, torch.arange(COUNT)]
    assert len({view.numpy().tobytes() for view in x}) > COUNT / 2


# --- the form of a batch


@every_policy
@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_a_batch_has_the_form_it_promises(policy: str, shape: tuple[int, int]) -> None:
    images = noise(COUNT, *shape)
    images[0], images[1] = 0, 255
    x, labels = views(policy, images=images)[0, torch.arange(5)]
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


def test_none_is_the_picture_itself() -> None:
    x, labels = views("none")[7, torch.tensor([5, 2, 2])]
    np.testing.assert_array_equal(x.permute(0, 2, 3, 1).numpy(), noise()[[5, 2, 2]].astype(np.float32) / 255)
    assert labels.tolist() == [2, 2, 2]


def test_a_policy_that_is_not_there_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="no view policy 'heavy': choose one of none, light, strong"):
        views("heavy")


def test_the_view_policies_are_those_of_the_recipes() -> None:
    assert POLICIES["none"] == Policy()
    assert POLICIES["light"] == Policy(crop=True, flip=True)
    strong = POLICIES["strong"]
    assert strong.crop
    assert strong.flip
    assert strong.mix


# --- the numbers behind


def test_numbers_are_uniform_in_every_stream() -> None:
    u = uniform(3, 5, torch.arange(20_000))
    assert u.shape == (20_000, 16)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    for stream in range(16):
        assert stats.kstest(u[:, stream].numpy(), "uniform").pvalue > 1e-3, stream


def test_numbers_of_streams_samples_epochs_and_seeds_are_unrelated() -> None:
    samples = torch.arange(20_000)
    u = uniform(0, 0, samples).double()
    others = [uniform(seed, epoch, samples).double() for seed, epoch in ((0, 1), (1, 0), (1, 1), (-1, 0), (1 << 40, 0))]
    columns = torch.cat([u, *others, u.roll(1, 0), u.roll(2, 0)], 1)
    related = np.corrcoef(columns.numpy().T) - np.eye(columns.shape[1])
    assert abs(related).max() < 5 / np.sqrt(len(samples))  # 8,128 pairs: the largest of chance is near 4
    assert torch.equal(uniform(1 << 64, 0, samples[:5]), uniform(0, 0, samples[:5])), "a seed is 64 bits"


def test_samples_beyond_24_bits_stay_apart() -> None:
    far = torch.tensor([0, 1, 1 << 24, (1 << 24) + 1, (1 << 32), (1 << 40) + 1, (1 << 59) - 1])
    u = uniform(0, 0, far)
    assert len({tuple(row.tolist()) for row in u}) == len(far)
    near = uniform(0, 0, torch.arange(1 << 24, (1 << 24) + 20_000))
    assert stats.kstest(near[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert len(near[:, 0].unique()) > 19_900


def test_numbers_are_splitmix64_in_counter_mode() -> None:
    """Worked with Python's integers: state = key + (16 sample + stream + 1) golden."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF, "the first output of the reference program for seed 0"
    golden = 0x9E3779B97F4A7C15
    for seed, epoch, sample in ((0, 0, 0), (7, 3, 12345), (1, 0, 1 << 40)):
        key = mix(mix(seed) ^ epoch * golden & mask)
        expected = [(mix(key + (16 * sample + s + 1) * golden & mask) >> 40) / 2**24 for s in range(16)]
        assert uniform(seed, epoch, torch.tensor([sample]))[0].tolist() == expected


# --- crop and flip


def light_literally(picture: np.ndarray, u: Tensor) -> np.ndarray:
    """Pad by reflection, cut out at the drawn corner, mirror with Pillow."""
    height, width, _ = picture.shape
    pads = height // 8, width // 8
    padded = np.pad(picture, ((pads[0], pads[0]), (pads[1], pads[1]), (0, 0)), mode="reflect")
    top = int(u[module._CROP_Y].item() * (2 * pads[0] + 1))
    left = int(u[module._CROP_X].item() * (2 * pads[1] + 1))
    cut = Image.fromarray(padded[top : top + height, left : left + width])
    return np.asarray(ImageOps.mirror(cut) if u[module._FLIP] >= 0.5 else cut)


@pytest.mark.parametrize("shape", [(16, 16), (32, 24), (9, 7)])
def test_the_light_view_is_pad_crop_and_mirror(shape: tuple[int, int]) -> None:
    images = noise(60, *shape)
    x, _ = views("light", seed=4, images=images)[6, torch.arange(60)]
    u = uniform(4, 6, torch.arange(60))
    for n in range(60):
        expected = light_literally(images[n], u[n]).astype(np.float32) / 255
        np.testing.assert_array_equal(x[n].permute(1, 2, 0).numpy(), expected)


def test_every_shift_and_both_sides_are_drawn_equally_often() -> None:
    images = np.zeros((4000, 16, 1, 3), np.uint8)
    images[:, 8] = 255
    x, _ = views("crop", images=images)[0, torch.arange(4000)]
    shifts = x[:, 0, :, 0].argmax(1) - 8
    counts = torch.bincount(shifts + 2)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    images = np.zeros((4000, 1, 2, 3), np.uint8)
    images[:, :, 1] = 255
    x, _ = views("flip", images=images)[0, torch.arange(4000)]
    assert stats.binomtest(int(x[:, 0, 0, 0].sum()), 4000).pvalue > 1e-3


# --- rotation, colour, cutout


def batch(count: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_no_rotation_is_no_change_and_right_angles_are_exact() -> None:
    x = batch()
    torch.testing.assert_close(module._rotated(x, torch.zeros(3)), x, rtol=0, atol=1e-5)
    quarter = module._rotated(x, torch.full((3,), np.pi / 2))
    torch.testing.assert_close(quarter, x.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    wide = batch(3, 8, 14)
    half = module._rotated(wide, torch.full((3,), np.pi))
    torch.testing.assert_close(half, wide.flip(2, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 12), (8, 14)])
def test_rotation_is_bilinear_about_the_centre_and_reflects(shape: tuple[int, int]) -> None:
    x, angles = batch(3, *shape), torch.tensor([0.2, -0.26, 0.05])
    rotated = module._rotated(x, angles)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    down, right = rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2
    for n, angle in enumerate(angles.tolist()):
        from_x = np.cos(angle) * right - np.sin(angle) * down + (shape[1] - 1) / 2
        from_y = np.sin(angle) * right + np.cos(angle) * down + (shape[0] - 1) / 2
        for channel in range(3):
            expected = ndimage.map_coordinates(x[n, channel].numpy(), [from_y, from_x], order=1, mode="reflect")
            np.testing.assert_allclose(rotated[n, channel].numpy(), expected, atol=1e-4)


def test_rotation_stays_within_its_range_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "_rotated", lambda x, angle: seen.append(angle) or x)
    views("rotation", images=noise(2000, 2, 2))[0, torch.arange(2000)]
    degrees = torch.rad2deg(seen[0])
    assert stats.kstest(degrees.numpy(), stats.uniform(-15, 30).cdf).pvalue > 1e-3


def test_factors_of_one_change_no_colour() -> None:
    torch.testing.assert_close(module._recoloured(batch(), torch.ones(3, 3)), batch(), rtol=0, atol=1e-6)


def test_colour_is_pillows_brightness_contrast_and_saturation() -> None:
    generator = np.random.default_rng(1)
    pictures = generator.integers(90, 150, (4, 12, 12, 3), np.uint8)  # nothing is clipped on the way
    factors = torch.tensor([[1.2, 1.0, 1.0], [1.0, 0.7, 1.0], [1.0, 1.0, 1.3], [0.8, 1.2, 0.75]])
    x = module._recoloured(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, factors)
    for n, steps in enumerate(factors.tolist()):
        image = Image.fromarray(pictures[n])
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), steps, strict=True
        ):
            image = enhance(image).enhance(factor)
        ours = x[n].permute(1, 2, 0).numpy() * 255
        assert abs(ours - np.asarray(image, np.float32)).max() < 2.5, n
        assert abs(ours - pictures[n]).max() > 5, "the factors do something"


def test_colour_stays_between_black_and_white() -> None:
    x = module._recoloured(batch(), torch.full((3, 3), 1.9))
    assert x.min() == 0
    assert x.max() == 1


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_cutout_is_a_grey_square_about_the_drawn_centre(shape: tuple[int, int]) -> None:
    images, side = noise(40, *shape), round(shape[1] * 0.25)
    x, _ = views("cutout", seed=2, images=images)[1, torch.arange(40)]
    u = uniform(2, 1, torch.arange(40))
    for n in range(40):
        expected = images[n].astype(np.float32) / 255
        centre = u[n, module._CUT_Y].item() * shape[0], u[n, module._CUT_X].item() * shape[1]
        for row, column in product(*map(range, shape)):
            if abs(row + 0.5 - centre[0]) < side / 2 and abs(column + 0.5 - centre[1]) < side / 2:
                expected[row, column] = 0.5
        np.testing.assert_array_equal(x[n].permute(1, 2, 0).numpy(), expected)
        grey = int((x[n] == 0.5).all(0).sum())
        assert 0 < grey <= side * side + 2 * side + 1


# --- mixing


def one_colour_each(count: int, side: int = 8) -> np.ndarray:
    """Pictures of class 0, 1, 2, 0, ... all red, green, blue: a view's mean colour is its label."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[np.arange(count), :, :, np.arange(count) % CLASSES] = 255
    return images


@pytest.mark.parametrize("policy", ["mix", "light mix"])
def test_the_label_is_the_share_of_each_class_in_the_pixels(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "light mix", Policy(crop=True, flip=True, rotation=15.0, mix=0.5))
    x, labels = views(policy, images=one_colour_each(600))[3, torch.arange(600)]
    torch.testing.assert_close(x.mean((2, 3)), labels, rtol=0, atol=1e-5)
    assert (labels.max(1).values < 0.99).any()


def test_half_is_blended_and_half_pasted() -> None:
    count = 3000
    x, labels = views("mix", images=one_colour_each(count))[0, torch.arange(count)]
    mixed = labels.max(1).values < 1 - 1e-6  # with another class
    flat = (x.amax((2, 3)) - x.amin((2, 3))).amax(1) < 1e-6
    pure = ((x < 1e-6) | (x > 1 - 1e-6)).all(1).all(1).all(1)
    assert (flat | pure)[mixed].all(), "every mixture is one or the other"
    blended, pasted = int((mixed & flat).sum()), int((mixed & ~flat).sum())
    assert blended == pytest.approx(count / 2 * 2 / 3, rel=0.1)  # two partners in three have another class
    assert pasted < blended, "boxes beyond the border or too small paste nothing"
    assert pasted > 0.8 * blended


def test_a_pasted_part_is_a_box_of_the_partners_own_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel is this picture's or the partner's, in the views they have by themselves."""
    monkeypatch.setitem(POLICIES, "alone", Policy(crop=True, flip=True))
    monkeypatch.setitem(POLICIES, "mixed", Policy(crop=True, flip=True, mix=1.0))
    samples = torch.arange(COUNT)
    alone, mixed = views("alone")[2, samples].x, views("mixed")[2, samples].x
    u = uniform(1, 2, samples)
    for n in range(COUNT):
        fraction = u[n, module._PARTNER].item() + u[n, module._PARTNER_LOW].item() / 2**24
        partner = alone[int(fraction * COUNT)]
        weight = u[n, module._WEIGHT].item()
        if u[n, module._MIX] < 0.5:
            torch.testing.assert_close(mixed[n], (1 - weight) * alone[n] + weight * partner, rtol=0, atol=1e-6)
            continue
        expected, half = alone[n].clone(), 16 * weight**0.5 / 2
        for row, column in product(range(16), range(16)):
            down = abs(row + 0.5 - 16 * u[n, module._BOX_Y].item())
            right = abs(column + 0.5 - 16 * u[n, module._BOX_X].item())
            if down < half and right < half:
                expected[:, row, column] = partner[:, row, column]
        torch.testing.assert_close(mixed[n], expected, rtol=0, atol=1e-6)


def test_some_pictures_stay_alone_and_partners_come_from_the_whole_split() -> None:
    count = 4000
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, :, :, 0] = (np.arange(count) * 255 // count).astype(np.uint8)[:, None, None]
    x, _ = views("strong", images=images)[0, torch.arange(count)]
    del x
    u = uniform(1, 0, torch.arange(count))
    fraction = (u[:, module._PARTNER].double() + u[:, module._PARTNER_LOW].double() / 2**24).numpy()
    assert stats.kstest(fraction, "uniform").pvalue > 1e-3
    _, labels = views("strong", images=one_colour_each(count, 4))[0, torch.arange(count)]
    alone = int((labels.max(1).values == 1).sum())
    expected = count * (0.5 + 0.5 / 3)  # not mixed, or with its own class
    assert expected < alone < expected + 0.12 * count  # and boxes that hold no pixel's centre
