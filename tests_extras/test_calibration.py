"""Expected calibration error and temperature against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from camkd.evaluate import metrics
from camkd.evaluate.calibration import fit_temperature


@pytest.mark.parametrize("bins", [10, 15])
@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_torchmetrics_before_and_after_calibration(seed: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true_logits = 2 * torch.randn(2000, 7, generator=generator)
    labels = true_logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    logits = 2.5 * true_logits
    errors = []
    for temperature in (1.0, fit_temperature(logits, labels)):
        error = metrics.ece(logits / temperature, labels, bins)
        expected = multiclass_calibration_error((logits / temperature).softmax(1), labels, 7, n_bins=bins, norm="l1")
        assert error == pytest.approx(float(expected), abs=1e-5)
        errors.append(error)
    assert errors[1] < errors[0] / 5
