"""Trackers get settings, metrics, figures and the end of a run. The libraries are tested in tests_extras."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run
from camkd.runs.resume import Resume
from camkd.train import trackers
from camkd.train.callbacks import Callback, scalars
from camkd.train.trackers import ID_FILE, TRACKERS, Tracker, check_tracker
from camkd.types import InputError, Interrupted
from support.cli import camkd
from support.interrupt import InterruptAt

TRAIN = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=1)
EVENTS: list[tuple[str, Any]] = []


class RecordingTracker(Tracker):
    """A tracker that records the calls; ``fails`` names a method that raises an error."""

    library = "wandb"
    fails = ""

    def _record(self, name: str, value: Any) -> None:
        if name == self.fails:
            raise ConnectionError(f"no {name}.\nmore text")
        EVENTS.append((name, value))

    def open(self, name: str, run_id: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        self._record("open", (name, run_id, config))
        return run_id or "new", "https://tracker/new"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._record("log", (values, epoch))

    def log_figure(self, path: Path, epoch: int) -> None:
        self._record("figure", (path.name, epoch))

    def log_final(self, values: Mapping[str, float], epoch: int) -> None:
        self._record("final", (values, epoch))

    def close(self, finished: bool) -> None:
        self._record("close", finished)


class Messages(Callback):
    """Collect messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    monkeypatch.setitem(TRACKERS, "wandb", RecordingTracker)
    EVENTS.clear()
    return EVENTS


def train(folder: Path, data: Dataset, *callbacks: Callback, track: Any = "wandb", **options: Any) -> Run:
    config = RunConfig(DataConfig("easy"), replace(TRAIN, track=track), model="resnet8", role="teacher")
    train_run(folder, config, data, callbacks=callbacks, **options)
    return Run(folder)


@pytest.mark.slow
def test_tracker_gets_settings_epochs_figures_and_final_metrics(easy: Dataset, tmp_path: Path) -> None:
    messages = Messages()
    run = train(tmp_path / "mine" / "teacher", easy, messages)
    names = [name for name, _ in EVENTS]
    assert names == ["open", "figure", "log", "figure", "log", "final", "close"]
    name, run_id, config = EVENTS[0][1]
    assert name == f"{tmp_path.name}/mine/teacher"
    assert run_id is None
    assert (config["model"], config["role"], config["lr"]) == ("resnet8", "teacher", 0.4)
    for (_, (values, epoch)), row in zip(
        [event for event in EVENTS if event[0] == "log"], run.read_history(), strict=True
    ):
        assert epoch == row["epoch"]
        assert values == dict(scalars(row))
        assert values["terms/ce"] == row["terms"]["ce"]
    final, epoch = EVENTS[-2][1]
    assert epoch == 2
    assert final["final/accuracy"] == run.read_metrics()["accuracy"]
    assert not any("per_class" in key for key in final)
    assert EVENTS[-1] == ("close", True)
    assert "tracked by wandb: https://tracker/new" in messages.lines
    assert json.loads((run.folder / ID_FILE).read_text()) == {"wandb": "new"}


@pytest.mark.slow
def test_resumed_run_continues_the_tracked_run(easy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", easy, InterruptAt(epoch=1))
    assert EVENTS[-1] == ("close", False)
    (tmp_path / "run" / ID_FILE).write_text(json.dumps({"mlflow": "other", "wandb": "earlier"}))
    EVENTS.clear()
    train(tmp_path / "run", easy, resume=Resume())
    assert EVENTS[0][1][1] == "earlier"
    assert [value[1] for name, value in EVENTS if name == "log"] == [2]
    assert EVENTS[-1] == ("close", True)
    assert json.loads((tmp_path / "run" / ID_FILE).read_text()) == {"mlflow": "other", "wandb": "earlier"}
    EVENTS.clear()
    train(tmp_path / "run", easy, resume=Resume())  # a finished run
    assert EVENTS == []


@pytest.mark.slow
def test_tracker_leaves_the_weights_as_they_are(easy: Dataset, tmp_path: Path) -> None:
    tracked = train(tmp_path / "tracked", easy)
    plain = train(tmp_path / "plain", easy, track=None)
    assert not (plain.folder / ID_FILE).exists()
    assert (tracked.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["log", "figure", "final", "close"])
def test_training_continues_after_an_error_of_the_library(
    method: str, easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingTracker, "fails", method)
    messages = Messages()
    run = train(tmp_path / "run", easy, messages)
    assert run.finished
    assert messages.lines.count(f"tracking by wandb ends, the training continues: no {method}") == 1
    assert "close" not in [name for name, _ in EVENTS]


@pytest.mark.slow
def test_error_at_the_start_stops_the_command(easy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordingTracker, "fails", "open")
    with pytest.raises(InputError, match=r"--track wandb must start a tracked run, got: no open. Check the settings"):
        train(tmp_path / "run", easy)


@pytest.mark.parametrize("name", sorted(TRACKERS))
@pytest.mark.parametrize("spec", [None, ModuleSpec("folder", None)])  # not installed; a folder of that name
def test_missing_library_is_named(
    name: str, spec: ModuleSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=rf"--track {name} .* Run pip install 'camkd\[{name}\]'"):
        check_tracker(name)
    out = tmp_path / "run"
    output = camkd("teacher", "--data", "shapes", "--track", name, "--out", str(out))
    assert f"pip install 'camkd[{name}]'" in output.error
    assert not out.exists()


@pytest.mark.parametrize("command", ["teacher", "train", "distill", "compare"])
def test_unknown_tracker(command: str) -> None:
    output = camkd(command, "--track", "paper")
    assert "--track must be one of trackio, mlflow, wandb, got 'paper'" in output.error


def test_scalars_are_finite_numbers() -> None:
    row = {"epoch": 1, "a": 1, "b": float("nan"), "c": "text", "d": None, "e": True, "f": [1], "g": {"h": {"i": 2.5}}}
    assert dict(scalars(row)) == {"a": 1.0, "g/h/i": 2.5}
