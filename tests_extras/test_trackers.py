"""Runs in trackio, MLflow and Weights & Biases, on this machine: what the library reads back, and resumed runs."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset, Split
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run
from camkd.runs.resume import Resume
from camkd.train.callbacks import Callback, scalars
from camkd.train.trackers import ID_FILE
from camkd.types import Interrupted

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=1)


class StopAfter(Callback):
    """Interrupt the training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, row: dict[str, Any], model: Any) -> None:
        if row["epoch"] == self.epoch:
            raise Interrupted("stopped")


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Images of 16 pixels in three colors."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % 3
        images = rng.integers(0, 60, (count, 16, 16, 3))
        images[np.arange(count), :, :, labels] += 90
        return Split(images.astype(np.uint8), labels)

    return Dataset("easy", ("berry", "leaf", "sky"), split(48), split(12), split(12), "f" * 64, "f" * 64, ())


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of trackio, which reads the variable when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        yield folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, in which the other libraries write their files."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def train(folder: Path, data: Dataset, track: Any, *callbacks: Callback) -> Run:
    config = RunConfig(DataConfig("easy"), replace(TRAIN, track=track), model="resnet8", role="teacher")
    train_run(folder, config, data, callbacks=callbacks, resume=Resume())
    return Run(folder)


def train_in_two_parts(folder: Path, data: Dataset, track: str) -> Run:
    with pytest.raises(Interrupted):
        train(folder, data, track, StopAfter(1))
    return train(folder, data, track)


def tracked_id(run: Run, track: str) -> str:
    return str(json.loads((run.folder / ID_FILE).read_text())[track])


def test_mlflow(data: Dataset, workspace: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    with pytest.raises(Interrupted):
        train(workspace / "run", data, "mlflow", StopAfter(1))
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    run_id = tracked_id(Run(workspace / "run"), "mlflow")
    assert client.get_run(run_id).info.status == "KILLED"
    run = train(workspace / "run", data, "mlflow")
    assert tracked_id(run, "mlflow") == run_id
    tracked = client.get_run(run_id)
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == f"{workspace.parent.name}/{workspace.name}/run"
    assert client.get_experiment(tracked.info.experiment_id).name == "camkd"
    assert tracked.data.params["model"] == "resnet8"
    for name in dict(scalars(run.read_history()[0])):
        history = client.get_metric_history(run_id, name)
        assert [(metric.step, metric.value) for metric in history] == [
            (row["epoch"], dict(scalars(row))[name]) for row in run.read_history()
        ]
    assert tracked.data.metrics["final/accuracy"] == run.read_metrics()["accuracy"]
    figures = [file.path for file in client.list_artifacts(run_id, "figures")]
    assert figures == ["figures/cams-epoch-001.png", "figures/cams-epoch-002.png"]
    assert len(client.search_runs([tracked.info.experiment_id])) == 1


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a file of an offline run: the log format of LevelDB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    position = 7
    parts = b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def wandb_values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_wandb_offline(data: Dataset, workspace: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run = train_in_two_parts(workspace / "run", data, "wandb")
    wandb.teardown()  # its process has then written the files
    run_id = tracked_id(run, "wandb")
    files = sorted((workspace / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2  # one folder per part, of one run
    rows: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    exit_codes = []
    for record in chain.from_iterable(wandb_records(file) for file in files):
        if record.HasField("history"):
            values = wandb_values(record.history.item)
            rows.setdefault(values["_step"], {}).update(values)
        if record.HasField("summary"):
            summary |= wandb_values(record.summary.update)
        if record.HasField("run"):
            assert (record.run.run_id, record.run.project) == (run_id, "camkd")
            assert wandb_values(record.run.config.update)["model"] == "resnet8"
        if record.HasField("exit"):
            exit_codes.append(record.exit.exit_code)
    assert exit_codes == [1, 0]
    for row in run.read_history():
        logged = rows[row["epoch"]]
        assert {name: logged[name] for name in dict(scalars(row))} == dict(scalars(row))
        assert logged["maps/_type"] == "image-file"
    assert summary["final/accuracy"] == run.read_metrics()["accuracy"]


def test_trackio(data: Dataset, workspace: Path, trackio_folder: Path) -> None:
    pytest.importorskip("trackio")
    run = train_in_two_parts(workspace / "run", data, "trackio")
    name = tracked_id(run, "trackio")
    assert name.startswith(f"{workspace.parent.name}/{workspace.name}/run-")
    with closing(sqlite3.connect(trackio_folder / "camkd.db")) as database:
        query = "select step, metrics, run_id from metrics where run_name = ? order by id"
        logged = database.execute(query, (name,)).fetchall()
    assert len({run_id for _, _, run_id in logged}) == 1
    for row in run.read_history():
        values = {k: v for step, text, _ in logged if step == row["epoch"] for k, v in json.loads(text).items()}
        assert {key: values[key] for key in dict(scalars(row))} == dict(scalars(row))
        assert values["maps"]["_type"] == "trackio.image"
    assert values["final/accuracy"] == run.read_metrics()["accuracy"]


@pytest.mark.parametrize("track", ["mlflow", "wandb", "trackio"])
def test_tracked_weights_are_those_of_a_run_without_a_tracker(track: str, data: Dataset, workspace: Path) -> None:
    pytest.importorskip(track)
    plain = train(workspace / "plain", data, None)
    tracked = train(workspace / "tracked", data, track)
    assert (tracked.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()
    losses = [[row["train_loss"] for row in run.read_history()] for run in (plain, tracked)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("track", ["mlflow", "wandb", "trackio"])
def test_command_prints_only_json_on_stdout(track: str, workspace: Path) -> None:
    pytest.importorskip(track)
    options = ["--limit", "30", "--epochs", "1", "--figure-every", "0", "--precision", "fp32", "--out", "run", "--json"]
    command = ["-m", "camkd", "teacher", "--data", "shapes", "--model", "resnet8", "--track", track, *options]
    process = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["out"] == "run"  # also what the library prints at the exit
    assert f"tracked by {track}: " in process.stderr
