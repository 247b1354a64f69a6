"""Insertion, deletion, average drop, ROAD and the sanity check against literal loops, direct solvers and torchcam."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, sparse
from torch import Tensor, nn
from torchcam.methods import CAM, GradCAM
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from camkd.cams import predict
from camkd.data import augment as views
from camkd.data.dataset import Dataset, Split
from camkd.evaluate import faithfulness, predict_split
from camkd.evaluate import perturbation as p
from camkd.evaluate import road as r
from camkd.evaluate.metrics import derangement, spearman
from camkd.evaluate.sanity import randomised, sanity
from camkd.models import build
from support.reference_formulas import reference_resize

FIGURES = ("insertion", "deletion", "road", "average_drop", "confidence_increase")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(seed: int, n: int, h: int, w: int) -> Tensor:
    """Smooth ones in 0..1."""
    return nn.functional.avg_pool2d(draw(seed, n, 3, h, w), 3, 1, 1).sigmoid()


def corner(x: Tensor) -> Tensor:
    """A class that is as likely as the upper left quarter is red."""
    return x[:, 0, : x.shape[2] // 2, : x.shape[3] // 2].mean((1, 2))


def blue(x: Tensor) -> Tensor:
    """As `corner`, of another colour."""
    return corner(x.flip(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that makes much of small differences, so that its scores depend on the picture."""
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[6].weight *= 30
        model[6].bias -= model(torch.full((1, 3, 20, 20), 0.5))[0]  # no class is ahead from the start
    return model


def explained(model: nn.Module, x: Tensor) -> tuple[p.Score, Tensor, Tensor]:
    """The score of the predicted classes, the maps of these, and the classes."""
    with torch.no_grad():
        logits, cams, *_ = predict(model, x)
    shown = logits.argmax(1)
    assert cams is not None
    return lambda x: model(x).softmax(1)[range(len(x)), shown], cams[range(len(x)), shown], shown


# --- insertion and deletion


def area_literally(score: p.Score, before: Tensor, after: Tensor, plane: np.ndarray) -> float:
    """One picture ``(3, H, W)``: pixel after pixel in order, the trapezoids added up."""
    order = sorted(range(plane.size), key=lambda i: (-plane.flat[i], i))
    picture, heights, counts = before.clone(), [], []
    for step in range(11):
        count = int(step * plane.size / 10 + 0.5)
        for place in order[:count]:
            i, j = divmod(place, plane.shape[1])
            picture[:, i, j] = after[:, i, j]
        heights.append(float(score(picture[None])))
        counts.append(count / plane.size)
    return sum((counts[i + 1] - counts[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(10))


@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_insertion_and_deletion_are_the_literal_loop(size: tuple[int, int]) -> None:
    x, maps = pictures(0, 3, *size), draw(1, 3, 3, 2)
    inserted, deleted = p.insertion(corner, x, maps), p.deletion(corner, x, maps)
    for i in range(3):
        plane = reference_resize(maps[i].double().numpy(), size)
        grey = x[i].mean((1, 2), keepdim=True).expand_as(x[i])
        assert deleted[i].item() == pytest.approx(area_literally(corner, x[i], grey, plane), abs=1e-6)
        assert inserted[i].item() == pytest.approx(area_literally(corner, p.blurred(x)[i], x[i], plane), abs=1e-6)


def test_insertion_and_deletion_are_torchcams(model: nn.Module) -> None:
    """torchcam takes the same number of pixels a step where that number is whole, as on 20 x 20 pixels."""
    x = pictures(2, 6, 20, 20)
    baselines = {"deletion_auc": lambda x: x.mean((2, 3), keepdim=True), "insertion_auc": p.blurred}
    score, maps, _ = explained(model, x)
    for name, baseline in baselines.items():
        with CAM(model, "3", "6") as extractor:
            metric = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=10, baseline=baseline)
            metric.update(x)
        ours = {"deletion_auc": p.deletion, "insertion_auc": p.insertion}[name](score, x, maps)
        assert ours.mean().item() == pytest.approx(metric.summary()[name], abs=1e-5)


def test_a_map_of_the_place_that_decides_is_better_than_its_opposite() -> None:
    x, maps = pictures(0, 4, 8, 8), torch.zeros(4, 4, 4)
    x[:, 0, :4, :4] = 1
    maps[:, :2, :2] = 1
    assert (p.insertion(corner, x, maps) > p.insertion(corner, x, -maps) + 0.01).all()
    assert (p.deletion(corner, x, maps) < p.deletion(corner, x, -maps) - 0.05).all()
    assert (r.road(corner, x, maps) > 0.05).all()


def test_road_of_the_opposite_map_is_the_opposite() -> None:
    x, maps = pictures(1, 3, 9, 7), draw(2, 3, 9, 7)  # no two pixels are equal
    torch.testing.assert_close(r.road(corner, x, -maps), -r.road(corner, x, maps))
    assert (r.road(corner, x, maps) != 0).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_a_maps_cells_counts(seed: int, scale: float, offset: float) -> None:
    x, maps = pictures(seed, 2, 6, 6), draw(seed, 2, 6, 6)
    for figure in (p.insertion, p.deletion, r.road):
        torch.testing.assert_close(figure(corner, x, scale * maps.exp() + offset), figure(corner, x, maps))


def test_of_equal_pixels_the_first_goes_first() -> None:
    places = p.ranks(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.zeros(1, 3, 2, 2))
    assert places.tolist() == [[[2, 0], [1, 3]]]
    assert p.ranks(torch.zeros(1, 4, 4), torch.zeros(1, 3, 40, 40)).flatten().tolist() == list(range(1600))


@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_blurred_is_scipys_gaussian_over_the_pixels_there_are(size: tuple[int, int]) -> None:
    x = pictures(0, 1, *size)[0].double()
    sigma = [side / 16 for side in size]
    cut = {"sigma": sigma, "mode": "constant", "truncate": 20}
    there = ndimage.gaussian_filter(np.ones(size), **cut)
    expected = np.stack([ndimage.gaussian_filter(plane.numpy(), **cut) / there for plane in x])
    np.testing.assert_allclose(p.blurred(x[None])[0], expected, atol=1e-6)


# --- average drop, increase in confidence


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_average_drop_and_increase_are_torchcams(model: nn.Module, method: str) -> None:
    if method == "gradient":
        model = nn.Sequential(*model[:6], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = pictures(3, 24, 20, 20) - torch.tensor([0.25, 0.75]).repeat(12)[:, None, None, None]  # of both kinds
    score, maps, shown = explained(model, x)
    extractor = GradCAM(model, "3")  # of the probability, not the logit, so it is given our maps
    extractor.compute_cams = lambda *_, **__: [extractor._normalize(maps.relu())]
    with extractor:
        metric = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        metric.update(x, shown.tolist())
    drop, increase = p.average_drop(score, x, maps)
    expected = metric.summary()
    assert 0 < expected["avg_drop"] < 1
    assert 0 < expected["conf_increase"] < 1
    assert drop.mean().item() == pytest.approx(expected["avg_drop"], abs=1e-5)
    assert increase.mean().item() == pytest.approx(expected["conf_increase"])


def test_average_drop_by_hand() -> None:
    x = torch.ones(4, 3, 2, 2) * torch.tensor([0.8, 0.8, 0.8, 0.8])[:, None, None, None]
    maps = torch.tensor([[[1.0, -9], [-9, -9]], [[-1.0, -1], [-1, 2]], [[-1.0, -1], [-1, -3]], [[4.0, 2], [2, 2]]])
    drop, increase = p.average_drop(corner, x, maps)  # the score is the red of the first pixel alone
    torch.testing.assert_close(drop, torch.tensor([0.0, 1, 1, 0]))  # seen, hidden, no evidence, least brought to 0
    assert increase.tolist() == [0, 0, 0, 0]
    assert p.average_drop(lambda x: 1 - corner(x), x, maps)[1].tolist() == [0, 1, 1, 0]


# --- ROAD


def imputed_literally(x: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One picture ``(C, H, W)``: one equation a removed pixel, solved directly."""
    holes = [tuple(place) for place in np.argwhere(removed)]
    matrix, known = sparse.lil_matrix((len(holes), len(holes))), np.zeros((len(holes), len(x)))
    for row, (i, j) in enumerate(holes):
        for di, dj in [(di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1) if (di, dj) != (0, 0)]:
            there = (i + di, j + dj)
            if not (0 <= there[0] < x.shape[1] and 0 <= there[1] < x.shape[2]):
                continue
            weight = 1 / 12 if di and dj else 1 / 6
            matrix[row, row] += weight
            if removed[there]:
                matrix[row, holes.index(there)] -= weight
            else:
                known[row] += weight * x[:, there[0], there[1]]
    found = x.copy()
    found[:, removed] = sparse.linalg.spsolve(sparse.csc_matrix(matrix), known).reshape(len(holes), -1).T
    return found


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 17), st.integers(1, 17), st.floats(0, 1), st.booleans())
def test_imputed_solves_the_papers_system(seed: int, h: int, w: int, share: float, blob: bool) -> None:
    x, maps = pictures(seed, 2, h, w), draw(seed, 2, 3, 3) if blob else draw(seed, 2, h, w)
    removed = p.ranks(maps, x) < min(h * w - 1, int(share * h * w))
    found = r.imputed(x, removed)
    for i in range(2):
        if removed[i].any():
            expected = imputed_literally(x[i].double().numpy(), removed[i].numpy())
            np.testing.assert_allclose(found[i], expected, atol=1e-4)
    assert torch.equal(found[~removed[:, None].expand_as(x)], x[~removed[:, None].expand_as(x)])


def test_what_is_imputed_keeps_within_the_colours_around_it() -> None:
    x = pictures(0, 2, 40, 40)
    removed = p.ranks(draw(1, 2, 3, 3), x) < 1500
    found = r.imputed(x, removed)
    for picture, before, hole in zip(found, x, removed, strict=True):
        for colour in range(3):
            assert before[colour][~hole].min() - 1e-3 <= picture[colour].min()
            assert picture[colour].max() <= before[colour][~hole].max() + 1e-3


def test_a_plane_is_imputed_as_it_was() -> None:
    """The weighted mean of the neighbours is linear: inside a picture a slope continues."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 30), torch.linspace(0, 1, 30), indexing="ij")
    x = torch.stack([rows, columns, (rows + columns) / 2])[None]
    removed = torch.zeros(1, 30, 30, dtype=torch.bool)
    removed[:, 3:-3, 3:-3] = True
    torch.testing.assert_close(r.imputed(x, removed), x, atol=1e-3, rtol=0)


def test_a_picture_without_a_known_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="single known pixel"):
        r.imputed(torch.rand(2, 3, 4, 4), torch.tensor([False, True])[:, None, None].expand(2, 4, 4))


@pytest.mark.parametrize("score", [corner, blue])
def test_road_is_the_literal_loop(score: p.Score) -> None:
    x, maps = pictures(4, 3, 10, 10), draw(5, 3, 4, 4)
    noise = 0.01 * torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(7)).double().numpy()
    for i, found in enumerate(r.road(score, x, maps, seed=7)):
        plane = reference_resize(maps[i].double().numpy(), (10, 10))
        order = np.argsort(-plane, axis=None, kind="stable")
        gaps = []
        for count in (20, 40, 60, 80):
            scores = []
            for gone in (order[100 - count :], order[:count]):
                removed = np.zeros(100, bool)
                removed[gone] = True
                removed = removed.reshape(10, 10)
                picture = imputed_literally(x[i].double().numpy(), removed) + noise * removed
                scores.append(float(score(torch.from_numpy(picture)[None])))
            gaps.append((scores[0] - scores[1]) / 2)
        assert found.item() == pytest.approx(np.mean(gaps), abs=1e-4)


# --- the sanity check


def test_randomised_permutes_inside_each_parameter_and_leaves_the_model(model: nn.Module) -> None:
    model = build("resnet8", 3, 16, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = randomised(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values), name
        assert one.unique().numel() < 3 or not torch.equal(one, two), name
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), other.buffers(), strict=True))
    again, another = randomised(model), randomised(model, seed=1)
    assert all(torch.equal(one, two) for one, two in zip(other.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(other.parameters(), another.parameters(), strict=True))


def test_sanity_is_the_rank_correlation_with_the_copys_maps(model: nn.Module, easy: Dataset) -> None:
    own = predict_split(model, easy.test)
    x = torch.from_numpy(easy.test.images.copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        cams = predict(randomised(model, 3), x).cams
    assert cams is not None
    expected = spearman(own.maps, cams[range(24), own.class_ids]).mean().item()
    assert sanity(model, easy.test, own, seed=3) == pytest.approx(expected, abs=1e-5)
    assert abs(expected) < 0.9


def test_maps_that_have_nothing_to_do_with_the_weights_fail_the_sanity_check(easy: Dataset) -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.5)  # nothing to permute
    assert sanity(model, easy.test, predict_split(model, easy.test)) == pytest.approx(1)


def test_a_copy_that_overflows_says_nothing(easy: Dataset) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    own = predict_split(model, easy.test)
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    assert sanity(model, easy.test, own) is None


# --- all of it on a sample


def test_faithfulness_is_the_mean_over_the_sample(
    model: nn.Module, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "IN_ORDER", 7)
    found = faithfulness(model, easy.test)
    assert set(found) == {f"{name}{end}" for name in FIGURES for end in ("", "_shuffled")} | {
        "randomised_spearman",
        "faithfulness_pictures",
    }
    x = torch.from_numpy(easy.test.images.copy()).permute(0, 3, 1, 2) / 255
    score, maps, _ = explained(model, x)
    with torch.no_grad():
        for end, some in (("", maps), ("_shuffled", maps[derangement(24)])):
            assert found["insertion" + end] == pytest.approx(p.insertion(score, x, some).mean().item(), abs=1e-5)
            assert found["deletion" + end] == pytest.approx(p.deletion(score, x, some).mean().item(), abs=1e-5)
            assert found["road" + end] == pytest.approx(r.road(score, x, some).mean().item(), abs=1e-5)
            drop, increase = p.average_drop(score, x, some)
            assert found["average_drop" + end] == pytest.approx(drop.mean().item(), abs=1e-5)
            assert found["confidence_increase" + end] == pytest.approx(increase.mean().item(), abs=1e-5)


def test_the_sample_is_the_first_pictures_of_each_class(model: nn.Module, easy: Dataset) -> None:
    order = np.argsort(easy.test.labels, kind="stable")  # class after class, as a folder has them
    split = Split(easy.test.images[order], easy.test.labels[order])
    few = split.take(np.array([0, 1, 8, 9, 16]))
    expected = faithfulness(model, few)
    assert faithfulness(model, split, count=5) == expected
    assert expected["faithfulness_pictures"] == 5


def test_one_picture_has_no_other_picture(model: nn.Module, easy: Dataset) -> None:
    one = replace(easy.test, images=easy.test.images[:1], labels=easy.test.labels[:1])
    found = faithfulness(model, one)
    assert found["faithfulness_pictures"] == 1
    assert set(FIGURES) < set(found)
    assert not any(name.endswith("_shuffled") for name in found)


def test_the_model_is_left_as_it_was(easy: Dataset) -> None:
    model = build("resnet8", 3, 16).train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert faithfulness(model, easy.test) == faithfulness(model, easy.test)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
