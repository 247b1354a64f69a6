"""A run folder belongs to one process and one configuration."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from camkd.config import TrainConfig
from camkd.runs.folder import Run
from camkd.runs.resume import ACCEPTABLE, IGNORED_ON_RESUME, lock_run, parse_accept, start_or_resume
from camkd.types import InputError

BEFORE: dict[str, Any] = {"model": "resnet8", "epochs": 3, "lr": 0.1, "seed": 0, "batch_size": 32, "workers": 2}
ORIGIN = {"pictures": "abc", "teacher_weights": None, "terms": "ce=1"}


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    assert start_or_resume(run, BEFORE, ORIGIN, resume=False) is False
    return run


# --- one configuration


def test_a_free_folder_is_taken(begun: Run) -> None:
    assert begun.config() == BEFORE
    assert ORIGIN.items() <= begun.provenance().items()


def test_the_same_settings_go_on(begun: Run) -> None:
    assert start_or_resume(begun, {**BEFORE, "workers": 8}, ORIGIN, resume=True) is False  # nothing was kept yet
    begun.checkpoints.save(1, {"step": 1})
    assert start_or_resume(begun, BEFORE, ORIGIN, resume=True) is True


@pytest.mark.fault("resumed with another setting")
@pytest.mark.parametrize("name", ["model", "seed", "batch_size", "epochs", "lr"])
def test_a_changed_setting_is_named(begun: Run, name: str) -> None:
    with pytest.raises(InputError, match=rf"was started with {name} = {BEFORE[name]}, now it is 7"):
        start_or_resume(begun, {**BEFORE, name: 7}, ORIGIN, resume=True)
    assert begun.config() == BEFORE


def test_one_that_may_change_is_offered_and_one_that_may_not_is_not(begun: Run) -> None:
    with pytest.raises(InputError, match="add --accept lr to go on with it"):
        start_or_resume(begun, {**BEFORE, "lr": 0.5}, ORIGIN, resume=True)
    with pytest.raises(InputError, match="resume with the same settings"):
        start_or_resume(begun, {**BEFORE, "seed": 5}, ORIGIN, resume=True)


def test_what_is_accepted_is_written_down_beside_what_it_was(begun: Run) -> None:
    begun.write_history([{"epoch": 1}])
    start_or_resume(begun, {**BEFORE, "lr": 0.5, "epochs": 9}, ORIGIN, resume=True, accept=("lr", "epochs"))
    assert begun.config() == {**BEFORE, "lr": 0.5, "epochs": 9}
    assert begun.provenance()["changes"] == [{"epochs_done": 1, "epochs": [3, 9], "lr": [0.1, 0.5]}]
    start_or_resume(begun, {**BEFORE, "lr": 0.2, "epochs": 9}, ORIGIN, resume=True, accept=("lr",))
    assert [change.get("lr") for change in begun.provenance()["changes"]] == [[0.1, 0.5], [0.5, 0.2]]


@pytest.mark.fault("resumed with other pictures or teacher")
@pytest.mark.parametrize(
    ("name", "words"), [("pictures", "the pictures"), ("teacher_weights", "the teacher's weights")]
)
def test_other_pictures_or_another_teacher_are_refused(begun: Run, name: str, words: str) -> None:
    with pytest.raises(InputError, match=f"{words}.* are not those"):
        start_or_resume(begun, BEFORE, {**ORIGIN, name: "other"}, resume=True)


def test_only_settings_of_training_may_change() -> None:
    assert parse_accept(" epochs, lr ,") == ("epochs", "lr")
    assert parse_accept("") == ()
    assert set(ACCEPTABLE) <= set(TrainConfig.__dataclass_fields__)
    assert not set(ACCEPTABLE) & {
        *IGNORED_ON_RESUME,
        "seed",
        "batch_size",
        "views",
        "augment_seed",
        "augment_epochs",
        "optimizer",
    }
    with pytest.raises(InputError, match="--accept cannot take 'seed': choose among epochs, lr"):
        parse_accept("lr,seed")


# --- one process

HOLDS = """
import sys, time
from pathlib import Path
from camkd.runs.resume import owned
from camkd.runs.folder import Run

with owned(Run(Path(sys.argv[1]))):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(begun: Run) -> Any:
    """Another process that works on the run until its input ends."""
    command = [sys.executable, "-c", HOLDS, str(begun.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def enter(run: Run) -> None:
    with lock_run(run):
        pass


@pytest.mark.fault("two runs on one folder")
def test_two_processes_do_not_work_on_one_run(begun: Run, other: Any) -> None:
    with pytest.raises(InputError, match=rf"process {other.pid} on .* is working in it; wait for it"):
        enter(begun)
    other.communicate("")
    enter(begun)


@pytest.mark.fault("a stale lock")
def test_the_lock_of_a_killed_process_holds_nobody_up(begun: Run, other: Any) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (begun.folder / ".lock").exists()
    enter(begun)
    assert not (begun.folder / ".lock").exists()


@pytest.mark.fault("remains of a killed process")
def test_what_a_killed_process_left_half_written_goes(begun: Run) -> None:
    begun.figures.mkdir()
    left = [begun.folder / ".metrics.jsonl.abc.part", begun.figures / ".cams.png.xyz.part"]
    for path in left:
        path.write_text("half")
    enter(begun)
    assert not any(path.exists() for path in left)
    assert begun.config() == BEFORE


def test_a_lock_is_given_back_after_an_error(begun: Run) -> None:
    with pytest.raises(KeyError), lock_run(begun):
        raise KeyError
    enter(begun)


@pytest.mark.fault("a folder that cannot be written")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match=r"/proc/camkd cannot be written \(.*\): give another --out"):
        enter(Run(Path("/proc/camkd")))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken is a file"):
        enter(Run(tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"
