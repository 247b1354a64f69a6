"""Lock a run folder, and check its configuration on resume."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.runs.folder import Run
from camkd.runs.resume import ACCEPTABLE, IGNORED_ON_RESUME, Resume, lock_run, parse_accept, start_or_resume
from camkd.types import InputError
from camkd.utils.files import load_json, write_json

CONFIG = RunConfig(
    DataConfig(workers=2), TrainConfig(epochs=3, lr=0.1, batch_size=32), DistillConfig("/runs/teacher"), model="resnet8"
)
PROVENANCE = {"data_fingerprint": "abc", "teacher_weights": "def", "terms": "ce=1"}


def with_train(**changes: Any) -> RunConfig:
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was started and has no checkpoint."""
    run = Run(tmp_path / "run")
    assert start_or_resume(run, CONFIG, PROVENANCE, None) is False
    return run


# --- configuration


def test_start_writes_configuration_and_provenance(run: Run) -> None:
    assert run.config() == CONFIG.options()
    assert PROVENANCE.items() <= run.provenance().items()


def test_resume_with_same_settings(run: Run) -> None:
    other_workers = replace(CONFIG, data=DataConfig(workers=8))
    assert start_or_resume(run, other_workers, PROVENANCE, Resume()) is False
    run.checkpoints.save(1, {"step": 1})
    assert start_or_resume(run, CONFIG, PROVENANCE, Resume()) is True


def test_existing_run_needs_resume(run: Run) -> None:
    with pytest.raises(InputError, match=r"unfinished run.*--resume"):
        start_or_resume(run, CONFIG, PROVENANCE, None)


def test_missing_setting_has_its_default(run: Run) -> None:
    """A configuration of an earlier version, without a later option, can be resumed."""
    path = run.folder / "config.yaml"
    options = run.config()
    del options["ema_decay"], options["on_nan"]
    path.write_text(yaml.safe_dump(options))
    assert start_or_resume(run, CONFIG, PROVENANCE, Resume()) is False
    with pytest.raises(InputError, match=r"ema_decay must be 0.998, .* got 0.5"):
        start_or_resume(run, with_train(ema_decay=0.5), PROVENANCE, Resume())


@pytest.mark.fault("resume with other settings")
@pytest.mark.parametrize("name", ["seed", "batch_size", "epochs", "lr"])
def test_changed_setting_is_refused(run: Run, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be {getattr(CONFIG.train, name)}, .* got 7"):
        start_or_resume(run, with_train(**{name: 7}), PROVENANCE, Resume())
    assert run.config() == CONFIG.options()


@pytest.mark.fault("resume with other settings")
@pytest.mark.parametrize(
    ("config", "named"),
    [
        (replace(CONFIG, model="resnet20"), "student must be resnet8"),
        (replace(CONFIG, distill=DistillConfig("/runs/teacher", "kd")), "method must be cam-kd"),
    ],
)
def test_changed_model_or_method_is_refused(run: Run, config: RunConfig, named: str) -> None:
    with pytest.raises(InputError, match=named):
        start_or_resume(run, config, PROVENANCE, Resume())


def test_advice_depends_on_whether_the_setting_may_change(run: Run) -> None:
    with pytest.raises(InputError, match="Add --accept lr"):
        start_or_resume(run, with_train(lr=0.5), PROVENANCE, Resume())
    with pytest.raises(InputError, match="Resume with the same settings"):
        start_or_resume(run, with_train(seed=5), PROVENANCE, Resume())


def test_accepted_changes_are_recorded(run: Run) -> None:
    run.write_history([{"epoch": 1}])
    start_or_resume(run, with_train(lr=0.5, epochs=9), PROVENANCE, Resume(("lr", "epochs")))
    assert run.config() == with_train(lr=0.5, epochs=9).options()
    assert run.provenance()["changes"] == [{"epochs_done": 1, "epochs": [3, 9], "lr": [0.1, 0.5]}]
    start_or_resume(run, with_train(lr=0.2, epochs=9), PROVENANCE, Resume(("lr",)))
    assert [change.get("lr") for change in run.provenance()["changes"]] == [[0.1, 0.5], [0.5, 0.2]]


@pytest.mark.fault("resume with other images or another teacher")
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("data_fingerprint", "The images"),
        ("teacher_weights", "The teacher's weights"),
        ("terms", "The loss terms of the method"),
    ],
)
def test_other_images_teacher_or_terms_are_refused(run: Run, name: str, named: str) -> None:
    with pytest.raises(InputError, match=f"{named} must be .*{run.folder}.*got other .*Resume with the same"):
        start_or_resume(run, CONFIG, {**PROVENANCE, name: "other"}, Resume())


MOVED = replace(CONFIG, data=DataConfig("/new/pets", size=32, workers=2), distill=DistillConfig("/new/teacher"))


@pytest.mark.fault("moved project")
def test_moved_images_and_teacher_are_resumed_and_stored(run: Run) -> None:
    """Images and teacher are identified by content: their paths, and how the images were selected, may differ."""
    start_or_resume(run, MOVED, PROVENANCE, Resume())
    assert run.config() == MOVED.options()
    assert run.provenance()["changes"] == [
        {
            "epochs_done": 0,
            "teacher": ["/runs/teacher", "/new/teacher"],
            "data": ["shapes", "/new/pets"],
            "size": [None, 32],
        }
    ]


@pytest.mark.fault("moved project")
def test_paths_of_a_finished_run_are_stored_in_its_model_info(run: Run) -> None:
    write_json(run.folder / "model.json", {"data": "shapes", "teacher": "/runs/teacher", "size": 8, "other": 1})
    write_json(run.metrics_file, {"accuracy": 1})
    start_or_resume(run, MOVED, PROVENANCE, Resume())
    info = load_json((run.folder / "model.json").read_text())
    assert info == {"data": "/new/pets", "teacher": "/new/teacher", "size": 8, "other": 1}
    assert run.finished


@pytest.mark.fault("resume with other images or another teacher")
def test_error_names_the_paths_of_other_images(run: Run) -> None:
    with pytest.raises(InputError) as refused:
        start_or_resume(run, MOVED, {**PROVENANCE, "data_fingerprint": "other"}, Resume())
    assert "started with (data shapes, size None), got other images (data /new/pets, size 32)." in str(refused.value)
    assert run.config() == CONFIG.options()


def test_path_without_an_identity_is_compared(run: Run) -> None:
    write_json(run.folder / "environment.json", {"teacher_weights": "def"})
    with pytest.raises(InputError, match=r"data must be shapes, .* got /new/pets"):
        start_or_resume(run, MOVED, PROVENANCE, Resume())


# --- accepted changes when no epoch is left


def finish(run: Run, epochs: int) -> None:
    run.write_history([{"epoch": epoch + 1} for epoch in range(epochs)])
    write_json(run.folder / "model.json", {})
    write_json(run.metrics_file, {"accuracy": 1})


@pytest.mark.fault("--accept on a finished run")
def test_finished_run_continues_with_more_epochs(run: Run) -> None:
    finish(run, 3)
    run.checkpoints.save(1, {"step": 1})
    config = with_train(epochs=5, lr=0.5)
    assert start_or_resume(run, config, PROVENANCE, Resume(("epochs", "lr"))) is True
    assert not run.finished
    assert run.config() == config.options()


@pytest.mark.fault("--accept on a finished run")
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, r"for a change of lr to have an effect, got 3\. .*--accept epochs,lr"),
        ({"epochs": 2}, r"for a change of epochs to have an effect, got 2\. .*--accept epochs, or"),
        ({"epochs": 3, "on_nan": "skip"}, r"for a change of on_nan to have an effect, got 3\."),
    ],
)
def test_change_without_effect_is_refused(run: Run, finished: bool, changes: dict[str, Any], message: str) -> None:
    finish(run, 3)
    if not finished:
        run.metrics_file.unlink()
    with pytest.raises(InputError, match=rf"^epochs must be more than 3, .* {message}"):
        start_or_resume(run, with_train(**changes), PROVENANCE, Resume(tuple(changes)))
    assert run.finished == finished
    assert run.config() == CONFIG.options()


@pytest.mark.fault("--accept on a finished run")
def test_finished_run_without_checkpoints_is_not_trained_further(run: Run) -> None:
    finish(run, 3)
    with pytest.raises(InputError, match=r"must have checkpoints to be trained for more epochs, got none\."):
        start_or_resume(run, with_train(epochs=5), PROVENANCE, Resume(("epochs",)))
    assert run.finished


def test_parse_accept() -> None:
    assert parse_accept(" epochs, lr ,") == ("epochs", "lr")
    assert parse_accept("") == ()
    assert set(ACCEPTABLE) <= set(TrainConfig.__dataclass_fields__)
    fixed = {"seed", "batch_size", "augment", "augment_seed", "augment_epochs", "optimizer"}
    assert not set(ACCEPTABLE) & {*IGNORED_ON_RESUME, *fixed}
    with pytest.raises(InputError, match="got 'seed'"):
        parse_accept("lr,seed")


# --- lock

HOLD_LOCK = """
import sys, time
from pathlib import Path
from camkd.runs.resume import lock_run
from camkd.runs.folder import Run

with lock_run(Run(Path(sys.argv[1]))):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(run: Run) -> Any:
    """Another process that holds the lock of the run until its input ends."""
    command = [sys.executable, "-c", HOLD_LOCK, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def enter(run: Run) -> None:
    with lock_run(run):
        pass


@pytest.mark.fault("two processes with one run folder")
def test_locked_run_is_refused(run: Run, other: Any) -> None:
    with pytest.raises(InputError, match=rf"process {other.pid} on "):
        enter(run)
    other.communicate("")
    enter(run)


@pytest.mark.fault("lock of a killed process")
def test_lock_of_a_killed_process_is_released(run: Run, other: Any) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (run.folder / ".lock").exists()
    enter(run)
    assert not (run.folder / ".lock").exists()


@pytest.mark.fault("temporary files of a killed process")
def test_temporary_files_of_a_killed_process_are_removed(run: Run) -> None:
    run.figures_folder.mkdir()
    leftovers = [run.folder / ".metrics.jsonl.abc.part", run.figures_folder / ".cams.png.xyz.part"]
    for path in leftovers:
        path.write_text("half")
    enter(run)
    assert not any(path.exists() for path in leftovers)
    assert run.config() == CONFIG.options()


def test_lock_is_released_after_an_error(run: Run) -> None:
    with pytest.raises(KeyError), lock_run(run):
        raise KeyError
    enter(run)


@pytest.mark.fault("read-only folder")
def test_read_only_folder_is_refused() -> None:
    with pytest.raises(InputError, match=r"/proc/camkd must be writable, got: .*Choose another --out"):
        enter(Run(Path("/proc/camkd")))


def test_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("locked")
    with pytest.raises(InputError, match=r"must be a folder, got the file .*taken"):
        enter(Run(tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "locked"
