"""The result table: keys and definitions of its rows."""

from __future__ import annotations

from camkd.report.metric_table import METRICS


def test_metric_keys_are_unique_and_notes_are_sentences() -> None:
    assert len({spec.key for spec in METRICS}) == len(METRICS)
    assert all(spec.note.endswith(".") for spec in METRICS)
