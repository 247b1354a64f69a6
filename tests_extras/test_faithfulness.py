"""Figures of maps beside two programs that measure them too: Quantus and pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import quantus
import torch
from pytorch_grad_cam.metrics import road as peer
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from quantus.functions.perturb_func import noisy_linear_imputation
from quantus.functions.similarity_func import correlation_spearman
from torch import Tensor, nn

from camkd.cams import resize
from camkd.evaluate import metrics, perturbation, road

N, SIDE = 8, 20

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept")  # pytorch-grad-cam's


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(channels: int) -> nn.Module:
    """One that makes much of small differences, so that its scores depend on the picture."""
    torch.manual_seed(0)
    features = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[6].weight *= 30
        model[6].bias -= model(torch.full((1, channels, SIDE, SIDE), 0.5))[0]  # no class is ahead from the start
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network(3)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return nn.functional.avg_pool2d(draw(0, N, 3, SIDE, SIDE), 3, 1, 1).mul(3).sigmoid()


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """One value a pixel, so that none are equal."""
    return resize(draw(1, N, 5, 5), (SIDE, SIDE)) + 0.05 * draw(2, N, SIDE, SIDE)


def chances(model: nn.Module) -> tuple[perturbation.Score, list]:
    """The probability of the classes 0, 1, 2, 3, 0, ..., as ours and as pytorch-grad-cam's targets."""
    shown = torch.arange(N) % 4
    targets = [lambda logits, place=place: logits.softmax(-1)[place] for place in shown]
    return lambda x: model(x).softmax(1)[range(N), shown], targets


def shares(maps: Tensor) -> np.ndarray:
    flat = maps.relu().flatten(1)
    return ((flat - flat.amin(1, keepdim=True)) / flat.amax(1, keepdim=True)).view_as(maps).numpy()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_imputation(x: Tensor, maps: Tensor, share: float) -> None:
    removed = perturbation.ranks(maps, x) < share * SIDE * SIDE
    found = road.imputed(x, removed)
    for picture, hole, ours in zip(x, removed, found, strict=True):
        theirs = peer.NoisyLinearImputer(noise=0)(picture, (~hole).float())
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        places = np.flatnonzero(hole.numpy())
        np.testing.assert_allclose(ours, noisy_linear_imputation(picture.numpy(), places, noise=0), atol=1e-4)


def test_road(model: nn.Module, x: Tensor, maps: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road, "NOISE", 0.0)
    monkeypatch.setattr(peer.torch, "randn_like", torch.zeros_like)
    score, targets = chances(model)
    positive = (maps - maps.amin((1, 2), keepdim=True)).numpy()
    theirs = peer.ROADCombined([20, 40, 60, 80])(x, positive / positive.max(), targets, model)
    assert abs(theirs).max() > 1e-3
    with torch.no_grad():
        np.testing.assert_allclose(road.road(score, x, maps), theirs, atol=1e-5)


def test_average_drop_and_increase_in_confidence(model: nn.Module, x: Tensor, maps: Tensor) -> None:
    score, targets = chances(model)
    with torch.no_grad():
        drop, increase = perturbation.average_drop(score, x, maps)
        drop = drop * score(x)  # pytorch-grad-cam leaves the drop absolute
    np.testing.assert_allclose(drop, DropInConfidence()(x, shares(maps), targets, model), atol=1e-6)
    np.testing.assert_array_equal(increase, IncreaseInConfidence()(x, shares(maps), targets, model))


def test_deletion(x: Tensor, maps: Tensor) -> None:
    """On grey pictures with a mean of 1/2, as Quantus orders each channel's value by itself."""
    model, grey = network(1), x[:, :1] - x[:, :1].mean((2, 3), keepdim=True) + 0.5
    flipping = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // 10,
        perturb_baseline=0.5,
        normalise=False,
        abs=False,
        disable_warnings=True,
        return_aggregate=False,
    )
    score, _ = chances(model)
    curves = flipping(model, grey.numpy(), np.arange(N) % 4, maps[:, None].numpy(), softmax=True, device="cpu")
    with torch.no_grad():
        whole = np.concatenate([score(grey)[:, None].numpy(), np.array(curves)], 1)
        np.testing.assert_allclose(perturbation.deletion(score, grey, maps), np.trapezoid(whole, dx=0.1), atol=1e-5)


def test_pointing_game(model: nn.Module, x: Tensor, maps: Tensor) -> None:
    masks = draw(4, N, SIDE, SIDE) > 0.3
    game = quantus.PointingGame(normalise=False, abs=False, disable_warnings=True, return_aggregate=False)
    theirs = game(
        model, x.numpy(), np.zeros(N, int), maps[:, None].numpy(), s_batch=masks[:, None].numpy(), device="cpu"
    )
    assert 0 < sum(theirs) < N
    assert metrics.pointing_game(maps, masks).tolist() == theirs


def test_spearman(maps: Tensor) -> None:
    one, other = maps.round(decimals=1), draw(5, *maps.shape).round(decimals=1)  # equal cells too
    for i in range(N):
        theirs = correlation_spearman(one[i].flatten().numpy(), other[i].flatten().numpy())
        assert metrics.spearman(one, other)[i].item() == pytest.approx(theirs, abs=1e-6)
