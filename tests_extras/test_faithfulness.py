"""Metrics of maps against Quantus and pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import quantus
import torch
from pytorch_grad_cam.metrics import road as grad_cam_road
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from quantus.functions.perturb_func import noisy_linear_imputation
from quantus.functions.similarity_func import correlation_spearman
from torch import Tensor, nn

from camkd.cams import resize
from camkd.evaluate import metrics, perturbation, road

N = 8
SIDE = 20
CLASSES = 4

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept")  # raised in pytorch-grad-cam

Targets = list[Callable[[Tensor], Tensor]]


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sensitive_network(channels: int) -> nn.Module:
    """Build a small network with large weights, so that its probabilities depend on the image."""
    torch.manual_seed(0)
    features = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).eval()
    with torch.no_grad():
        model[6].weight *= 30
        model[6].bias -= model(torch.full((1, channels, SIDE, SIDE), 0.5))[0]  # equal logits for a gray image
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return sensitive_network(3)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return nn.functional.avg_pool2d(random_tensor(0, N, 3, SIDE, SIDE), 3, 1, 1).mul(3).sigmoid()


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """One value per pixel, without ties."""
    return resize(random_tensor(1, N, 5, 5), (SIDE, SIDE)) + 0.05 * random_tensor(2, N, SIDE, SIDE)


def class_probabilities(model: nn.Module) -> tuple[perturbation.ScoreFunction, Targets]:
    """Return the probability of classes 0, 1, 2, 3, 0, ... as a score and as targets for pytorch-grad-cam."""
    class_ids = torch.arange(N) % CLASSES
    targets: Targets = [lambda logits, k=k: logits.softmax(-1)[k] for k in class_ids]
    return lambda x: model(x).softmax(1)[torch.arange(N), class_ids], targets


def scaled_positive_part(maps: Tensor) -> np.ndarray:
    """Scale the positive part of each map to 0..1."""
    positive = maps.relu().flatten(1)
    low = positive.amin(1, keepdim=True)
    return ((positive - low) / positive.amax(1, keepdim=True)).view_as(maps).numpy()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_imputation(x: Tensor, maps: Tensor, fraction: float) -> None:
    removed = perturbation.pixel_ranks(maps, x) < fraction * SIDE * SIDE
    for image, mask, imputed in zip(x, removed, road.impute(x, removed), strict=True):
        grad_cam_imputed = grad_cam_road.NoisyLinearImputer(noise=0)(image, (~mask).float())
        torch.testing.assert_close(imputed, grad_cam_imputed, atol=1e-4, rtol=0)
        pixels = np.flatnonzero(mask.numpy())
        quantus_imputed = noisy_linear_imputation(image.numpy(), pixels, noise=0)
        np.testing.assert_allclose(imputed, quantus_imputed, atol=1e-4)


def test_road(model: nn.Module, x: Tensor, maps: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road, "NOISE", 0.0)
    monkeypatch.setattr(grad_cam_road.torch, "randn_like", torch.zeros_like)
    score, targets = class_probabilities(model)
    positive = (maps - maps.amin((1, 2), keepdim=True)).numpy()
    expected = grad_cam_road.ROADCombined([20, 40, 60, 80])(x, positive / positive.max(), targets, model)
    assert abs(expected).max() > 1e-3
    with torch.no_grad():
        np.testing.assert_allclose(road.road(score, x, maps), expected, atol=1e-5)


def test_average_drop_and_increase_in_confidence(model: nn.Module, x: Tensor, maps: Tensor) -> None:
    score, targets = class_probabilities(model)
    with torch.no_grad():
        drop, increase = perturbation.average_drop(score, x, maps)
        absolute_drop = drop * score(x)  # pytorch-grad-cam does not divide the drop by the probability
    masks = scaled_positive_part(maps)
    np.testing.assert_allclose(absolute_drop, DropInConfidence()(x, masks, targets, model), atol=1e-6)
    np.testing.assert_array_equal(increase, IncreaseInConfidence()(x, masks, targets, model))


def test_deletion(x: Tensor, maps: Tensor) -> None:
    """Uses gray images with a mean of 1/2, because Quantus orders the values of each channel separately."""
    model = sensitive_network(1)
    gray = x[:, :1] - x[:, :1].mean((2, 3), keepdim=True) + 0.5
    pixel_flipping = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // 10,
        perturb_baseline=0.5,
        normalise=False,
        abs=False,
        disable_warnings=True,
        return_aggregate=False,
    )
    score, _ = class_probabilities(model)
    labels = np.arange(N) % CLASSES
    curves = pixel_flipping(model, gray.numpy(), labels, maps[:, None].numpy(), softmax=True, device="cpu")
    with torch.no_grad():
        full_curves = np.concatenate([score(gray)[:, None].numpy(), np.array(curves)], 1)
        expected = np.trapezoid(full_curves, dx=0.1)
        np.testing.assert_allclose(perturbation.deletion(score, gray, maps), expected, atol=1e-5)


def test_pointing_game(model: nn.Module, x: Tensor, maps: Tensor) -> None:
    masks = random_tensor(4, N, SIDE, SIDE) > 0.3
    game = quantus.PointingGame(normalise=False, abs=False, disable_warnings=True, return_aggregate=False)
    expected = game(
        model, x.numpy(), np.zeros(N, int), maps[:, None].numpy(), s_batch=masks[:, None].numpy(), device="cpu"
    )
    assert 0 < sum(expected) < N
    assert metrics.pointing_game(maps, masks).tolist() == expected


def test_spearman(maps: Tensor) -> None:
    a = maps.round(decimals=1)  # rounding creates ties
    b = random_tensor(5, *maps.shape).round(decimals=1)
    for i in range(N):
        expected = correlation_spearman(a[i].flatten().numpy(), b[i].flatten().numpy())
        assert metrics.spearman(a, b)[i].item() == pytest.approx(expected, abs=1e-6)
