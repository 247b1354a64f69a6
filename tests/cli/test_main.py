"""The command line: what it accepts and refuses, its exit status, and that stdout is for machines."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from camkd.cli import flags
from camkd.cli import main as cli
from camkd.cli import progress as console
from camkd.cli.main import main
from camkd.config import DataConfig, TrainConfig
from camkd.data import sources
from camkd.data.dataset import Dataset
from camkd.distill.cache import Manifest, RecordFormat, Store, store_folder
from camkd.distill.cache import precompute as filling
from camkd.evaluate import read_per_image
from camkd.experiments import pipeline
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run
from camkd.runs.load_model import load
from camkd.types import InputError, Prediction

ROOT = Path(__file__).parents[2]
Captured = pytest.CaptureFixture[str]
QUICK = [
    "--epochs",
    "1",
    "--batch-size",
    "24",
    "--optimizer",
    "sgd",
    "--lr",
    "0.4",
    "--precision",
    "fp32",
    "--figure-every",
    "0",
]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take longer than the training here."""
    monkeypatch.setattr(pipeline, "_draw", lambda *arguments: None)


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture may be opened."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail("the pictures were opened")

    monkeypatch.setattr(sources, "_open", refuse)


def only_json(captured: Any) -> dict[str, Any]:
    """The one object on stdout, which has to be all there is."""
    assert captured.out.count("\n") == 1
    found = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    return found


def sentence(captured: Any) -> str:
    """The one line on stderr, which has to be all there is."""
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("camkd: ")
    assert "Traceback" not in captured.err
    return captured.err


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C at one training step."""
    done = 0

    def press(screen: console.ProgressReporter, pictures: int) -> None:
        nonlocal done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console.ProgressReporter, "step", press)


# --- help


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    code = f"""
import sys
import camkd.cli.main
try:
    camkd.cli.main.main({arguments})
except SystemExit as done:
    assert not done.code
heavy = {{"torch", "matplotlib", "scipy", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: camkd")
    assert done.stderr == ""


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "camkd", "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in cli.COMMANDS.items():
        assert name in done.stdout
        assert command.summary.split()[0] in done.stdout


def test_no_arguments_is_a_question(capsys: Captured) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: camkd")


@pytest.mark.parametrize("command", ["train", "teacher", "distill"])
def test_every_setting_is_a_flag_with_help(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert not done.value.code
    page = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    for config in (DataConfig, TrainConfig):
        helps = flags._helps(config)
        for field in fields(config):
            flag = "--" + field.name.replace("_", "-")
            assert len(helps[field.name]) > 10
            assert flag in page
            assert re.sub(r"\W", "", helps[field.name]) in re.sub(r"\W", "", page)


# --- what is refused, before any work


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--augment", "wild", "augment must be one of none, light, strong, got 'wild'"),
        ("--device", "quantum", "got 'quantum'"),
        ("--precision", "fp8", "--precision: Expected one of ['auto', 'fp32', 'bf16']. Got value: fp8"),
        ("--bad-images", "perhaps", "--bad-images: Expected one of ['fail', 'skip']. Got value: perhaps"),
        ("--epochs", "many", "--epochs: Expected an int. Got value: many"),
        ("--epochs", "1.5", "--epochs: Expected an int. Got value: 1.5"),
        ("--limit", "few", "--limit: Expected an int. Got value: few"),
        ("--size", "large", "--size: Expected an int. Got value: large"),
        ("--lr", "fast", "--lr: Expected a float. Got value: fast"),
        ("--lr", ".nan", "lr is nan, but has to be more than 0"),
        ("--epochs", "0", "epochs is 0, but has to be 1 or more"),
        ("--batch-size", "-8", "batch_size is -8, but has to be 1 or more"),
        ("--warmup-fraction", "7", "warmup_fraction is 7.0, but has to be between 0 and 1"),
        ("--ema-decay", "-0.5", "ema_decay is -0.5, but has to be between 0 and 1"),
        ("--grad-clip", "0", "grad_clip is 0.0, but has to be more than 0"),
        ("--seed", "-3", "seed is -3, but has to be between 0 and"),
        ("--figure-every", "-1", "figure_every is -1, but has to be 0 or more"),
    ],
)
def test_wrong_value_is_named(flag: str, value: str, said: str, capsys: Captured, tmp_path: Path) -> None:
    assert main(["teacher", flag, value, "--out", str(tmp_path / "run")]) == 2
    assert said in sentence(capsys.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--student", "nope"], "'nope': choose one of cam-net"),
        (["train", "--teacher", "nope"], "'nope'"),
        (["train", "--method", "magic"], "got 'magic'"),
        (["train", "--terms", "ce=1,cam=1:schedule=never"], "got 'never' in 'cam=1:schedule=never'"),
        (["distill", "--terms", "ce=1,magic=1"], "got 'magic' in 'magic=1'"),
        (["train", "--lr", "0.1"], "wrn-16-4 with sgd and cam-net with adamw cannot share lr 0.1: give --optimizer"),
        (["train", "--weight-decay", "0"], "cannot share weight_decay 0.0"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["distill", "--epochs", "0"], "epochs is 0"),
        (["train", "--teacher-epochs", "0"], "teacher_epochs is 0"),
        (["train", "--cache-budget", "-1"], "cache_budget is '-1'"),
        (["teacher", "--model", "nope"], "'nope': choose one of"),
        (["teacher", "--nope", "3"], "--nope"),
        (["teacher", "--epo", "3"], "--epo"),
        (["teacher", "--model"], "--model: expected one argument"),
        (["teacher", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["distill", "--teacher", "nope"], "'nope'"),
        (["distill", "--teacher", "resnet50", "--data", "cifar10"], "camkd teacher --data cifar10 --model resnet50"),
        (["evaluate", "nowhere"], "'nowhere'"),
        (["evaluate"], "required: run"),
        (["evaluate", "nowhere", "--list-disagreements", "-1"], "--list-disagreements is -1"),
        (["evaluate", "nowhere", "--fail-over", "ece"], "--fail-over has 'ece'"),
        (["explain", "nowhere", "x.png"], "'nowhere'"),
        (["report", "nowhere"], "got nowhere"),
        (["list", "cats"], "'cats': choose one of models, methods, recipes, data"),
        (["list", "models", "--size", "0"], "size is 0"),
        (["dance"], "'dance'"),
        (["--json"], "--json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], named: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert named in sentence(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--data", "--dataset"])
def test_pictures_that_are_not_there(flag: str, capsys: Captured, tmp_path: Path) -> None:
    assert main(["teacher", flag, "nowhere", "--out", str(tmp_path / "run")]) == 2
    assert "'nowhere'" in sentence(capsys.readouterr())


@pytest.mark.parametrize("flag", ["--limit", "--size", "--workers"])
def test_numbers_of_pictures(flag: str, capsys: Captured, tmp_path: Path, easy_folder: Path) -> None:
    assert main(["teacher", "--data", str(easy_folder), flag, "0", "--out", str(tmp_path / "run")]) == 2
    assert f"{flag.strip('-')} is 0" in sentence(capsys.readouterr())


def test_run_that_is_there_is_not_overwritten(finished: Any, capsys: Captured) -> None:
    arguments = ["train", "--teacher", "resnet8", *finished.options, "--out", str(finished.folder)]
    assert main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err.splitlines()[-1]
    assert main([*arguments, "--resume", "--lr", "0.3"]) == 2
    assert "lr = 0.4, now it is 0.3" in capsys.readouterr().err.splitlines()[-1]


def test_place_that_cannot_be_written(easy_folder: Path, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    arguments = ["teacher", "--model", "resnet8", "--data", str(easy_folder), *QUICK, "--out"]
    assert main([*arguments, str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err.splitlines()[-1]
    assert main([*arguments, str(tmp_path / "file" / "below")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("camkd: ")
    assert str(tmp_path / "file") in last


# --- the commands, for machines


def test_train_prints_one_object(finished: Any) -> None:
    assert finished.status == 0
    assert finished.out.count("\n") == 1
    found = json.loads(finished.out)
    assert set(found) == {"teacher", "control", "student", "out"}
    for role in ("teacher", "control", "student"):
        assert found[role] == Run(finished.folder / role).read_metrics()
    assert found["out"] == str(finished.folder)
    assert "96 training, 24 validation and 24 test pictures of 16 pixels in 3 classes" in finished.err
    assert finished.err.count("epoch 2") == 3
    assert str(finished.folder / "report.html") in finished.err


@pytest.mark.usefixtures("undrawn")
def test_teacher_then_distill(easy_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    data = ["--dataset", str(easy_folder), *QUICK, "--json"]
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    assert main(["teacher", "--model", "resnet8", *data, "--out", teacher]) == 0
    found = only_json(capsys.readouterr())
    assert found == {**Run(Path(teacher)).read_metrics(), "out": teacher}
    assert (
        main(["distill", "--teacher", teacher, "--student", "resnet8", "--method", "kd", *data, "--out", student]) == 0
    )
    found = only_json(capsys.readouterr())
    assert found == {**Run(Path(student)).read_metrics(), "out": student}
    assert found["teacher_accuracy"] == Run(Path(teacher)).read_metrics()["accuracy"]
    assert (tmp_path / "student" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_default_places(easy_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(easy_folder), *QUICK, "--json"]
    assert main(["teacher", "--model", "resnet8", *data]) == 0
    assert only_json(capsys.readouterr())["out"] == "runs/easy/teacher-resnet8"
    assert main(["distill", "--teacher", "resnet8", "--method", "plain", *data]) == 0
    assert only_json(capsys.readouterr())["out"] == "runs/easy/cam-net-plain-from-resnet8"
    assert (tmp_path / "runs" / "easy" / "cam-net-plain-from-resnet8" / "metrics.json").exists()


def test_evaluate(finished: Any, capsys: Captured) -> None:
    student = str(finished.folder / "student")
    assert main(["evaluate", student, "--json", "--device", "cpu"]) == 0
    found = only_json(capsys.readouterr())
    metrics = Run(finished.folder / "student").read_metrics()
    assert found["confusion"] == metrics["confusion"]
    assert found["cam_cosine"] == pytest.approx(metrics["cam_cosine"], rel=1e-3)
    assert main(["evaluate", student]) == 0
    captured = capsys.readouterr()
    assert "teacher_agreement" in captured.out
    assert "{" not in captured.out


def test_evaluate_says_which_pictures_were_measured(finished: Any, easy_folder: Path, capsys: Captured) -> None:
    assert main(["evaluate", str(finished.folder / "student"), "--data", str(easy_folder / "val"), "--json"]) == 0
    captured = capsys.readouterr()
    assert f"measured on all 24 pictures of {str(easy_folder / 'val')!r}\n" in captured.err
    assert only_json(captured)["test_images"] == 24


def test_evaluate_shows_chance_levels_beside_each_figure(finished: Any, capsys: Captured) -> None:
    assert main(["evaluate", str(finished.folder / "student")]) == 0
    shown = capsys.readouterr().out
    metrics = Run(finished.folder / "student").read_metrics()
    for name in ("cam_spearman", "insertion"):
        (line,) = [line for line in shown.splitlines() if name in line]
        numbers = [float(cell) for cell in line.split("│")[2:] if cell.strip()]
        ends = ("", "_shuffled", "_centre") if name == "cam_spearman" else ("", "_shuffled")
        assert numbers == pytest.approx([metrics[name + end] for end in ends], abs=2e-3)
    assert "_shuffled" not in shown
    (line,) = [line for line in shown.splitlines() if "both right" in line]
    assert int(line.split("│")[2]) == metrics["by_outcome"]["both_right"]["pictures"]


def test_evaluate_lists_alarms(finished: Any, capsys: Captured) -> None:
    student = str(finished.folder / "student")
    assert main(["evaluate", student, "--list-disagreements", "2", "--json"]) == 0
    alarm = only_json(capsys.readouterr())["alarm"]
    pictures = read_per_image(finished.folder / "student" / "per_image.npz")
    same = pictures["predicted"] == pictures["teacher_predicted"]
    assert alarm["same_answer"] == same.sum()
    assert alarm["pictures"] == (same & (pictures["cam_cosine"] <= alarm["level"])).sum()
    assert len(alarm["listed"]) == min(2, alarm["pictures"])
    for row in alarm["listed"]:
        assert row["name"] == pictures["name"][row["index"]]
        assert row["name"].startswith(f"test/{row['label']}/")
        assert row["cam_cosine"] == pytest.approx(pictures["cam_cosine"][row["index"]], abs=1e-3)
    assert main(["evaluate", student, "--list-disagreements", "2"]) == 0
    assert f"alarm: {alarm['pictures']:,} of {alarm['same_answer']:,} pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--list-disagreements", "3"], "has no teacher to be compared with"),
        (["--fail-under", "cam_cosine=0.8"], "there is no figure 'cam_cosine'"),
    ],
)
def test_evaluate_refuses(finished: Any, capsys: Captured, options: list[str], said: str) -> None:
    assert main(["evaluate", str(finished.folder / "teacher"), *options]) == 2
    assert said in sentence(capsys.readouterr())


def test_evaluate_fails_where_a_figure_is_beyond_its_bound(finished: Any, capsys: Captured) -> None:
    student = str(finished.folder / "student")
    kept = ["--fail-under", "accuracy=0,cam_cosine=-1", "--fail-over", "nll=1000"]
    assert main(["evaluate", student, *kept]) == 0
    capsys.readouterr()
    assert main(["evaluate", student, "--fail-under", "accuracy=1.5", "--fail-over", "nll=-1", "--json"]) == 1
    captured = capsys.readouterr()
    found = only_json(captured)
    said = f"camkd: accuracy is {found['accuracy']:.6g}, below 1.5; nll is {found['nll']:.6g}, above -1."
    assert captured.err == f"{said}\n"


def test_evaluate_takes_a_folder_of_three_for_its_student(finished: Any, capsys: Captured) -> None:
    assert main(["evaluate", str(finished.folder), "--json"]) == 0
    found = only_json(capsys.readouterr())
    assert found["params"] == Run(finished.folder / "student").read_metrics()["params"]


def test_explain(finished: Any, easy_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    images = [str(path) for path in sorted((easy_folder / "test").rglob("*.png"))[:2]]
    out = tmp_path / "cams.png"
    assert main(["explain", str(finished.folder / "student"), *images, "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    found = only_json(captured)
    assert list(found["images"]) == images
    assert set(found["images"][images[0]]) == {"teacher", "student"}
    assert found["out"] == str(out)
    assert out.exists()
    assert all(image in captured.err for image in images)


def test_explain_says_several_classes(finished: Any, easy_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    out = str(tmp_path / "overlays")
    assert main(["explain", str(finished.folder), str(easy_folder / "test" / "sky"), "--top", "2", "--out", out]) == 0
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 8
    for line in lines:
        assert re.fullmatch(r".*/sky/\d+\.png: student \w+ \(\d+%\), \w+ \(\d+%\)", line)
    assert last == f"written: {out}"


def test_explain_refuses_a_name_that_says_nothing(finished: Any, tmp_path: Path, capsys: Captured) -> None:
    assert main(["explain", str(finished.folder), "x.png", "--out", str(tmp_path / "maps.txt")]) == 2
    assert "maps.txt" in sentence(capsys.readouterr())


def test_explain_names_the_broken_picture(finished: Any, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "cams.png"
    assert main(["explain", str(finished.folder), str(tmp_path / "broken.jpg"), "--out", str(out)]) == 2
    assert "broken.jpg" in sentence(capsys.readouterr())
    assert not out.exists()


def test_report(finished: Any, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(finished.folder), "--out", str(out), "--json"]) == 0
    assert only_json(capsys.readouterr()) == {"out": str(out)}
    assert "<html" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("what", ["methods", "recipes", "data"])
def test_list(what: str, capsys: Captured) -> None:
    assert main(["list", what, "--json"]) == 0
    found = only_json(capsys.readouterr())
    assert main(["list", what]) == 0
    table = capsys.readouterr().out
    assert found
    assert all(name in table for name in found)


def test_list_models(capsys: Captured, keep_models: Callable[..., None]) -> None:
    keep_models("cam-net", "resnet8")  # test_catalogue has all of them
    assert main(["list", "models", "--size", "16", "--classes", "3", "--json"]) == 0
    found = only_json(capsys.readouterr())
    assert set(found) == {"cam-net", "resnet8"}
    assert found["cam-net"]["map"] == [8, 8]


# --- configuration files


@pytest.mark.usefixtures("undrawn")
def test_configuration_file(easy_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    settings = {"data": str(easy_folder), "model": "resnet8", "epochs": 1, "batch_size": 48, "lr": 0.25}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    out = tmp_path / "run"
    assert main(["teacher", "--config", str(tmp_path / "a.yaml"), "--lr", "0.5", "--out", str(out), "--json"]) == 0
    only_json(capsys.readouterr())
    used = Run(out).config()
    assert {name: used[name] for name in settings} == {**settings, "lr": 0.5}  # a later flag wins


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("command", "role"), [("teacher", "teacher"), ("distill", "student"), ("distill", "control")])
def test_a_runs_own_configuration_runs_again(
    finished: Any, command: str, role: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "again"
    config = finished.folder / role / "config.yaml"
    assert main([command, "--config", str(config), "--out", str(out), "--json"]) == 0
    only_json(capsys.readouterr())
    assert Run(out).config() == Run(finished.folder / role).config()
    ours, theirs = load(out).state_dict(), load(finished.folder / role).state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize(
    ("text", "named"), [("epoch: 3\n", "'epoch'"), ("epochs: [\n", "config"), ("- 1\n", "config"), ("epochs: x", "x")]
)
def test_wrong_configuration_file(text: str, named: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    assert main(["teacher", "--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert named in sentence(capsys.readouterr())


# --- how it ends


@pytest.mark.usefixtures("undrawn")
def test_interrupted_and_gone_on_with_the_printed_command(
    easy_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a run"  # a name that a shell would split
    arguments = ["teacher", "--model", "resnet8", "--data", str(easy_folder), *QUICK, "--json", "--out"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert main([*arguments, str(out)]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert "what was trained is saved" in last
    program, *again = shlex.split(last.partition("Go on with: ")[2])
    assert program == "camkd"
    assert again == [*arguments, str(out), "--resume"]
    assert Run(out).checkpoints
    assert not Run(out).finished
    assert main(again) == 0
    assert only_json(capsys.readouterr())["epochs"] == 1
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    ours, theirs = load(out).state_dict(), load(tmp_path / "whole").state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_interrupted_before_training(
    easy_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "open_dataset", press)
    assert main(["teacher", "--data", str(easy_folder), "--out", str(tmp_path / "run")]) == 130
    said = sentence(capsys.readouterr())
    assert said.startswith("camkd: interrupted; what was trained is saved. Go on with: camkd teacher")
    assert said.endswith(" --resume\n")


@pytest.mark.usefixtures("undrawn")
def test_loss_that_explodes_is_one_sentence(easy_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["teacher", "--model", "resnet8", "--data", str(easy_folder), "--batch-size", "24", "--lr", "1e30"]
    assert main([*arguments, "--epochs", "1", "--out", str(tmp_path / "run"), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"camkd: the loss is \S+ in epoch 1, batch \d: lower --lr\.", captured.err.splitlines()[-1])
    assert not Run(tmp_path / "run").finished


def test_a_bug_is_not_dressed_up(easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("a bug")

    assert issubclass(InputError, ValueError)
    monkeypatch.setattr(sources, "open_dataset", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["teacher", "--data", str(easy_folder), "--out", str(tmp_path / "run")])


# --- what the teacher knows


FILLED = 8 + 2 * 3 * 4 * 4  # bytes of an answer: a checksum and three maps of 4x4 cells


@pytest.fixture(scope="module")
def old_teacher(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of `camkd train`: a ResNet-8 that was a teacher, a CAM-Net that was its student."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    for role, name in (("teacher", "resnet8"), ("student", "cam-net")):
        said = ModelInfo(name, easy.classes, 16, 0, 0, role, "plain", easy.name, easy.fingerprint, 0)
        save(build(name, 3, 16, seed=3), folder / role, said)
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own; the folder of its stores."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


@pytest.fixture
def fill(old_teacher: str, easy_folder: Path, cache: Path) -> list[str]:
    """The command that asks the teacher about two epochs of the easy pictures."""
    arguments = ["--epochs", "2", "--batch-size", "4", "--precision", "fp32", "--device", "cpu", "--json"]
    return ["cache", "precompute", "--teacher", old_teacher, "--data", str(easy_folder), *arguments]


def run_json(capsys: Captured, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"] if "--json" not in arguments else arguments) == 0
    return only_json(capsys.readouterr())


def a_store(name: str, used: int, count: int) -> Path:
    """A store of ``count`` pictures with one answer, last used at some time."""
    layout = RecordFormat(3, 2, 2)
    store = Store(store_folder(name), Manifest("there", "resnet8", "easy", "none", 0, "fp32", count, layout))
    store.write(0, np.array([1]), layout.encode(Prediction(torch.ones(1, 3), torch.ones(1, 3, 2, 2))))
    os.utime(store.folder / "store.json", (used, used))
    return store.folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_knowledge_is_filled_listed_verified_and_removed(
    fill: list[str], cache: Path, old_teacher: str, capsys: Captured
) -> None:
    assert run_json(capsys, "cache", "list") == {}
    found = run_json(capsys, *fill)
    (folder,) = cache.iterdir()
    assert found == {"folder": str(folder), "epochs": [0, 1], "bytes": 2 * 96 * FILLED}
    assert [path.stat().st_size for path in folder.glob("*.bin")] == [96 * FILLED] * 2
    listed = run_json(capsys, "cache", "list")
    assert listed == {
        folder.name: {
            "teacher": str((Path(old_teacher) / "teacher").resolve()),
            "architecture": "resnet8",
            "data": "easy",
            "augment": "light",
            "augment_seed": 0,
            "precision": "fp32",
            "num_samples": 96,
            "map": [4, 4],
            "classes": 3,
            "epochs": 2,
            "bytes": size_of(folder),
        }
    }
    assert main(["cache", "list"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in (folder.name[:12], "resnet8", "easy", "light", "4x4", "fp32"))
    assert run_json(capsys, "cache", "verify") == {folder.name: {"known": 192, "damaged": 0}}
    assert run_json(capsys, "cache", "verify", folder.name[:5]) == {folder.name: {"known": 192, "damaged": 0}}
    size = size_of(folder)
    removed = run_json(capsys, "cache", "prune", folder.name[:5])
    assert removed == {"removed": [folder.name], "bytes": size, "dry_run": False}
    assert left(cache) == []
    assert run_json(capsys, "cache", "list") == run_json(capsys, "cache", "verify") == {}


def test_a_flipped_byte_is_found_by_verifying_and_mended_by_filling(
    fill: list[str], cache: Path, capsys: Captured
) -> None:
    folder = Path(run_json(capsys, *fill)["folder"])
    path = folder / "epoch-0001.bin"
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[40 * FILLED + 33] ^= 4
    path.write_bytes(flipped)
    assert main(["cache", "verify", "--json"]) == 0
    captured = capsys.readouterr()
    assert only_json(captured) == {folder.name: {"known": 191, "damaged": 1}}
    assert "damaged" in captured.err
    assert run_json(capsys, "cache", "verify") == {folder.name: {"known": 191, "damaged": 0}}
    assert run_json(capsys, *fill)["epochs"] == [0, 1]
    assert path.read_bytes() == sound
    assert run_json(capsys, "cache", "verify") == {folder.name: {"known": 192, "damaged": 0}}
    path.write_bytes(flipped)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(fill) == 0
    assert re.search(r"camkd: 1 of the cached teacher outputs in", capsys.readouterr().err)
    assert path.read_bytes() == sound, "filling alone mends it too"


def test_filling_that_is_interrupted_goes_on(
    fill: list[str], cache: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(screen: console.ProgressReporter, done: int, total: int, what: str) -> None:
        if what == "asking the teacher" and done >= 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(console.ProgressReporter, "progress", press)
        assert main(fill) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("camkd: interrupted")
    (folder,) = cache.iterdir()
    assert run_json(capsys, "cache", "verify") == {folder.name: {"known": 64, "damaged": 0}}
    assert run_json(capsys, *fill, "--dry-run")["asked_before"] == 64
    assert run_json(capsys, *fill)["epochs"] == [0, 1]
    assert run_json(capsys, "cache", "verify") == {folder.name: {"known": 192, "damaged": 0}}


def test_a_dry_run_says_what_filling_takes_and_asks_nothing(fill: list[str], cache: Path, capsys: Captured) -> None:
    assert main([*fill, "--dry-run"]) == 0
    captured = capsys.readouterr()
    found = only_json(captured)
    speed, seconds = found.pop("pictures_per_second"), found.pop("seconds")
    assert found == {
        "bytes_per_picture": FILLED,
        "pictures": 96,
        "epochs": 2,
        "asked_before": 0,
        "bytes_per_epoch": 96 * FILLED,
        "bytes": 2 * 96 * FILLED,
    }
    assert seconds == pytest.approx(192 / speed)
    assert f"96 pictures x 2 epochs x {FILLED} bytes = 20.0 kB (10.0 kB an epoch)" in captured.err
    assert not cache.exists()
    assert run_json(capsys, *fill)["bytes"] == found["bytes"]
    after = run_json(capsys, *fill, "--dry-run")
    assert (after["asked_before"], after["seconds"]) == (192, 0)


@pytest.mark.usefixtures("unopened")
def test_a_dry_run_for_pictures_that_are_not_there(cache: Path, capsys: Captured) -> None:
    options = ["--size", "16", "--epochs", "3", "--batch-size", "4", "--precision", "fp32", "--augment", "strong"]
    arguments = ["cache", "precompute", "--teacher", "resnet8", "--dry-run", *options]
    found = run_json(capsys, *arguments, "--pictures", "1.28k", "--classes", "1000")
    record = 8 + 10 * 4 * 4 * 2 + 1000 * 2 + 10 * 4
    assert found["bytes_per_picture"] == record == 8 * 296
    assert (found["pictures"], found["epochs"], found["asked_before"]) == (1280, 3, 0)
    assert (found["bytes_per_epoch"], found["bytes"]) == (1280 * record, 3 * 1280 * record)
    assert found["seconds"] == pytest.approx(3 * 1280 / found["pictures_per_second"])
    bounded = run_json(capsys, *arguments, "--pictures", "1.28M", "--cache-budget", "25MB")
    assert bounded["bytes_per_picture"] == 8 + 10 * 4 * 4 * 2
    assert bounded["epochs"] == bounded["bytes"] == 0
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("shipped", [False, True], ids=["a folder of all three", "a shipped one"])
def test_for_pictures_that_are_not_there_the_teacher_is_found_as_for_those_that_are(
    old_teacher: str, shipped: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling asks the ResNet-8 in teacher/ of a folder of all three, and a shipped network by its name."""
    built: list[str] = []

    def watched(name: str, *sizes: int, **how: Any) -> nn.Module:
        built.append(name)
        return build(name, *sizes, **how)

    monkeypatch.setattr(filling, "build", watched)
    name = "cam-net-cifar10" if shipped else old_teacher
    options = ["--size", "16", "--batch-size", "4", "--precision", "fp32", "--pictures", "1k", "--dry-run"]
    run_json(capsys, "cache", "precompute", "--teacher", name, *options)
    assert built == ["cam-net" if shipped else "resnet8"]


@pytest.mark.usefixtures("cache")
def test_of_a_trained_teacher_classes_and_size_are_known(capsys: Captured) -> None:
    options = ["--teacher", "cam-net-cifar10", "--pictures", "100", "--dry-run", "--batch-size", "4"]
    found = run_json(capsys, "cache", "precompute", *options)
    assert found["bytes_per_picture"] == 8 + 10 * 8 * 8 * 2
    assert main(["cache", "precompute", "--classes", "5"]) == 2


@pytest.mark.parametrize(
    ("keys", "keep", "less", "going"),
    [
        (["aa"], None, 0, ["aa22", "aa11"]),
        (["cc", "aa22"], None, 0, ["aa22", "cc33"]),
        (["bb"], None, 0, ["bb"]),
        ([], [], 0, ["aa22", "bb", "aa11", "cc33"]),
        ([], ["cc33"], 0, ["aa22", "bb", "aa11"]),
        ([], ["aa11", "cc33"], 0, ["aa22", "bb"]),
        ([], ["aa11", "cc33"], 1, ["aa22", "bb", "aa11"]),
        ([], ["bb", "aa11", "cc33"], 0, ["aa22"]),
        ([], ["aa22", "bb", "aa11", "cc33"], 0, []),
        (["aa"], ["aa11"], 0, ["aa22"]),
        (["aa"], [], 0, ["aa22", "aa11"]),
    ],
)
def test_pruning_removes_those_named_or_those_least_recently_used(
    keys: list[str], keep: list[str] | None, less: int, going: list[str], cache: Path, capsys: Captured
) -> None:
    """``keep``: as many bytes as these stores have, less ``less``."""
    folders = {name: a_store(name, 1000 + n, 20 + n) for n, name in enumerate(("aa22", "bb", "aa11", "cc33"))}
    sizes = {name: size_of(folder) for name, folder in folders.items()}
    limit = [] if keep is None else ["--keep", f"{sum(sizes[name] for name in keep) - less}B"]
    expected = {"removed": going, "bytes": sum(sizes[name] for name in going)}
    command = ["cache", "prune", *keys, *limit]
    assert run_json(capsys, *command, "--dry-run") == {**expected, "dry_run": True}
    assert left(cache) == sorted(folders)
    assert run_json(capsys, *command) == {**expected, "dry_run": False}
    assert left(cache) == sorted(set(folders) - set(going))


def test_pruning_takes_sizes_as_people_write_them(cache: Path, capsys: Captured) -> None:
    a_store("one", 1000, 20)
    assert run_json(capsys, "cache", "prune", "--keep", "1.5TB")["removed"] == []
    assert main(["cache", "prune", "--keep", "0 GB"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("freed ")
    assert "one" in captured.err
    assert left(cache) == []


def test_looking_at_the_stores_is_no_use_of_them(cache: Path, capsys: Captured) -> None:
    folders = [a_store(name, 1000 + n, 20) for n, name in enumerate(("zz", "mm", "aa"))]
    used = [(folder / "store.json").stat().st_mtime for folder in folders]
    assert list(run_json(capsys, "cache", "list")) == ["zz", "mm", "aa"]
    assert list(run_json(capsys, "cache", "verify")) == ["zz", "mm", "aa"]
    assert [(folder / "store.json").stat().st_mtime for folder in folders] == used


def test_filling_is_a_use(fill: list[str], cache: Path, capsys: Captured) -> None:
    folder = Path(run_json(capsys, *fill)["folder"])
    os.utime(folder / "store.json", (1000, 1000))
    a_store("other", 2000, 20)
    run_json(capsys, *fill)
    assert list(run_json(capsys, "cache", "list")) == ["other", folder.name]


def test_a_store_that_says_nothing_of_itself_is_named_and_can_be_removed(cache: Path, capsys: Captured) -> None:
    a_store("good", 1000, 20)
    (a_store("torn", 2000, 20) / "store.json").write_text('{"teacher": "th', encoding="utf-8")
    for command in ("list", "verify"):
        assert main(["cache", command, "--json"]) == 0
        captured = capsys.readouterr()
        assert f"{cache / 'torn'} is not a complete teacher cache" in captured.err
        assert list(only_json(captured)) == ["good"]
    assert run_json(capsys, "cache", "prune", "torn")["removed"] == ["torn"]
    assert list(run_json(capsys, "cache", "list")) == ["good"]


@pytest.mark.usefixtures("unopened")
@pytest.mark.parametrize("stores", [0, 1])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("prune", "give --keep with a size like 10GB"),
        ("prune --dry-run", "give --keep with a size like 10GB"),
        ("prune nope", "there is no knowledge store 'nope': see 'camkd cache list'"),
        ("verify nope", "there is no knowledge store 'nope': see 'camkd cache list'"),
        ("prune --keep much", "keep must be a quantity, got 'much'"),
        ("prune --keep -1GB", "--keep"),
        ("fill --pictures 1M", "--pictures stands for pictures that are not here: add --dry-run"),
        ("fill --pictures many --dry-run --teacher resnet8", "must be a quantity, got 'many'"),
        ("fill --pictures 0 --dry-run --teacher resnet8", "pictures"),
        ("fill --pictures 5 --dry-run --teacher nope", "'nope'"),
        ("fill --pictures 5 --dry-run --teacher resnet8 --size -4", "size is -4"),
        ("fill --pictures 5 --dry-run --teacher resnet8 --size 0", "size is 0"),
        ("fill --pictures 5 --dry-run --teacher resnet8 --classes 0", "classes is 0"),
        ("fill --processes 0", "processes is 0"),
        ("fill --epochs 0", "epochs is 0"),
        ("fill --cache-map-size 0", "cache_map_size is 0"),
        ("fill --cache-budget some", "cache_budget must be a quantity, got 'some'"),
        ("fill --augment wild", "got 'wild'"),
        ("fill --teacher nope", "'nope'"),
        ("fill --lr 0.1", "--lr"),
        ("dance", "'dance'"),
        ("", "say after cache what to do: list, precompute, verify, prune"),
    ],
)
def test_wrong_input_about_knowledge_is_one_sentence(
    arguments: str,
    named: str,
    stores: int,
    capsys: Captured,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(stores):
        a_store("there", 1000, 20)
    assert main(["cache", *arguments.split()]) == 2
    assert named in sentence(capsys.readouterr())
    assert (left(cache) if cache.exists() else []) == ["there"] * stores


def test_a_budget_without_room_for_an_epoch(fill: list[str], cache: Path, capsys: Captured) -> None:
    assert main([*fill, "--cache-budget", f"{96 * FILLED - 1}B"]) == 2
    assert "has no room for one epoch" in capsys.readouterr().err.splitlines()[-1]
    assert not cache.exists()
    assert run_json(capsys, *fill, "--cache-budget", f"{96 * FILLED}B")["epochs"] == [0]


# --- the write-up's own commands


def test_write_up_without_a_network(tmp_path: Path) -> None:
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **closed, "no_proxy": "", "NO_PROXY": "", "CAMKD_CACHE": str(tmp_path / "cache")}
    script = [sys.executable, str(ROOT / "train_teacher.py"), "--dataset", "cifar10", "--model", "resnet50"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("camkd: cifar10 could not be downloaded from https://")
    assert "--data PATH" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("train.py", [], "cifar10 could not be downloaded"),
        ("train.py", ["--dataset", "nowhere"], "'nowhere'"),
        (
            "distill.py",
            ["--dataset", "cifar10", "--teacher", "resnet50", "--student", "cam-net"],
            "camkd teacher --data cifar10 --model resnet50",
        ),
    ],
)
def test_write_up_scripts(
    script: str,
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of the first call
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert done.value.code == 2
    assert named in sentence(capsys.readouterr())
