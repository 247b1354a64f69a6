"""The command line: help, wrong input, exit status, and JSON on stdout."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

from camkd.cli.commands import COMMANDS
from camkd.config import UNLABELED_OPTIONS, DataConfig, TrainConfig
from camkd.data import sources
from camkd.experiments import finished_runs
from camkd.types import InputError, Interrupted
from camkd.utils.files import write_text
from support.cli import QUICK, camkd

ROOT = Path(__file__).parents[2]


# --- help


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    code = f"""
import sys
from camkd.cli.main import main
for arguments in {[["--help"], *([name, "--help"] for name in COMMANDS)]}:
    try:
        main(arguments)
    except SystemExit as error:
        assert not error.code, arguments
    heavy = {{"torch", "matplotlib", "scipy", "PIL"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    process = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert process.stdout.count("usage: camkd") == 1 + len(COMMANDS)


@pytest.mark.slow
def test_package_is_executable() -> None:
    command = [sys.executable, "-m", "camkd", "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (process.returncode, process.stderr) == (0, "")
    for name, command_or_group in COMMANDS.items():
        assert name in process.stdout
        assert command_or_group.summary.split()[0] in process.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_without_a_command(arguments: list[str]) -> None:
    output = camkd(*arguments)
    assert (output.status, output.err) == (0, "")
    assert output.out.startswith("usage: camkd")


def test_version() -> None:
    output = camkd("--version")
    assert output.status == 0
    assert re.fullmatch(r"camkd \d+\.\d+\.\d+\n", output.out)


@pytest.mark.parametrize("command", ["train", "teacher", "distill"])
def test_every_setting_is_a_flag_with_its_documentation(command: str) -> None:
    output = camkd(command, "--help")
    assert output.status == 0
    page = output.out.partition("options:")[2]
    letters = re.sub(r"\W", "", page)
    for config in (DataConfig, TrainConfig):
        docs = docstring_parser.parse(config.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
        helps = {param.arg_name: param.description or "" for param in docs.params}
        for field in fields(config):
            if command == "teacher" and field.name in UNLABELED_OPTIONS:
                continue  # a teacher is trained on labeled images
            assert "--" + field.name.replace("_", "-") in page
            assert len(helps[field.name]) > 10
            assert re.sub(r"\W", "", helps[field.name]) in letters


# --- wrong input is refused before any work


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--augment", "wild", "augment must be one of auto, none, light, strong, photo, photo-mix, got 'wild'"),
        ("--device", "quantum", "got 'quantum'"),
        ("--precision", "fp8", "--precision must be one of auto, fp32, bf16, got 'fp8'"),
        ("--bad-images", "perhaps", "--bad-images must be one of fail, skip, got 'perhaps'"),
        ("--epochs", "many", "--epochs must be an integer, got 'many'"),
        ("--epochs", "1.5", "got '1.5'"),
        ("--limit", "few", "--limit must be an integer, got 'few'"),
        ("--size", "large", "got 'large'"),
        ("--lr", "fast", "--lr must be a number, got 'fast'"),
        ("--lr", ".nan", "lr must be more than 0, got nan"),
        ("--epochs", "0", "epochs must be 1 or more, up to a billion, got 0"),
        ("--batch-size", "-8", "got -8"),
        ("--warmup-fraction", "7", "warmup_fraction must be between 0 and 1, got 7.0"),
        ("--ema-decay", "-0.5", "got -0.5"),
        ("--grad-clip", "0", "grad_clip must be more than 0, got 0.0"),
        ("--seed", "-3", "got -3"),
        ("--figure-every", "-1", "figure_every must be 0 or more, got -1"),
    ],
)
def test_wrong_value_is_refused(flag: str, value: str, message: str, tmp_path: Path) -> None:
    assert message in camkd("teacher", flag, value, "--out", str(tmp_path / "run")).error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "train --student nope",
            "timm:NAME or torchvision:NAME, got 'nope'",
        ),
        ("train --teacher nope", "'nope'"),
        ("train --method magic", "got 'magic'"),
        ("train --terms ce=1,cam=1:schedule=never", "got 'never' in 'cam=1:schedule=never'"),
        ("distill --terms ce=1,magic=1", "got 'magic' in 'magic=1'"),
        ("train --lr 0.1", "got 0.1 for wrn-16-4 (sgd) and cam-net (adamw). Add --optimizer"),
        ("train --weight-decay 0", "weight_decay must be for one optimizer, got 0.0"),
        ("train --epochs 0", "epochs must be 1 or more, up to a billion, got 0"),
        ("distill --epochs 0", "epochs must be 1 or more, up to a billion, got 0"),
        ("train --teacher-epochs 0", "teacher_epochs must be 1 or more, up to a billion, got 0"),
        ("train --cache-budget -1", "cache_budget must be a quantity, got '-1'"),
        ("train --accept seed", "got 'seed'"),
        ("teacher --model nope", "got 'nope'"),
        ("teacher --nope 3", "--nope"),
        ("teacher --epo 3", "--epo"),
        ("teacher --model", "--model: expected one argument"),
        ("teacher --config nowhere.yaml", "nowhere.yaml"),
        ("distill --teacher nope", "'nope'"),
        ("distill --teacher resnet50 --data cifar10", "camkd teacher --data cifar10 --model resnet50"),
        ("evaluate nowhere", "'nowhere'"),
        ("evaluate", "required: run"),
        ("evaluate nowhere --list-disagreements -1", "--list-disagreements must be 1 or more, got -1"),
        ("evaluate nowhere --fail-over ece", "--fail-over must be metrics with numbers, got 'ece'"),
        ("explain nowhere x.png", "'nowhere'"),
        ("report nowhere", "got nowhere"),
        ("list cats", "one of models, methods, recipes, data, got 'cats'"),
        ("list models --size 0", "--size must be 1 or more, got 0"),
        ("cache", "cache must be followed by one of list, precompute, verify, prune"),
        ("cache dance", "'dance'"),
        ("dance", "'dance'"),
        ("--json", "--json"),
    ],
)
def test_wrong_input_is_one_line(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in camkd(*arguments.split()).error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--data", "--dataset"])
def test_missing_images_are_refused(flag: str, tmp_path: Path) -> None:
    assert "'nowhere'" in camkd("teacher", flag, "nowhere", "--out", str(tmp_path / "run")).error


@pytest.mark.parametrize("flag", ["--limit", "--size", "--workers"])
def test_number_of_images_below_one_is_refused(flag: str, tmp_path: Path, easy_folder: Path) -> None:
    arguments = ["teacher", "--data", str(easy_folder), flag, "0", "--out", str(tmp_path / "run")]
    assert f"{flag.strip('-')} must be 1 or more, got 0" in camkd(*arguments).error


def test_out_that_cannot_be_written_is_refused(easy_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for out in (file, file / "below"):
        output = camkd("teacher", "--model", "resnet8", "--data", str(easy_folder), *QUICK, "--out", str(out))
        assert (output.status, output.out) == (2, "")
        assert output.last_line.startswith("camkd: ")
        assert str(file) in output.last_line


# --- configuration files


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"epoch: 3\n", "'epoch'"),
        (b"epochs: [\n", "config"),
        (b"- 1\n", "config"),
        (b"epochs: x", "x"),
        (b"epochs: 1\n\0\n", "config"),
        (b"model: \xff\n", "--config must be a YAML file in UTF-8, got an error: 'utf-8' codec"),
        (b'data: "a\\0b"\n', "--data must not contain a null byte, got 'a\\x00b'"),
        (b"accept: [epochs]\n", "--accept must be a string, got \"['epochs']\""),
    ],
)
def test_wrong_configuration_file_is_refused(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(text)
    arguments = ["teacher", "--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]
    assert message in camkd(*arguments).error


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, "a string") for name in ("student", "teacher", "method", "data", "device", "accept", "cache-budget")),
        *((name, "an integer") for name in ("epochs", "seed")),
        ("grad-clip", "a number"),
        ("bad-images", "one of fail, skip"),
    ],
)
def test_null_in_a_configuration_file_is_refused(name: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{name.replace('-', '_')}: null\n", encoding="utf-8")
    arguments = ["train", "--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]
    assert camkd(*arguments).error == f"camkd: --{name} must be {rule}, got 'None'.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_data")
def test_null_byte_in_the_path_of_a_configuration_file_is_refused() -> None:
    assert "--config must be a YAML file" in camkd("train", "--config", "a\0b").error


@pytest.mark.usefixtures("without_data")
def test_recipe_in_a_configuration_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("recipe: quick\n", encoding="utf-8")
    assert "--recipe must be on the command line" in camkd("train", "--config", str(tmp_path / "a.yaml")).error


# --- exit status


def raise_error(error: BaseException) -> Any:
    def function(*arguments: Any, **options: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("epochs must be 1 or more, got 0."), 2, "camkd: epochs must be 1 or more, got 0."),
        (FloatingPointError("The loss must be finite, got nan."), 1, "camkd: The loss must be finite, got nan."),
        (ChildProcessError("A worker process ended."), 1, "camkd: A worker process ended."),
        (
            PermissionError(13, "Permission denied", "a.png"),
            1,
            "camkd: a.png must be accessible, got: Permission denied. Check the path, its permissions and the free "
            "disk space.",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_expected_error_is_one_line(
    error: Exception, status: int, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "open_dataset", raise_error(error))
    output = camkd("teacher", "--out", str(tmp_path / "run"))
    assert (output.status, output.out, output.err) == (status, "", f"{line}\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a bug"), RuntimeError("a bug")], ids=repr)
def test_unexpected_error_has_a_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert issubclass(InputError, ValueError)
    monkeypatch.setattr(sources, "open_dataset", raise_error(error))
    with pytest.raises(type(error), match="a bug"):
        camkd("teacher", "--out", str(tmp_path / "run"))


@pytest.mark.parametrize("options", [[], ["--resume"]])
@pytest.mark.parametrize("state", ["nothing", "started", "trained", "saved"])
def test_interrupted_training_prints_the_command_that_continues_it(
    options: list[str], state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "a run"  # a shell would split this name
    arguments = ["teacher", *options, "--out", str(out)]

    def interrupt(*arguments: Any) -> None:
        if state == "started":
            write_text(out / "config.yaml", "epochs: 3")
        if state == "trained":
            write_text(out / "teacher" / "checkpoints" / "last-00000004.json", "{}")
        raise Interrupted(str(out)) if state == "saved" else KeyboardInterrupt

    monkeypatch.setattr(sources, "open_dataset", interrupt)
    output = camkd(*arguments)
    assert (output.status, output.out) == (130, "")
    is_trained = state in ("trained", "saved")
    sentence, _, command = output.err.partition(" Resume with: " if is_trained else " Start again with: ")
    assert sentence == f"camkd: interrupted; {'the state is saved' if is_trained else 'nothing was trained yet'}."
    needs_resume = state != "nothing" and not options
    assert shlex.split(command) == ["camkd", *arguments, *(["--resume"] if needs_resume else [])]


def test_interrupted_command_without_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_runs, "reevaluate", raise_error(KeyboardInterrupt()))
    assert camkd("evaluate", "cam-net-cifar10") == (130, "", "camkd: interrupted.\n")


def test_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def warn(*arguments: Any) -> None:
        warnings.warn("a disk is full", stacklevel=1)
        raise InputError("stop.")

    monkeypatch.setattr(sources, "open_dataset", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        output = camkd("teacher", "--out", str(tmp_path / "run"))
    assert output.err == "camkd: a disk is full\ncamkd: stop.\n"
