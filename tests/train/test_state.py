"""The training state and its checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from camkd.data.dataset import Dataset
from camkd.runs.folder import Run
from camkd.train.state import TrainState
from camkd.types import InputError, Interrupted
from support.interrupt import InterruptAt, Messages
from support.training import (
    FitResult,
    build_network,
    equal_weights,
    fit_network,
)

CHECKPOINT_KEYS = {
    "format", "model", "average", "terms", "optimizer", "precision", "epoch", "batch", "step", "seconds", "sums",
    "counts", "best_epoch", "rows", "random", "threads", "torch",
}  # fmt: skip
"""The format of checkpoints. Runs of earlier versions have these keys: a key may be added, but not renamed."""


def make_state(seed: int, **values: Any) -> TrainState:
    """Build a state of small modules after one optimizer step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    terms = nn.ModuleList([nn.Linear(2, 2)])
    optimizer = torch.optim.SGD([*model.parameters(), *terms.parameters()], lr=0.1, momentum=0.9)
    model(torch.rand(4, 3)).square().sum().backward()
    optimizer.step()
    return TrainState(model, average, terms, optimizer, **{"precision": "fp32", **values})


def trained_state() -> TrainState:
    """Build a state in which no value is the default."""
    return make_state(
        1,
        precision="bf16",
        epoch=3,
        batch=2,
        step=14,
        seconds=1.5,
        sums={"": torch.tensor(2.5), "ce": torch.tensor(1.5)},
        counts={"": 48, "ce": 24},
        best_epoch=2,
        best_weights={"weight": torch.tensor([1.0, 2.0])},
        rows=[{"epoch": 1, "train_loss": 0.5}],
    )


def content(state: TrainState) -> dict[str, Any]:
    """Return the values of all fields; modules and optimizers as state dicts."""
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}


def assert_equal(value: Any, expected: Any) -> None:
    """Compare nested values with tensors, bit by bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_equal(value[key], expected[key])
    elif isinstance(expected, list):
        assert len(value) == len(expected)
        for item, expected_item in zip(value, expected, strict=True):
            assert_equal(item, expected_item)
    else:
        assert value == expected


@pytest.fixture
def num_threads() -> Iterator[int]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_checkpoint_has_the_keys_of_the_format(tmp_path: Path) -> None:
    trained_state().save(Run(tmp_path))
    state, _ = Run(tmp_path).checkpoints.load()
    assert set(state) == CHECKPOINT_KEYS
    assert state["format"] == 1


@pytest.mark.parametrize(("stored", "is_valid"), [({}, True), ({"format": 1}, True), ({"format": 2}, False)])
def test_format_of_a_checkpoint(tmp_path: Path, stored: dict[str, int], is_valid: bool) -> None:
    """A checkpoint without a format is of format 1; a later format is refused."""
    run = Run(tmp_path)
    trained_state().save(run)
    state, best = run.checkpoints.load()
    del state["format"]
    run.checkpoints.save(state["step"] + 1, {**state, **stored}, None if best is None else (1, best))
    if is_valid:
        make_state(2).load(run)
    else:
        with pytest.raises(InputError, match="must be 1, got 2"):
            make_state(2).load(run)


def test_load_restores_every_field(tmp_path: Path) -> None:
    saved = trained_state()
    saved.save(Run(tmp_path))
    loaded = make_state(2)
    for name, value in content(saved).items():
        assert repr(value) != repr(content(loaded)[name]), f"trained_state must set {name}"
    assert loaded.load(Run(tmp_path)) == []
    assert_equal(content(loaded), content(saved))


def test_load_restores_the_random_state(tmp_path: Path) -> None:
    state = trained_state()
    state.save(Run(tmp_path))
    expected = torch.rand(3)
    torch.manual_seed(99)
    make_state(2).load(Run(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_state_without_best_weights(tmp_path: Path) -> None:
    """A run has no best weights before the end of its first epoch."""
    make_state(1, batch=2, step=2).save(Run(tmp_path))
    loaded = make_state(2)
    loaded.load(Run(tmp_path))
    assert (loaded.epoch, loaded.batch, loaded.best_weights) == (0, 2, {})


@pytest.mark.parametrize("key", ["model", "average", "terms", "optimizer"])
def test_checkpoint_of_another_run_is_refused(tmp_path: Path, key: str) -> None:
    other = trained_state()
    setattr(other, key, nn.Linear(7, 7) if key != "optimizer" else torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    other.save(Run(tmp_path))
    with pytest.raises(InputError) as caught:
        make_state(2).load(Run(tmp_path))
    assert str(caught.value) == (
        f"The checkpoints in {tmp_path} must belong to the run in its config.yaml, got those of another run. "
        "Restore the right ones, or delete them to start again."
    )


def test_checkpoints_of_another_network_are_kept(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(3)])
    before = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(InputError, match=tmp_path.name):
        fit_network(easy, tmp_path, model=build_network(name="cam-net"), resume=True)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before


def test_missing_checkpoint_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=tmp_path.name):
        make_state(2).load(Run(tmp_path))


def test_run_resumes_with_its_number_of_threads(
    easy: Dataset, tmp_path: Path, reference: FitResult, num_threads: int
) -> None:
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(3)])
    messages = Messages()
    torch.set_num_threads(num_threads + 1)
    weights, _ = fit_network(easy, tmp_path, resume=True, callbacks=[messages])
    assert torch.get_num_threads() == num_threads
    assert messages.texts == [f"resuming with {num_threads} threads, the number that the run was started with"]
    assert equal_weights(weights, reference.weights)


def test_other_version_of_torch_gives_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_state().save(Run(tmp_path))
    version = str(torch.__version__)
    monkeypatch.setattr(torch, "__version__", "99.0")
    (message,) = make_state(2).load(Run(tmp_path))
    assert version in message
    assert "99.0" in message


def test_best_weights_are_those_of_their_epoch(easy: Dataset, tmp_path: Path, reference: FitResult) -> None:
    weights, _ = fit_network(easy, tmp_path)
    state, best_weights = Run(tmp_path).checkpoints.load()
    assert best_weights is not None
    assert equal_weights(best_weights, weights)
    best = max(row["val_accuracy"] for row in reference.rows)
    assert best == reference.rows[state["best_epoch"] - 1]["val_accuracy"]
