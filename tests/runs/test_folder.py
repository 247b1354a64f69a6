"""Run folders: files round-trip, and corrupt files raise input errors."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import camkd
from camkd.models import build
from camkd.models.io import INFO_FILE, WEIGHTS_FILE, save
from camkd.runs import loading
from camkd.runs.folder import Run
from camkd.runs.loading import find_model_folder, load, read_model_info, shipped_models
from camkd.types import InputError
from support.fault_injection import TouchOnUnpickle, umask
from support.model_info import INFO


def network(seed: int = 5) -> nn.Module:
    model = build("resnet8", 3, 8, seed=seed)
    model.set_normalization([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    model(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # updates the batch norm statistics
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    save(network(), folder, INFO)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the run folder with a model, which the test may change."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


# --- weights


def test_model_round_trip(folder: Path) -> None:
    model = network()
    loaded = load(folder)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype
    assert not any(module.training for module in loaded.modules())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(x), model.eval()(x))
    assert camkd.load is load


def test_model_info_round_trip_adds_the_checksum_of_the_weights(folder: Path) -> None:
    info = read_model_info(folder)
    assert replace(info, sha256="") == INFO
    assert info.sha256 == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == [INFO_FILE, WEIGHTS_FILE]


def test_save_keeps_the_mode_and_accepts_channels_last(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    save(model, tmp_path, INFO)
    assert all(module.training for module in model.modules())
    assert torch.equal(load(tmp_path).state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])


def test_second_save_replaces_both_files(folder: Path) -> None:
    save(network(seed=6), folder, replace(INFO, seed=6))
    assert read_model_info(folder).seed == 6
    assert torch.equal(load(folder).state_dict()["fc.weight"], network(6).state_dict()["fc.weight"])


@pytest.mark.fault("corrupted byte in the weights")
@pytest.mark.parametrize("position", [0.01, 0.5, 0.999])
def test_flipped_bit_in_the_weights_is_an_input_error(folder: Path, position: float) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[int(position * len(content))] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder / WEIGHTS_FILE} must be intact, got another checksum. Train the run again or restore the file."
    )


@pytest.mark.fault("truncated or missing weights")
def test_truncated_or_missing_weights_are_an_input_error(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors must be intact"):
        load(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"must hold model\.safetensors, got only model\.json"):
        load(folder)


@pytest.mark.fault("hostile model.json")
@pytest.mark.parametrize(
    "text",
    [
        '{"architecture": "resn',
        "",
        "[]",
        "3",
        '"resnet8"',
        "{}",
        json.dumps({"classes": ["a"], "size": 8}),
        json.dumps({"architecture": "resnet8", "classes": None}),
        b"\xff\xfe{}",
    ],
)
def test_invalid_model_info_is_an_input_error(folder: Path, text: str | bytes) -> None:
    (folder / INFO_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_model_info, load):
        with pytest.raises(InputError, match=r"model\.json must be a valid model description"):
            read(folder)


def test_unknown_entry_of_model_info_is_ignored(folder: Path) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, "colour": "blue"}))
    assert read_model_info(folder).seed == INFO.seed
    load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vgg"}, "'vgg'"),
        ({"architecture": "resnet20"}, r"model\.safetensors must hold weights of 'resnet20'"),
        ({"classes": ["a", "b"]}, r"model\.safetensors must hold weights of 'resnet8'"),
        ({"architecture": "wrn-16-4"}, r"model\.safetensors must hold weights of 'wrn-16-4'"),
    ],
)
def test_weights_that_do_not_fit_the_model_info_are_an_input_error(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(InputError, match=message):
        load(folder)


def replace_weights(folder: Path, content: bytes) -> None:
    """Write ``content`` as the weights, with a matching checksum in ``model.json``."""
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / INFO_FILE).write_text(json.dumps({**values, "sha256": hashlib.sha256(content).hexdigest()}))


def safetensors_file(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with the given header, and optionally a wrong header length."""
    return struct.pack("<Q", len(header) if length is None else length) + header.encode() + data


HOSTILE = {
    "empty file": b"",
    "header of 2^63 bytes": safetensors_file("{}", length=1 << 63),
    "header longer than the file": safetensors_file("{}", length=1000),
    "invalid JSON": safetensors_file("{x"),
    "deeply nested JSON": safetensors_file('{"a":' * 50_000),
    "lone surrogate": safetensors_file('{"\\ud800": {"dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4)),
    "unknown dtype": safetensors_file('{"a":{"dtype":"PY","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "missing data": safetensors_file('{"a":{"dtype":"F32","shape":[250],"data_offsets":[0,1000]}}'),
    "reversed offsets": safetensors_file('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
    "shape larger than memory": safetensors_file(
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', bytes(4)
    ),
    "overlapping tensors": safetensors_file(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "unexpected tensor": safetensors_file('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
}


@pytest.mark.fault("hostile weights")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_an_input_error(folder: Path, name: str) -> None:
    replace_weights(folder, HOSTILE[name])
    with pytest.raises(InputError, match=r"model\.safetensors must hold weights of"):
        load(folder)


@pytest.mark.fault("pickle that executes code")
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickled_weights_are_refused_without_executing_code(folder: Path, writer: str) -> None:
    marker = folder / "executed"
    stream = io.BytesIO()
    if writer == "torch":
        torch.save({"weight": torch.zeros(2), "extra": TouchOnUnpickle(marker)}, stream)
    else:
        pickle.dump(TouchOnUnpickle(marker), stream)
    replace_weights(folder, stream.getvalue())
    with pytest.raises(InputError, match=r"model\.safetensors must hold weights of"):
        load(folder)
    assert not marker.exists()


@pytest.mark.fault("hostile model.json")
@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 10**9}, {"size": "8"}, {"size": True}, {"classes": ["a"]}, {"classes": [1, 2, 3]},
     {"classes": "abc"[:1]}, {"classes": ["a", "b", "\ud800"]}, {"architecture": 3}, {"sha256": None}, {"params": 1.5}],
)  # fmt: skip
def test_model_info_out_of_range_is_an_input_error(folder: Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(InputError, match=r"model\.json must be a valid model description"):
        load(folder)


# --- finding a model


def test_find_model_folder_of_train_folder_and_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(network(), tmp_path / "demo" / "student", INFO)
    save(network(), tmp_path / "shipped", INFO)
    monkeypatch.setattr(
        loading, "shipped_models", lambda: {"tiny": tmp_path / "shipped", "tinier": tmp_path / "shipped"}
    )
    assert find_model_folder(tmp_path / "demo") == tmp_path / "demo" / "student"
    assert find_model_folder(str(tmp_path / "demo" / "student")) == tmp_path / "demo" / "student"
    assert find_model_folder("tiny") == tmp_path / "shipped"
    load("tiny")


def test_unknown_source_is_an_input_error_that_lists_shipped_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "shipped_models", lambda: {"tiny": tmp_path, "tinier": tmp_path})
    for source in ("nothing", tmp_path / "nowhere", tmp_path):
        for read in (find_model_folder, read_model_info, load):
            with pytest.raises(InputError, match="shipped: tiny, tinier") as caught:
                read(source)
            assert repr(str(source)) in str(caught.value)
    monkeypatch.setattr(loading, "shipped_models", dict)
    with pytest.raises(InputError, match="shipped: none"):
        load("nothing")


def test_shipped_models_match_their_info() -> None:
    for name in shipped_models():
        info = read_model_info(name)
        model = load(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == info.params, name
        assert model(torch.rand(1, 3, info.size, info.size)).shape == (1, len(info.classes)), name
        assert info.teacher is None or not Path(info.teacher).is_absolute(), f"{name}: an absolute path"


# --- file modes


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_of_a_run_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    run = Run(tmp_path / "run")
    with umask(mask):
        run.start({"epochs": 3}, {"data_fingerprint": "abc"})
        save(network(), run.folder, INFO)
        run.checkpoints.save(1, {"step": 1}, (1, {"weight": torch.zeros(1)}))
        run.write_history([{"epoch": 1}])
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(mode)
    )


# --- history, metrics and configuration


def test_history_and_metrics_round_trip(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_history() == []
    assert run.read_metrics() == {}
    rows = [{"epoch": e, "train_loss": 1 / e, "terms": {"ce": 0.1 + 0.2}, "name": "é\u2028"} for e in (1, 2, 3)]
    run.write_history(rows)
    assert run.read_history() == rows
    assert len(run.history_file.read_text(encoding="utf-8").split("\n")) == 4, "one line per epoch"
    run.metrics_file.write_text(json.dumps({"accuracy": 0.5}))
    assert run.read_metrics() == {"accuracy": 0.5}


def test_nan_is_refused_and_the_previous_history_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_history([{"epoch": 1}])
    with pytest.raises(ValueError, match="JSON"):
        run.write_history([{"epoch": 1}, {"epoch": 2, "train_loss": math.nan}])
    assert run.read_history() == [{"epoch": 1}]


def test_start_writes_configuration_and_environment(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.config() == {}
    config = {"data": "Bilder/Übung", "epochs": 30, "lr": 0.1, "weight_decay": 5e-4, "size": None, "clip": 1e-8}
    run.start(config, {"data_fingerprint": "abc"})
    assert run.config() == config
    assert list(run.config()) == list(config)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["threads"] == torch.get_num_threads()


def test_run_is_finished_once_it_has_metrics_and_a_model(folder: Path, tmp_path: Path) -> None:
    assert not Run(tmp_path / "empty").finished
    assert not Run(folder).finished
    Run(folder).metrics_file.write_text("{}")
    assert Run(folder).finished
    (folder / INFO_FILE).unlink()
    assert not Run(folder).finished


@pytest.mark.fault("corrupt file of a run")
@pytest.mark.parametrize("text", ["", "[", "[]", "3", "{" * 100_000, "a: !!python/name:os.system", "a: [", "\0"])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "metrics.jsonl", "environment.json"])
def test_corrupt_file_of_a_run_is_an_input_error(tmp_path: Path, name: str, text: str) -> None:
    run = Run(tmp_path)
    (tmp_path / name).write_text(text)
    read = {
        "config.yaml": run.config,
        "metrics.json": run.read_metrics,
        "metrics.jsonl": run.read_history,
        "environment.json": run.provenance,
    }[name]
    if (name, text) == ("metrics.jsonl", ""):
        assert read() == []
        return
    advice = "Delete it" if name.startswith("metrics") else "Restore it"
    with pytest.raises(InputError, match=rf"{re.escape(name)} must be intact, got a corrupt file \(.*\)\. {advice}"):
        read()
