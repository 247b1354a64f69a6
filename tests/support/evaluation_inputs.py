"""Maps, images and class scores for tests of metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.evaluate.perturbation import ScoreFunction


def random_maps(seed: int, *shape: int) -> Tensor:
    """Draw normal values in fp32 from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth_images(seed: int, n: int, h: int, w: int) -> Tensor:
    """Draw smooth images ``(n, 3, h, w)`` in 0..1."""
    return nn.functional.avg_pool2d(random_maps(seed, n, 3, h, w), 3, 1, 1).sigmoid()


def corner_red(x: Tensor) -> Tensor:
    """Score: the mean red of the upper left quarter."""
    return x[:, 0, : x.shape[2] // 2, : x.shape[3] // 2].mean((1, 2))


def corner_blue(x: Tensor) -> Tensor:
    """Score: the mean blue of the upper left quarter."""
    return corner_red(x.flip(1))


def sensitive_network(channels: int = 3, classes: int = 3, side: int = 20) -> nn.Sequential:
    """Build a small network with large weights, so that its probabilities depend on the image."""
    torch.manual_seed(0)
    features = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)).eval()
    with torch.no_grad():
        model[6].weight *= 30
        model[6].bias -= model(torch.full((1, channels, side, side), 0.5))[0]  # equal logits for a gray image
    return model


def explain_predicted(model: nn.Module, x: Tensor) -> tuple[ScoreFunction, Tensor, Tensor]:
    """Return the score of the predicted classes, their maps ``(N, h, w)`` and the classes ``(N,)``."""
    with torch.no_grad():
        logits, cams, *_ = predict(model, x)
    assert cams is not None
    class_ids = logits.argmax(1)
    rows = torch.arange(len(x))
    return lambda x: model(x).softmax(1)[rows, class_ids], cams[rows, class_ids], class_ids
