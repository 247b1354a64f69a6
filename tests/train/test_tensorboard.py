"""TensorBoard events and terminal lines hold the metrics of a run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from camkd.cli.main import main
from camkd.cli.progress import ProgressReporter
from camkd.cli.streams import StderrConsole
from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run
from camkd.runs.resume import Resume
from camkd.train import tensorboard
from camkd.train.callbacks import Callback
from camkd.types import InputError, Interrupted

pytestmark = pytest.mark.slow

TWO_EPOCHS = TrainConfig(
    epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=1, tensorboard=True
)
NAMES = {
    "train_loss",
    "terms/ce",
    "lr",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_loss",
    "images_per_second",
    "seconds",
}


class CallRecorder(Callback):
    """Record calls by name, and raise `Interrupted` at a step (0: never)."""

    def __init__(self, stop_at: int = 0) -> None:
        self.names: list[str] = []
        self.stop_at = stop_at

    def on_train_start(self, name: str, total_steps: int, completed_steps: int) -> None:
        self.names.append("start")

    def on_batch_end(self, num_images: int) -> None:
        self.names.append("batch")
        if self.names.count("batch") == self.stop_at:
            raise Interrupted("stopped")

    def on_epoch_end(self, row: dict[str, Any], model: Any) -> None:
        self.names.append(f"epoch {row['epoch']}")

    def on_figure(self, epoch: int, path: Path) -> None:
        self.names.append(f"figure {epoch}")
        assert path.is_file()

    def on_train_end(self) -> None:
        self.names.append("end")


def train(folder: Path, data: Dataset, config: TrainConfig = TWO_EPOCHS, **options: Any) -> Run:
    train_run(folder, RunConfig(DataConfig("easy"), config, model="resnet8", role="teacher"), data, **options)
    return Run(folder)


def read_back(folder: Path) -> Any:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: requirements-dev.txt",
    )
    events = accumulators.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_events_hold_scalars_and_figures_of_every_epoch(easy: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: requirements-dev.txt")
    recorder = CallRecorder()
    run = train(tmp_path / "run", easy, callbacks=[recorder])
    events_read = read_back(run.folder)
    assert set(events_read.Tags()["scalars"]) == NAMES
    for name in NAMES:
        values = [row["terms"]["ce"] if name == "terms/ce" else row[name] for row in run.read_history()]
        assert [event.step for event in events_read.Scalars(name)] == [1, 2]
        assert [event.value for event in events_read.Scalars(name)] == pytest.approx(values, rel=1e-6)
    assert [event.step for event in events_read.Images("maps")] == [1, 2]
    logged = Image.open(io.BytesIO(events_read.Images("maps")[1].encoded_image_string))
    figure = Image.open(run.figures_folder / "cams-epoch-002.png")
    assert logged.tobytes() == figure.convert("RGB").tobytes()
    epochs = [*["batch"] * 4, "figure 1", "epoch 1", *["batch"] * 4, "figure 2", "epoch 2"]
    assert recorder.names == ["start", *epochs, "end"]


def test_resumed_run_has_every_epoch_once(easy: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: requirements-dev.txt")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", easy, callbacks=[CallRecorder(stop_at=6)])
    run = train(tmp_path / "run", easy, resume=Resume())
    assert [event.step for event in read_back(run.folder).Scalars("val_accuracy")] == [1, 2]


def test_no_event_files_without_the_option(easy: Dataset, tmp_path: Path) -> None:
    run = train(tmp_path / "run", easy, replace(TWO_EPOCHS, tensorboard=False, epochs=1, figure_every=0))
    assert not (run.folder / "tensorboard").exists()


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'camkd\[tensorboard\]'"):
        tensorboard.check_tensorboard()
    out = tmp_path / "run"
    assert main(["teacher", "--data", "shapes", "--tensorboard", "--out", str(out)]) == 2
    assert "pip install 'camkd[tensorboard]'" in capsys.readouterr().err
    assert not out.exists()


def test_terminal_line_has_the_same_scalars() -> None:
    row = {"epoch": 3, "train_loss": 1.234, "terms": {"ce": 0.987, "cam": 0.247}, "lr": 0.0625, "val_accuracy": 0.913}
    row |= {
        "val_balanced_accuracy": 0.857,
        "val_loss": 0.321,
        "val_teacher_agreement": 0.876,
        "val_cam_cosine": 0.54,
        "images_per_second": 1234.0,
    }
    reporter = ProgressReporter()
    reporter.console = StderrConsole()
    reporter.console.file = io.StringIO()
    reporter.console.width = 400
    reporter.on_epoch_end({**row, "seconds": 2.0}, None)  # type: ignore[arg-type]
    text = reporter.console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        "epoch 3",
        "1.234",
        "ce 0.987",
        "cam 0.247",
        "lr 0.0625",
        "91.3%",
        "85.7%",
        "0.321",
        "87.6%",
        "0.54",
        "1,234",
    ):
        assert words in text, words
