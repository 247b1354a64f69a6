"""Watching a run: what TensorBoard reads back is what the run wrote, and the terminal says the same."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from camkd.cli.main import main
from camkd.cli.progress import ProgressReporter
from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.experiments.pipeline import train_run
from camkd.runs.folder import Run
from camkd.train import tensorboard as board
from camkd.train.callbacks import Callback
from camkd.train.loop import Interrupted
from camkd.types import InputError

TWO = TrainConfig(
    epochs=2, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=1, tensorboard=True
)
NAMES = {"train_loss", "terms/ce", "lr", "val_accuracy", "val_loss", "images_per_second", "seconds"}


class Everything(Callback):
    """What a watch behind the board is told, by name, and Ctrl-C at one step if wanted."""

    def __init__(self, stop_at: int = 0) -> None:
        self.told: list[str] = []
        self.stop_at = stop_at

    def start(self, name: str, steps: int, done: int) -> None:
        self.told.append("start")

    def step(self, pictures: int) -> None:
        self.told.append("step")
        if self.told.count("step") == self.stop_at:
            raise Interrupted("stopped")

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        self.told.append(f"epoch {row['epoch']}")

    def drawn(self, epoch: int, path: Path) -> None:
        self.told.append(f"drawn {epoch}")
        assert path.is_file()


def trained(folder: Path, data: Dataset, config: TrainConfig = TWO, **more: Any) -> Run:
    train_run(folder, data, "resnet8", "teacher", (DataConfig("easy"), config), DistillConfig("plain"), **more)
    return Run(folder)


def read_back(folder: Path) -> Any:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: requirements-dev.txt",
    )
    found = accumulators.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_tensorboard_reads_the_scalars_and_maps_of_every_epoch(easy: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: requirements-dev.txt")
    seen = Everything()
    run = trained(tmp_path / "run", easy, watch=seen)
    found = read_back(run.folder)
    assert set(found.Tags()["scalars"]) == NAMES
    for name in NAMES:
        values = [row["terms"]["ce"] if name == "terms/ce" else row[name] for row in run.read_history()]
        assert [event.step for event in found.Scalars(name)] == [1, 2]
        assert [event.value for event in found.Scalars(name)] == pytest.approx(values, rel=1e-6)
    assert [event.step for event in found.Images("maps")] == [1, 2]
    shown = Image.open(io.BytesIO(found.Images("maps")[1].encoded_image_string))
    drawn = Image.open(run.figures / "cams-epoch-002.png")
    assert shown.tobytes() == drawn.convert("RGB").tobytes()
    assert seen.told == ["start", *["step"] * 4, "drawn 1", "epoch 1", *["step"] * 4, "drawn 2", "epoch 2"]


def test_a_run_that_goes_on_has_every_epoch_once(easy: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: requirements-dev.txt")
    with pytest.raises(Interrupted):
        trained(tmp_path / "run", easy, watch=Everything(stop_at=6))
    run = trained(tmp_path / "run", easy, resume=True)
    assert [event.step for event in read_back(run.folder).Scalars("val_accuracy")] == [1, 2]


def test_there_are_no_event_files_unless_wanted(easy: Dataset, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", easy, replace(TWO, tensorboard=False, epochs=1, figure_every=0))
    assert not (run.folder / "tensorboard").exists()


def test_without_the_extra_a_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'camkd\[tensorboard\]'"):
        board.check_tensorboard()
    out = tmp_path / "run"
    assert main(["teacher", "--data", "shapes", "--tensorboard", "--out", str(out)]) == 2
    assert "--tensorboard needs an extra" in capsys.readouterr().err
    assert not out.exists()


def test_the_terminal_shows_the_same_scalars() -> None:
    row = {"epoch": 3, "train_loss": 1.234, "terms": {"ce": 0.987, "cam": 0.247}, "lr": 0.0625, "val_accuracy": 0.913}
    row |= {"val_loss": 0.321, "val_teacher_agreement": 0.876, "val_cam_cosine": 0.54, "images_per_second": 1234.0}
    screen = ProgressReporter()
    screen.console = Console(file=io.StringIO(), width=400)
    screen.epoch({**row, "seconds": 2.0}, None)  # type: ignore[arg-type]
    said = screen.console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("epoch 3", "1.234", "ce 0.987", "cam 0.247", "lr 0.0625", "91.3%", "0.321", "87.6%", "0.54", "1,234"):
        assert words in said, words
