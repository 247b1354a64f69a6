"""Callbacks: order and arguments of the events."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from camkd.data.dataset import Dataset
from camkd.evaluate import SplitPredictions
from camkd.runs.folder import Run
from camkd.train import heatmap_figures
from camkd.train.callbacks import Callback, CallbackList
from camkd.train.heatmap_figures import HeatmapFigures
from camkd.types import Interrupted
from support.interrupt import InterruptAt
from support.training import (
    NonFiniteTerm,
    build_network,
    copy_weights,
    equal_weights,
    fit_network,
    single_term,
    train_config,
)

ONE_EPOCH = train_config(epochs=1)
EVENTS = {
    "on_train_start": ("name", "total_steps", "completed_steps"),
    "on_optimizer_step": ("step",),
    "on_batch_end": ("num_images",),
    "on_epoch_end": ("row", "model"),
    "on_figure": ("epoch", "path"),
    "on_message": ("text",),
    "on_train_end": (),
    "on_run_end": ("metrics",),
}
"""The documented events and their arguments."""


class EventRecorder(Callback):
    """Record every event with its arguments, and call ``react(name)`` after it."""

    def __init__(self, react: Callable[[str], None] | None = None) -> None:
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        for name in EVENTS:
            setattr(self, name, self._record(name, react))

    def _record(self, name: str, react: Callable[[str], None] | None) -> Callable[..., None]:
        def record(*arguments: Any) -> None:
            self.events.append((name, arguments))
            if react is not None:
                react(name)

        return record

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def test_events_are_those_of_the_documentation() -> None:
    methods = {name: method for name, method in vars(Callback).items() if name.startswith("on_")}
    assert methods.keys() == EVENTS.keys()
    for name, arguments in EVENTS.items():
        assert tuple(inspect.signature(methods[name]).parameters) == ("self", *arguments)


@pytest.mark.parametrize(("event", "arguments"), EVENTS.items())
def test_callback_list_passes_every_event_on_in_order(event: str, arguments: tuple[str, ...]) -> None:
    order: list[int] = []
    recorders = [EventRecorder(lambda name: order.append(0)), EventRecorder(lambda name: order.append(1))]
    assert getattr(CallbackList(recorders), event)(*arguments) is None
    assert getattr(Callback(), event)(*arguments) is None
    assert [recorder.events for recorder in recorders] == [[(event, arguments)]] * 2
    assert order == [0, 1]


def test_run_calls_all_events_in_order(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of four batches, of which the second is skipped."""
    monkeypatch.setattr(heatmap_figures, "draw_examples", lambda *arguments: None)
    run = Run(tmp_path / "name")
    recorder = EventRecorder()
    figures = HeatmapFigures(run, easy, "student", None, 1, listener=recorder)
    config = train_config(epochs=1, on_nan="skip")
    objective = single_term(NonFiniteTerm(batches=(2,)))
    fit_network(easy, run.folder, config, objective, callbacks=[figures, recorder])
    batch_end = ("on_batch_end", (24,))
    assert recorder.events[:8] == [
        ("on_train_start", ("name", 4, 0)),
        ("on_optimizer_step", (1,)),
        batch_end,
        ("on_message", ("The loss must be finite, got nan in epoch 1, batch 2. Lower --lr. The batch is skipped.",)),
        batch_end,
        ("on_optimizer_step", (3,)),
        batch_end,
        ("on_optimizer_step", (4,)),
    ]
    assert recorder.events[8:10] == [batch_end, ("on_figure", (1, run.figures_folder / "cams-epoch-001.png"))]
    assert recorder.names[10:] == ["on_epoch_end", "on_train_end"]
    row, model = recorder.events[10][1]
    assert [row] == run.read_history()
    assert isinstance(model, nn.Module)
    assert recorder.events[11] == ("on_train_end", ())


def test_resumed_run_starts_after_its_completed_steps(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, ONE_EPOCH, callbacks=[InterruptAt(3)])
    recorder = EventRecorder()
    fit_network(easy, tmp_path, ONE_EPOCH, resume=True, callbacks=[recorder])
    assert recorder.events[:3] == [
        ("on_train_start", (tmp_path.name, 4, 3)),
        ("on_optimizer_step", (4,)),
        ("on_batch_end", (24,)),
    ]


def test_epoch_end_comes_after_history_and_checkpoint_with_the_averaged_model(easy: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path)

    class EpochIsSaved(Callback):
        epochs = 0

        def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
            self.epochs += 1
            assert run.read_history()[-1] == row
            state, _ = run.checkpoints.load()
            assert state["epoch"] == row["epoch"] == self.epochs
            assert equal_weights(copy_weights(model), state["average"])

    callback = EpochIsSaved()
    fit_network(easy, tmp_path, callbacks=[callback])
    assert callback.epochs == 2


def test_optimizer_step_comes_after_the_update(easy: Dataset, tmp_path: Path) -> None:
    model = build_network()
    weights = [copy_weights(model)]

    class CopyWeights(Callback):
        def on_optimizer_step(self, step: int) -> None:
            weights.append(copy_weights(model))

    fit_network(easy, tmp_path, ONE_EPOCH, model=model, callbacks=[CopyWeights()])
    assert len(weights) == 5
    assert not any(equal_weights(before, after) for before, after in itertools.pairwise(weights))
    assert equal_weights(weights[-1], copy_weights(model))


def raise_at(event: str) -> Callable[[str], None]:
    def react(name: str) -> None:
        if name == event:
            raise RuntimeError(f"failed in {name}")

    return react


@pytest.mark.parametrize("event", ["on_train_start", "on_optimizer_step", "on_batch_end", "on_epoch_end"])
def test_train_end_after_an_error_of_a_callback(easy: Dataset, tmp_path: Path, event: str) -> None:
    recorder = EventRecorder(raise_at(event))
    with pytest.raises(RuntimeError, match=event):
        fit_network(easy, tmp_path, ONE_EPOCH, callbacks=[recorder])
    assert recorder.names[-2:] == [event, "on_train_end"]
    assert recorder.names.count("on_train_end") == 1


def test_train_end_after_a_loss_that_is_not_finite(easy: Dataset, tmp_path: Path) -> None:
    recorder = EventRecorder()
    objective = single_term(NonFiniteTerm(batches=(2,)))
    with pytest.raises(FloatingPointError):
        fit_network(easy, tmp_path, ONE_EPOCH, objective, callbacks=[recorder])
    assert recorder.names == ["on_train_start", "on_optimizer_step", "on_batch_end", "on_train_end"]


@pytest.mark.parametrize(("interrupt", "num_batches"), [({"step": 2}, 2), ({"epoch": 1}, 4)])
def test_train_end_after_an_interruption(
    easy: Dataset, tmp_path: Path, interrupt: dict[str, int], num_batches: int
) -> None:
    recorder = EventRecorder()
    with pytest.raises(Interrupted):
        fit_network(easy, tmp_path, callbacks=[InterruptAt(**interrupt), recorder])
    assert recorder.names.count("on_batch_end") == num_batches
    assert recorder.names[-1] == "on_train_end"
    assert recorder.names.count("on_train_end") == 1
    assert Run(tmp_path).checkpoints


def test_train_end_after_an_error_of_an_earlier_callback() -> None:
    def fail(name: str) -> None:
        raise RuntimeError(f"{name} failed")

    recorders = [EventRecorder(), EventRecorder(fail), EventRecorder()]
    with pytest.raises(RuntimeError, match="on_train_end failed"):
        CallbackList(recorders).on_train_end()
    assert [recorder.names for recorder in recorders] == [["on_train_end"]] * 3


@pytest.mark.parametrize(("every", "epochs"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 2, 4]), (5, [1, 5])])
def test_figures_after_the_first_epoch_and_every_n_epochs(
    easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, epochs: list[int]
) -> None:
    drawn: list[tuple[Path, str, list[str], SplitPredictions | None]] = []
    monkeypatch.setattr(
        heatmap_figures,
        "draw_examples",
        lambda path, data, split, models, teacher: drawn.append((path, split, list(models), teacher)),
    )
    run = Run(tmp_path)
    recorder = EventRecorder()
    teacher = SplitPredictions(torch.zeros(24, 3), torch.zeros(24, 4, 4), torch.zeros(24, dtype=torch.int64), "exact")
    figures = HeatmapFigures(run, easy, "student", teacher, every, listener=recorder)
    for epoch in range(1, 6):
        figures.on_epoch_end({"epoch": epoch}, nn.Identity())
    paths = {epoch: run.figures_folder / f"cams-epoch-{epoch:03d}.png" for epoch in epochs}
    assert recorder.events == [("on_figure", (epoch, path)) for epoch, path in paths.items()]
    assert drawn == [(path, "val", ["student"], teacher) for path in paths.values()]
