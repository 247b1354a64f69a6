"""Checkpoints: what was kept comes back, whatever ends the process or harms the newest file."""

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

from camkd.runs.checkpoints import KEPT, Checkpoints, CorruptCheckpointWarning
from camkd.types import InputError
from camkd.utils.files import dump_checksummed, load_checksummed
from mischief import Evil


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def weights(value: float) -> dict[str, Any]:
    return {"weight": torch.full((50,), value)}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Three checkpoints, the best weights of the first and the third."""
    kept = Checkpoints(tmp_path)
    for step, epoch in ((10, 1), (20, 1), (30, 3)):
        kept.save(step, {"step": step, **weights(step)}, (epoch, weights(epoch)))
    return kept


def names(kept: Checkpoints) -> list[str]:
    return sorted(path.name for path in kept.folder.iterdir())


def loaded(kept: Checkpoints) -> tuple[int, float]:
    """The step of the state, and what the best weights are."""
    state, best = kept.load()
    assert best is not None
    assert bool((state["weight"] == state["step"]).all())
    return state["step"], float(best["weight"][0])


def test_a_state_comes_back(tmp_path: Path) -> None:
    model, kept = network(), Checkpoints(tmp_path)
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
    assert not kept
    kept.save(1, state)
    assert kept
    back, best = kept.load()
    assert best is None
    assert back.keys() == state.keys()
    assert back["rows"] == state["rows"]
    assert torch.equal(back["random"], torch.get_rng_state())
    twin = network(seed=9)
    twin.load_state_dict(back["model"])
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    other = torch.optim.SGD(twin.parameters(), lr=9.0, momentum=0.9)
    other.load_state_dict(back["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    assert torch.equal(other.state[twin[0].weight]["momentum_buffer"], model[0].weight.grad)


def test_the_newest_two_are_kept_and_the_best_weights_of_each(kept: Checkpoints) -> None:
    assert KEPT == 2
    assert names(kept) == [
        "best-00001.pt", "best-00003.pt", "last-00000020.json", "last-00000020.pt", "last-00000030.json",
        "last-00000030.pt",
    ]  # fmt: skip
    assert loaded(kept) == (30, 3.0)


def test_best_weights_are_written_where_they_are_new(kept: Checkpoints) -> None:
    before = (kept.folder / "best-00003.pt").stat().st_mtime_ns
    kept.save(40, {"step": 40, **weights(40)}, (3, weights(3)))
    assert (kept.folder / "best-00003.pt").stat().st_mtime_ns == before
    assert "best-00001.pt" not in names(kept)  # no checkpoint that is kept names it
    assert loaded(kept) == (40, 3.0)


def test_without_one_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint in .*: leave out --resume"):
        Checkpoints(tmp_path).load()


# --- harm


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.fault("a checkpoint cut, zeroed, flipped or gone")
@pytest.mark.parametrize("harm", [cut, empty, zero, flip, Path.unlink])
@pytest.mark.parametrize("name", ["last-00000030.pt", "last-00000030.json", "best-00003.pt"])
def test_the_one_before_is_used_where_the_newest_is_harmed(
    kept: Checkpoints, name: str, harm: Callable[[Path], None]
) -> None:
    harm(kept.folder / name)
    if (harm, name) == (Path.unlink, "last-00000030.json"):  # as if it had not been written yet
        assert loaded(kept) == (20, 1.0)
        return
    with pytest.warns(CorruptCheckpointWarning, match="last-00000030 is damaged .* going on from last-00000020"):
        assert loaded(kept) == (20, 1.0)
    kept.save(30, {"step": 30, **weights(30)}, (4, weights(4)))
    assert loaded(kept) == (30, 4.0)


@pytest.mark.fault("a flipped byte in a checkpoint")
def test_every_flipped_byte_is_caught(kept: Checkpoints) -> None:
    for path in (kept.folder / "last-00000030.pt", kept.folder / "last-00000030.json"):
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 97)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
            with pytest.warns(CorruptCheckpointWarning):
                assert loaded(kept) == (20, 1.0)
        path.write_bytes(content)
    assert loaded(kept) == (30, 3.0)


@pytest.mark.fault("a checkpoint cut, zeroed, flipped or gone")
def test_where_all_are_harmed_each_is_named(kept: Checkpoints) -> None:
    flip(kept.folder / "last-00000020.pt")
    cut(kept.folder / "last-00000030.pt")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read: last-00000030 .*; last-00000020 .* Delete"):
        kept.load()


@pytest.mark.fault("a pickle with code in it")
def test_one_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    kept, marker = Checkpoints(tmp_path / "run"), tmp_path / "executed"
    kept.save(1, {"weight": torch.zeros(2), "extra": Evil(marker)})
    path = kept.folder / "last-00000001.pt"
    torch.load(path, weights_only=False)  # the danger is there
    assert marker.exists()
    marker.unlink()
    with pytest.raises(InputError, match="cannot be read: UnpicklingError"):
        kept.load()
    assert not marker.exists()


@pytest.mark.fault("a manifest that points elsewhere")
def test_a_manifest_that_names_a_file_elsewhere_reads_nothing_there(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run")
    kept.save(1, {"step": 1})
    (kept.folder / "last-00000001.pt").rename(tmp_path / "elsewhere.pt")
    manifest = kept.folder / "last-00000001.json"
    entry = load_checksummed(manifest)["last"]
    manifest.write_text(dump_checksummed({"last": {**entry, "name": "../elsewhere.pt"}}))
    with pytest.raises(InputError, match=r"elsewhere\.pt is missing"):
        kept.load()


# --- writing that fails


def test_one_that_cannot_be_written_leaves_the_one_before(kept: Checkpoints) -> None:
    before = names(kept)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        kept.save(40, {"step": lambda: 2})
    assert names(kept) == before
    assert loaded(kept) == (30, 3.0)


@pytest.mark.fault("disk full in a checkpoint")
def test_a_full_disk_leaves_the_one_before_and_names_file_and_bytes(kept: Checkpoints) -> None:
    before, limits = names(kept), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large after 3,000 bytes.*last-00000040\.pt"):
            kept.save(40, {"step": 40, "weight": torch.rand(5000)}, (4, weights(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(kept) == before
    assert loaded(kept) == (30, 3.0)


DIES = """
import os, signal, sys, torch
from pathlib import Path
from camkd.runs.checkpoints import Checkpoints

folder, call, seen = sys.argv[1], int(sys.argv[2]), 0

def die(event, arguments):
    global seen
    seen += event.startswith(("open", "os.", "tempfile.")) and folder in repr(arguments)
    if seen == call:
        seen += 1  # the kill is an event too
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
weights = {"weight": torch.full((50,), 4.0)}
Checkpoints(Path(folder)).save(40, {"step": 40, "weight": torch.full((50,), 40.0)}, (4, weights))
"""


@pytest.mark.parametrize("call", [1, 2, 3, 5, 7, 9, 11, 13, 15, 17, 20, 24])
def test_a_kill_in_the_middle_leaves_a_checkpoint(kept: Checkpoints, call: int) -> None:
    """Another process saves the next one, and dies when it touches a file for the ``call``-th time."""
    ended = subprocess.run([sys.executable, "-c", DIES, str(kept.folder), str(call)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert loaded(kept) in ((30, 3.0), (40, 4.0))
    kept.save(50, {"step": 50, **weights(50)}, (5, weights(5)))
    assert loaded(kept) == (50, 5.0)
    assert len([name for name in names(kept) if not name.startswith(".")]) == 6
