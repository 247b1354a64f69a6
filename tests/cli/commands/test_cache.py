"""The commands ``cache list|precompute|verify|prune``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from camkd.cli.progress import ProgressReporter
from camkd.data.augment import get_policy
from camkd.data.dataset import Dataset
from camkd.distill.cache import Manifest, RecordFormat, Store, precompute, store_folder
from camkd.models import build
from camkd.train.feature_cache import feature_folder
from camkd.types import Prediction
from support.cli import camkd
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

RECORD_BYTES = 8 + 2 * 3 * 4 * 4  # a checksum and three maps of 4x4 cells


@pytest.fixture(scope="module")
def train_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like one of ``camkd train``: a ResNet-8 as the teacher, a CAM-Net as the student."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    save_untrained(folder / "teacher", "resnet8", easy)
    save_untrained(folder / "student", "cam-net", easy, role="student")
    return folder


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stores of an empty cache for each test."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


@pytest.fixture
def precompute_arguments(train_folder: Path, easy_folder: Path) -> list[str]:
    """The command that computes two epochs of teacher outputs on `easy_folder`."""
    options = ["--epochs", "2", "--batch-size", "4", "--precision", "fp32", "--device", "cpu", "--json"]
    return ["cache", "precompute", "--teacher", str(train_folder), "--data", str(easy_folder), *options]


def run_json(*arguments: str) -> dict[str, Any]:
    return camkd(*arguments, "--json").json


def make_store(name: str, last_used: int, num_samples: int) -> Path:
    """Make a store with the outputs for one image, and set its time of last use."""
    record_format = RecordFormat(3, 2, 2)
    manifest = Manifest("runs/teacher", "resnet8", "easy", "none", 0, "fp32", num_samples, record_format)
    store = Store(store_folder(name), manifest)
    store.write(0, np.array([1]), record_format.encode(Prediction(torch.ones(1, 3), torch.ones(1, 3, 2, 2))))
    os.utime(store.folder / "store.json", (last_used, last_used))
    return store.folder


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def store_names(stores: Path) -> list[str]:
    return sorted(path.name for path in stores.iterdir())


# --- precompute, list, verify


def test_precompute_list_verify_and_prune(precompute_arguments: list[str], stores: Path, train_folder: Path) -> None:
    assert run_json("cache", "list") == {}
    result = run_json(*precompute_arguments)
    (folder,) = stores.iterdir()
    assert result == {"folder": str(folder), "epochs": [0, 1], "bytes": 2 * 96 * RECORD_BYTES}
    assert [path.stat().st_size for path in folder.glob("*.bin")] == [96 * RECORD_BYTES] * 2
    assert run_json("cache", "list") == {
        folder.name: {
            "kind": "outputs",
            "teacher": str((train_folder / "teacher").resolve()),
            "architecture": "resnet8",
            "data": "easy",
            "augment": "light",
            "augment_seed": 0,
            "precision": "fp32",
            "num_samples": 96,
            "map": [4, 4],
            "classes": 3,
            "epochs": 2,
            "bytes": folder_bytes(folder),
        }
    }
    table = camkd("cache", "list").out
    assert all(cell in table for cell in (folder.name[:12], "resnet8", "easy", "light", "4x4", "fp32"))
    assert run_json("cache", "verify") == {folder.name: {"valid": 192, "corrupt": 0}}
    assert run_json("cache", "verify", folder.name[:5]) == {folder.name: {"valid": 192, "corrupt": 0}}
    size = folder_bytes(folder)
    assert run_json("cache", "prune", folder.name[:5]) == {"removed": [folder.name], "bytes": size, "dry_run": False}
    assert store_names(stores) == []
    assert run_json("cache", "list") == run_json("cache", "verify") == {}


def test_corrupt_output_is_removed_by_verify_and_computed_again(precompute_arguments: list[str]) -> None:
    folder = Path(run_json(*precompute_arguments)["folder"])
    path = folder / "epoch-0001.bin"
    intact = path.read_bytes()
    corrupt = bytearray(intact)
    corrupt[40 * RECORD_BYTES + 33] ^= 4
    path.write_bytes(corrupt)
    output = camkd("cache", "verify", "--json")
    assert output.json == {folder.name: {"valid": 191, "corrupt": 1}}
    assert "1 corrupt" in output.err
    assert run_json("cache", "verify") == {folder.name: {"valid": 191, "corrupt": 0}}
    assert run_json(*precompute_arguments)["epochs"] == [0, 1]
    assert path.read_bytes() == intact
    assert run_json("cache", "verify") == {folder.name: {"valid": 192, "corrupt": 0}}


def test_corrupt_output_is_computed_again_without_verify(precompute_arguments: list[str]) -> None:
    path = Path(run_json(*precompute_arguments)["folder"]) / "epoch-0001.bin"
    intact = path.read_bytes()
    corrupt = bytearray(intact)
    corrupt[40 * RECORD_BYTES + 33] ^= 4
    path.write_bytes(corrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        output = camkd(*precompute_arguments)
    assert output.status == 0
    assert "camkd: 1 of the cached teacher outputs in" in output.err
    assert path.read_bytes() == intact


def test_interrupted_precomputing_resumes(
    precompute_arguments: list[str], stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(reporter: ProgressReporter, done: int, total: int, description: str) -> None:
        if description == "computing teacher outputs" and done >= 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReporter, "progress", interrupt)
        output = camkd(*precompute_arguments)
    assert (output.status, output.out) == (130, "")
    *_, message, last_line = output.err.splitlines()
    assert "are kept" in message
    assert last_line == "camkd: interrupted."
    (folder,) = stores.iterdir()
    assert run_json("cache", "verify") == {folder.name: {"valid": 64, "corrupt": 0}}
    assert run_json(*precompute_arguments, "--dry-run")["computed_before"] == 64
    assert run_json(*precompute_arguments)["epochs"] == [0, 1]
    assert run_json("cache", "verify") == {folder.name: {"valid": 192, "corrupt": 0}}


def test_precompute_with_a_small_budget(precompute_arguments: list[str], stores: Path) -> None:
    output = camkd(*precompute_arguments, "--cache-budget", f"{96 * RECORD_BYTES - 1}B")
    assert output.status == 2
    assert f"got {96 * RECORD_BYTES - 1}B" in output.last_line
    assert not stores.exists()
    output = camkd(*precompute_arguments, "--cache-budget", f"{96 * RECORD_BYTES}B")
    assert output.json["epochs"] == [0]
    assert "is full" in output.last_line


# --- dry run


def test_dry_run_estimates_the_cost(precompute_arguments: list[str], stores: Path) -> None:
    output = camkd(*precompute_arguments, "--dry-run")
    cost = output.json
    speed = cost.pop("images_per_second")
    seconds = cost.pop("seconds")
    assert cost == {
        "bytes_per_image": RECORD_BYTES,
        "images": 96,
        "epochs": 2,
        "computed_before": 0,
        "bytes_per_epoch": 96 * RECORD_BYTES,
        "bytes": 2 * 96 * RECORD_BYTES,
    }
    assert seconds == pytest.approx(192 / speed)
    assert f"96 images x 2 epochs x {RECORD_BYTES} bytes = 20.0 kB (10.0 kB per epoch)" in output.err
    assert not stores.exists()
    assert run_json(*precompute_arguments)["bytes"] == cost["bytes"]
    after = run_json(*precompute_arguments, "--dry-run")
    assert (after["computed_before"], after["seconds"]) == (192, 0)


@pytest.mark.usefixtures("without_data")
def test_dry_run_without_images(stores: Path) -> None:
    options = ["--size", "16", "--epochs", "3", "--batch-size", "4", "--precision", "fp32", "--augment", "strong"]
    arguments = ["cache", "precompute", "--teacher", "resnet8", "--dry-run", *options]
    cost = run_json(*arguments, "--images", "1.28k", "--classes", "1000")
    record_bytes = 8 + 10 * 4 * 4 * 2 + 1000 * 2 + 10 * 4
    assert record_bytes % 8 == 0
    assert cost["bytes_per_image"] == record_bytes
    assert (cost["images"], cost["epochs"], cost["computed_before"]) == (1280, 3, 0)
    assert (cost["bytes_per_epoch"], cost["bytes"]) == (1280 * record_bytes, 3 * 1280 * record_bytes)
    assert cost["seconds"] == pytest.approx(3 * 1280 / cost["images_per_second"])
    within_budget = run_json(*arguments, "--images", "1.28M", "--cache-budget", "25MB")
    assert within_budget["bytes_per_image"] == 8 + 10 * 4 * 4 * 2
    assert within_budget["epochs"] == within_budget["bytes"] == 0
    assert not stores.exists()


@pytest.mark.parametrize("is_shipped", [False, True], ids=["folder of camkd train", "shipped model"])
def test_dry_run_without_images_finds_the_teacher(
    train_folder: Path, is_shipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher of a folder of ``camkd train`` is its ``teacher/``, not its student."""
    names: list[str] = []

    def record(name: str, *sizes: int, **options: Any) -> nn.Module:
        names.append(name)
        return build(name, *sizes, **options)

    monkeypatch.setattr(precompute, "build", record)
    teacher = "cam-net-cifar10" if is_shipped else str(train_folder)
    options = ["--size", "16", "--batch-size", "4", "--precision", "fp32", "--images", "1k", "--dry-run"]
    run_json("cache", "precompute", "--teacher", teacher, *options)
    assert names == ["cam-net" if is_shipped else "resnet8"]


def test_dry_run_without_images_uses_classes_and_size_of_a_trained_teacher() -> None:
    options = ["--teacher", "cam-net-cifar10", "--images", "100", "--dry-run", "--batch-size", "4"]
    assert run_json("cache", "precompute", *options)["bytes_per_image"] == 8 + 10 * 8 * 8 * 2


# --- prune and last use


@pytest.mark.parametrize(
    ("keys", "kept", "less", "removed"),
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
def test_prune_removes_named_or_least_recently_used_stores(
    keys: list[str], kept: list[str] | None, less: int, removed: list[str], stores: Path
) -> None:
    """``--keep`` is the size of the stores ``kept``, minus ``less`` bytes. Stores are listed by their last use."""
    folders = {
        name: make_store(name, 1000 + number, 20 + number) for number, name in enumerate(("aa22", "bb", "aa11", "cc33"))
    }
    sizes = {name: folder_bytes(folder) for name, folder in folders.items()}
    limit = [] if kept is None else ["--keep", f"{sum(sizes[name] for name in kept) - less}B"]
    expected = {"removed": removed, "bytes": sum(sizes[name] for name in removed)}
    arguments = ["cache", "prune", *keys, *limit]
    assert run_json(*arguments, "--dry-run") == {**expected, "dry_run": True}
    assert store_names(stores) == sorted(folders)
    assert run_json(*arguments) == {**expected, "dry_run": False}
    assert store_names(stores) == sorted(set(folders) - set(removed))


def test_prune_parses_sizes(stores: Path) -> None:
    make_store("one", 1000, 20)
    assert run_json("cache", "prune", "--keep", "1.5TB")["removed"] == []
    output = camkd("cache", "prune", "--keep", "0 GB")
    assert (output.status, output.out) == (0, "")
    assert output.err.startswith("freed ")
    assert "one" in output.err
    assert store_names(stores) == []


def test_list_and_verify_do_not_change_the_time_of_last_use() -> None:
    folders = [make_store(name, 1000 + number, 20) for number, name in enumerate(("zz", "mm", "aa"))]
    last_used = [(folder / "store.json").stat().st_mtime for folder in folders]
    assert list(run_json("cache", "list")) == ["zz", "mm", "aa"]
    assert list(run_json("cache", "verify")) == ["zz", "mm", "aa"]
    assert [(folder / "store.json").stat().st_mtime for folder in folders] == last_used


def test_precompute_changes_the_time_of_last_use(precompute_arguments: list[str]) -> None:
    folder = Path(run_json(*precompute_arguments)["folder"])
    os.utime(folder / "store.json", (1000, 1000))
    make_store("other", 2000, 20)
    run_json(*precompute_arguments)
    assert list(run_json("cache", "list")) == ["other", folder.name]


def test_features_are_listed_and_pruned_with_the_outputs(easy_folder: Path, tmp_path: Path) -> None:
    make_store("old", 1000, 20)
    make_store("new", 9_000_000_000, 20)
    torch.save(build("resnet8", 3, 16).state_dict(), tmp_path / "weights.pth")
    arguments = ["--data", str(easy_folder), "--size", "16", "--device", "cpu", "--precision", "fp32"]
    start = ["--model", "resnet8", "--weights", str(tmp_path / "weights.pth"), "--train", "head", "--head-views", "2"]
    camkd("teacher", *arguments, *start, "--out", str(tmp_path / "run"))
    caches = run_json("cache", "list")
    (key,) = set(caches) - {"old", "new"}
    folder = feature_folder(key)
    assert list(caches) == ["old", key, "new"]
    assert caches[key] == {
        "kind": "features",
        "architecture": "resnet8",
        "image_size": 16,
        "augmentation": get_policy("light").key(),
        "augment_seed": 0,
        "precision": "fp32",
        "views": 2,
        "bytes": folder_bytes(folder),
    }
    assert "16 pixels" in camkd("cache", "list").out
    assert list(run_json("cache", "verify")) == ["old", "new"]
    assert run_json("cache", "prune", "--keep", f"{folder_bytes(store_folder('new'))}B")["removed"] == ["old", key]
    assert not folder.exists()


def test_corrupt_features_are_reported_and_can_be_pruned() -> None:
    folder = feature_folder("broken")
    folder.mkdir(parents=True)
    (folder / "features.json").write_text('{"architecture": ', encoding="utf-8")
    output = camkd("cache", "list", "--json")
    assert (output.json, str(folder) in output.err) == ({}, True)
    assert run_json("cache", "prune", "broken")["removed"] == ["broken"]


def test_store_with_a_corrupt_manifest_is_reported_and_can_be_pruned(stores: Path) -> None:
    make_store("good", 1000, 20)
    (make_store("truncated", 2000, 20) / "store.json").write_text('{"teacher": "th', encoding="utf-8")
    for command in ("list", "verify"):
        output = camkd("cache", command, "--json")
        assert str(stores / "truncated") in output.err
        assert list(output.json) == ["good"]
    assert run_json("cache", "prune", "truncated")["removed"] == ["truncated"]
    assert list(run_json("cache", "list")) == ["good"]


# --- wrong input


@pytest.mark.usefixtures("without_data")
@pytest.mark.parametrize("names", [[], ["existing"]], ids=["empty cache", "one store"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prune", "must have keys or --keep, got neither"),
        ("prune --dry-run", "must have keys or --keep, got neither"),
        ("prune nope", "A key must be one of 'camkd cache list', got 'nope'"),
        ("verify nope", "A key must be one of 'camkd cache list', got 'nope'"),
        ("prune --keep much", "keep must be a quantity, got 'much'"),
        ("prune --keep -1GB", "--keep"),
        ("precompute --images 1M", "--images must be given with --dry-run"),
        ("precompute --images many --dry-run --teacher resnet8", "images must be a quantity, got 'many'"),
        ("precompute --images 0 --dry-run --teacher resnet8", "images must be 1 or more, got 0"),
        ("precompute --images 5 --dry-run --teacher nope", "'nope'"),
        ("precompute --images 5 --dry-run --teacher resnet8 --size -4", "size must be 1 or more, got -4"),
        ("precompute --images 5 --dry-run --teacher resnet8 --size 0", "size must be 1 or more, got 0"),
        ("precompute --images 5 --dry-run --teacher resnet8 --classes 0", "classes must be 1 or more, got 0"),
        ("precompute --classes 5", "--classes must be given with --images, got --classes 5"),
        ("precompute --processes 0", "processes must be 1 or more, got 0"),
        ("precompute --epochs 0", "epochs must be 1 or more, up to a billion, got 0"),
        ("precompute --cache-map-size 0", "cache_map_size must be 1 or more, up to a billion, got 0"),
        ("precompute --cache-budget some", "cache_budget must be a quantity, got 'some'"),
        ("precompute --augment wild", "got 'wild'"),
        ("precompute --teacher nope", "'nope'"),
        ("precompute --lr 0.1", "--lr"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: str, message: str, names: list[str], stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names:
        make_store(name, 1000, 20)
    assert message in camkd("cache", *arguments.split()).error
    assert (store_names(stores) if stores.exists() else []) == names
