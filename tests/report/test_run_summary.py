"""Summaries of run folders: numbers and confusion matrix, missing or invalid values."""

from __future__ import annotations

from typing import Any

import pytest

from camkd.report.run_summary import RunSummary


@pytest.mark.parametrize("count", [0, -3, "many"])
def test_invalid_number_of_test_images_is_none(count: Any) -> None:
    assert RunSummary("s", metrics={"test_images": count}).num_test_images is None


def test_confusion_cells_are_the_nonzero_counts() -> None:
    summary = RunSummary("s", metrics={"confusion": [[8, 0, 2], [0, 0, 1], [0, 0, 0]]})
    assert summary.confusion_cells() == [(0, 0, 8), (0, 2, 2), (1, 2, 1)]
    assert RunSummary("s").confusion_cells() == []
