"""Temperature, confidence threshold and division of the head against independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from camkd.cams import bias, predict
from camkd.evaluate.calibration import choose_threshold, divide_head, fit_temperature, measure_confidence
from camkd.models import build
from camkd.types import InputError

seeds = st.integers(0, 10_000)


def noisy_logits(seed: int, count: int, classes: int, scale: float) -> tuple[Tensor, Tensor]:
    """Draw logits, and labels from their softmax at temperature ``scale``, which is then the right temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * scale * torch.randn(count, classes, generator=generator)
    labels = (logits / scale).softmax(1).multinomial(1, generator=generator)[:, 0]
    return logits, labels


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 5), st.floats(0.3, 4))
def test_temperature_is_the_minimum_of_the_likelihood(seed: int, classes: int, scale: float) -> None:
    logits, labels = noisy_logits(seed, 200, classes, scale)
    z = logits.double().numpy()

    def loss(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(z)), labels]))

    expected = float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x))
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=2e-3)


def test_right_temperature_is_found_and_then_is_one() -> None:
    logits, labels = noisy_logits(0, 20_000, 5, 2.5)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    assert fit_temperature(logits / temperature, labels) == 1.0
    assert measure_confidence(logits / temperature, labels).ece < 0.01 < measure_confidence(logits, labels).ece


def test_logits_of_any_mean_have_the_same_temperature() -> None:
    logits, labels = noisy_logits(1, 300, 3, 2.0)
    assert fit_temperature(logits + 1000, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


@pytest.mark.parametrize(
    ("labels", "reason"), [([0, 1, 2], "3 of 3 validation images are predicted correctly"), ([1, 2, 0], "guessing")]
)
def test_predictions_without_a_temperature_are_refused(labels: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        fit_temperature(5 * torch.eye(3), torch.tensor(labels))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 30), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_threshold_is_the_lowest_with_the_precision(seed: int, count: int, precision: float) -> None:
    """Against all thresholds; the rounded logits have equal confidences."""
    logits, labels = noisy_logits(seed, count, 3, 1.0)
    logits = logits.round()
    confidence, predicted = logits.softmax(1).max(1)
    suitable = [
        float(threshold)
        for threshold in confidence.unique()
        if (predicted == labels)[confidence >= threshold].double().mean() >= precision
    ]
    threshold = choose_threshold(logits, labels, precision)
    if not suitable:
        assert threshold is None
    elif min(suitable) == float(confidence.min()):
        assert threshold == 0.0
    else:
        assert threshold == min(suitable)
        measured = measure_confidence(logits, labels, threshold)
        assert measured.answered_accuracy is not None
        assert measured.answered_accuracy >= precision
        assert measured.coverage == pytest.approx(float((confidence >= min(suitable)).double().mean()))


def test_answers_without_an_image_have_no_accuracy() -> None:
    measured = measure_confidence(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), 0.9)
    assert (measured.coverage, measured.answered_accuracy, measured.low) == (0.0, None, None)


@pytest.mark.parametrize("name", ["cam-net", "resnet8", "resnet50-mlp"])
def test_divided_head_divides_logits_and_maps(name: str) -> None:
    model = build(name, 5, 16).eval()
    nn.init.normal_(model.get_parameter(next(k for k, v in model.named_parameters() if v.shape == (5,))))
    x = torch.rand(3, 3, 16, 16)
    before = predict(model, x)
    previous = divide_head(model, 16, 2.5)
    after = predict(model, x)
    assert before.cams is not None
    assert after.cams is not None
    torch.testing.assert_close(after.logits * 2.5, before.logits)
    torch.testing.assert_close(after.cams * 2.5, before.cams, rtol=1e-3, atol=1e-5)
    head_bias = bias(model, x)
    if head_bias is not None:
        torch.testing.assert_close(after.cams.mean((2, 3)) + head_bias, after.logits, rtol=1e-4, atol=1e-5)
    model.load_state_dict({**model.state_dict(), **previous})
    assert torch.equal(predict(model, x).logits, before.logits)


class TiedHead(nn.Module):
    """The weights of the last layer are used before it too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(self.conv(x).mean((2, 3)), self.last.weight)
        return self.last(x)


class NormalizedOutput(TiedHead):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(self.last(self.conv(x).relu().mean((2, 3))), (3,))


@pytest.mark.parametrize("make", [TiedHead, NormalizedOutput])
def test_heads_that_cannot_be_divided_are_refused(make: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=rf"got {make.__name__}.*Divide its logits by a temperature yourself"):
        divide_head(make(), 16, 2.0)
