"""Checkpoints survive damage, interruptions and full disks."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from camkd.runs.checkpoints import MAX_KEPT, Checkpoints, CorruptCheckpointWarning
from camkd.types import InputError
from camkd.utils.files import dump_checksummed, load_checksummed
from support.fault_injection import TouchOnUnpickle


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def weights(value: float) -> dict[str, Any]:
    return {"weight": torch.full((50,), value)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Checkpoints at steps 10, 20 and 30, with the best weights of epochs 1, 1 and 3."""
    checkpoints = Checkpoints(tmp_path)
    for step, epoch in ((10, 1), (20, 1), (30, 3)):
        checkpoints.save(step, {"step": step, **weights(step)}, (epoch, weights(epoch)))
    return checkpoints


def file_names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def load_step_and_best(checkpoints: Checkpoints) -> tuple[int, float]:
    """Load the newest checkpoint; return its step and the value of its best weights."""
    state, best = checkpoints.load()
    assert best is not None
    assert bool((state["weight"] == state["step"]).all())
    return state["step"], float(best["weight"][0])


# --- save and load


def test_state_round_trip(tmp_path: Path) -> None:
    model = network()
    checkpoints = Checkpoints(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "rows": [{"epoch": 1, "terms": {"ce": 0.5}}],
        "best": -1.0,
    }
    assert not checkpoints
    checkpoints.save(1, state)
    assert checkpoints
    loaded, best = checkpoints.load()
    assert best is None
    assert loaded.keys() == state.keys()
    assert loaded["rows"] == state["rows"]
    assert torch.equal(loaded["random"], torch.get_rng_state())
    other_model = network(seed=9)
    other_model.load_state_dict(loaded["model"])
    assert all(torch.equal(a, b) for a, b in zip(other_model.parameters(), model.parameters(), strict=True))
    other_optimizer = torch.optim.SGD(other_model.parameters(), lr=9.0, momentum=0.9)
    other_optimizer.load_state_dict(loaded["optimizer"])
    assert other_optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(other_optimizer.state[other_model[0].weight]["momentum_buffer"], model[0].weight.grad)


def test_two_newest_checkpoints_are_kept_with_their_best_weights(checkpoints: Checkpoints) -> None:
    assert MAX_KEPT == 2
    assert file_names(checkpoints) == [
        "best-00001.pt", "best-00003.pt", "last-00000020.json", "last-00000020.pt", "last-00000030.json",
        "last-00000030.pt",
    ]  # fmt: skip
    assert load_step_and_best(checkpoints) == (30, 3.0)


def test_best_weights_of_an_epoch_are_written_once(checkpoints: Checkpoints) -> None:
    before = (checkpoints.folder / "best-00003.pt").stat().st_mtime_ns
    checkpoints.save(40, {"step": 40, **weights(40)}, (3, weights(3)))
    assert (checkpoints.folder / "best-00003.pt").stat().st_mtime_ns == before
    assert "best-00001.pt" not in file_names(checkpoints)  # no kept manifest names it
    assert load_step_and_best(checkpoints) == (40, 3.0)


def test_empty_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Checkpoints(tmp_path).load()
    assert str(caught.value) == f"{tmp_path} must hold a checkpoint, got none. Leave out --resume to start the run."


def test_unknown_name_is_an_input_error_that_lists_checkpoints(checkpoints: Checkpoints) -> None:
    with pytest.raises(InputError, match=r"best-00001\.pt, best-00003\.pt, last-00000020\.pt.*, got 'best-00009\.pt'"):
        checkpoints.load_weights("best-00009.pt")
    with pytest.raises(InputError, match=r"\(none yet\), got 'last-00000001\.pt'"):
        Checkpoints(checkpoints.folder / "other").load_weights("last-00000001.pt")


# --- corrupt files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.fault("truncated, zeroed, corrupted or missing checkpoint")
@pytest.mark.parametrize("damage", [truncate, empty, zero, flip_bit, Path.unlink])
@pytest.mark.parametrize("name", ["last-00000030.pt", "last-00000030.json", "best-00003.pt"])
def test_previous_checkpoint_is_used_if_the_newest_is_corrupt(
    checkpoints: Checkpoints, name: str, damage: Callable[[Path], None]
) -> None:
    damage(checkpoints.folder / name)
    if (damage, name) == (Path.unlink, "last-00000030.json"):  # the same as a checkpoint without its manifest yet
        assert load_step_and_best(checkpoints) == (20, 1.0)
        return
    with pytest.warns(CorruptCheckpointWarning, match="last-00000030 is corrupt .* resuming from last-00000020"):
        assert load_step_and_best(checkpoints) == (20, 1.0)
    checkpoints.save(30, {"step": 30, **weights(30)}, (4, weights(4)))
    assert load_step_and_best(checkpoints) == (30, 4.0)


@pytest.mark.fault("corrupted byte in a checkpoint")
def test_every_flipped_byte_is_detected(checkpoints: Checkpoints) -> None:
    for path in (checkpoints.folder / "last-00000030.pt", checkpoints.folder / "last-00000030.json"):
        content = path.read_bytes()
        for index in range(0, len(content), max(1, len(content) // 97)):
            path.write_bytes(content[:index] + bytes([content[index] ^ 64]) + content[index + 1 :])
            with pytest.warns(CorruptCheckpointWarning):
                assert load_step_and_best(checkpoints) == (20, 1.0)
        path.write_bytes(content)
    assert load_step_and_best(checkpoints) == (30, 3.0)


@pytest.mark.fault("truncated, zeroed, corrupted or missing checkpoint")
def test_error_names_every_corrupt_checkpoint(checkpoints: Checkpoints) -> None:
    flip_bit(checkpoints.folder / "last-00000020.pt")
    truncate(checkpoints.folder / "last-00000030.pt")
    with pytest.raises(InputError, match=r"last-00000030 .*; last-00000020 .*Delete the folder"):
        checkpoints.load()


@pytest.mark.fault("pickle that executes code")
def test_checkpoint_with_code_is_refused_without_executing_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    marker = tmp_path / "executed"
    checkpoints.save(1, {"weight": torch.zeros(2), "extra": TouchOnUnpickle(marker)})
    path = checkpoints.folder / "last-00000001.pt"
    torch.load(path, weights_only=False)  # the payload works
    assert marker.exists()
    marker.unlink()
    with pytest.raises(InputError, match="UnpicklingError"):
        checkpoints.load()
    assert not marker.exists()


@pytest.mark.fault("checkpoint manifest with a path outside the folder")
def test_manifest_cannot_name_a_file_outside_the_folder(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, {"step": 1})
    (checkpoints.folder / "last-00000001.pt").rename(tmp_path / "elsewhere.pt")
    manifest = checkpoints.folder / "last-00000001.json"
    entry = load_checksummed(manifest)["last"]
    manifest.write_text(dump_checksummed({"last": {**entry, "name": "../elsewhere.pt"}}))
    with pytest.raises(InputError, match=r"elsewhere\.pt is missing"):
        checkpoints.load()


# --- failed and interrupted writes


def test_state_that_cannot_be_pickled_leaves_the_previous_checkpoint(checkpoints: Checkpoints) -> None:
    before = file_names(checkpoints)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoints.save(40, {"step": lambda: 2})
    assert file_names(checkpoints) == before
    assert load_step_and_best(checkpoints) == (30, 3.0)


@pytest.mark.fault("full disk while writing a checkpoint")
def test_full_disk_leaves_the_previous_checkpoint_and_names_file_and_bytes(checkpoints: Checkpoints) -> None:
    before = file_names(checkpoints)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large after 3,000 bytes.*last-00000040\.pt"):
            checkpoints.save(40, {"step": 40, "weight": torch.rand(5000)}, (4, weights(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file_names(checkpoints) == before
    assert load_step_and_best(checkpoints) == (30, 3.0)


KILLED_WRITER = """
import os, signal, sys, torch
from pathlib import Path
from camkd.runs.checkpoints import Checkpoints

folder, call, count = sys.argv[1], int(sys.argv[2]), 0

def kill_at_call(event, arguments):
    global count
    count += event.startswith(("open", "os.", "tempfile.")) and folder in repr(arguments)
    if count == call:
        count += 1  # os.kill raises an audit event too
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at_call)
weights = {"weight": torch.full((50,), 4.0)}
Checkpoints(Path(folder)).save(40, {"step": 40, "weight": torch.full((50,), 40.0)}, (4, weights))
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 3, 5, 7, 9, 11, 13, 15, 17, 20, 24])
def test_kill_while_saving_leaves_a_checkpoint(checkpoints: Checkpoints, call: int) -> None:
    """Another process saves a checkpoint and is killed at its ``call``-th file operation in the folder."""
    process = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(checkpoints.folder), str(call)], timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert load_step_and_best(checkpoints) in ((30, 3.0), (40, 4.0))
    checkpoints.save(50, {"step": 50, **weights(50)}, (5, weights(5)))
    assert load_step_and_best(checkpoints) == (50, 5.0)
    assert len([name for name in file_names(checkpoints) if not name.startswith(".")]) == 6
