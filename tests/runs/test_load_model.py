"""Whom one can ask where it looks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import camkd
from camkd.runs.folder import Run
from camkd.runs.load_model import subject
from camkd.types import InputError


@pytest.fixture
def begun(finished: Any, tmp_path: Path) -> Path:
    """A student's run as it is before its end: no description, no weights but those of checkpoints."""
    folder = tmp_path / "begun"
    shutil.copytree(finished.folder / "student", folder)
    for name in ("model.json", "model.safetensors", "metrics.json"):
        (folder / name).unlink()
    return folder


def test_a_run_and_a_shipped_model_are_what_load_says(finished: Any) -> None:
    assert subject("cam-net-cifar10").info == camkd.load("cam-net-cifar10").info
    found, kept = subject(str(finished.folder)), camkd.load(finished.folder / "student")
    assert found.info == kept.info
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), kept.parameters(), strict=True))


def test_an_unfinished_run_is_its_best_weights_so_far(finished: Any, begun: Path) -> None:
    kept = camkd.load(finished.folder / "student")  # training ends with its best weights
    for source in (begun, begun / "checkpoints"):
        found = subject(str(source))
        assert not found.training
        said, wanted = found.info, kept.info
        assert said is not None
        assert wanted is not None
        for name in (
            "architecture",
            "classes",
            "size",
            "role",
            "method",
            "data",
            "data_fingerprint",
            "seed",
            "teacher",
        ):
            assert getattr(said, name) == getattr(wanted, name), name
        for (name, ours), theirs in zip(found.state_dict().items(), kept.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name


def test_a_control_on_its_way_is_called_one(finished: Any, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    shutil.copytree(finished.folder / "control", folder)
    (folder / "model.json").unlink()
    found, kept = subject(str(folder)).info, camkd.load(finished.folder / "control").info
    assert found is not None
    assert kept is not None
    assert found.role == kept.role == "control"


def test_a_file_of_a_checkpoint_is_its_own_weights(begun: Path) -> None:
    last = sorted((begun / "checkpoints").glob("last-*.pt"))[-1]
    average = Run(begun).checkpoints.load()[0]["average"]
    found = subject(str(last)).state_dict()
    assert found.keys() == average.keys()
    assert all(torch.equal(found[name], average[name]) for name in found)
    best = sorted((begun / "checkpoints").glob("best-*.pt"))[-1]
    weights = Run(begun).checkpoints.load()[1]
    assert weights is not None
    assert all(torch.equal(value, weights[name]) for name, value in subject(str(best)).state_dict().items())


def test_a_checkpoint_that_is_not_there_or_damaged_is_named(begun: Path) -> None:
    with pytest.raises(InputError, match=r"last-9\.pt is no checkpoint: name the run, or one of best-.*\.pt, last-"):
        subject(str(begun / "checkpoints" / "last-9.pt"))
    last = sorted((begun / "checkpoints").glob("last-*.pt"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{last.name} has .* bytes where .* were written in .*: name another"):
        subject(str(last))


def test_a_run_that_does_not_say_its_classes(begun: Path) -> None:
    (begun / "environment.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="does not say which classes it knows: finish the run"):
        subject(str(begun))


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run folder with a trained model nor a shipped one"):
        subject(str(tmp_path))
