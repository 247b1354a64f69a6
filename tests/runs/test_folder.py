"""Run folders: what is saved comes back whole, and what is not whole is said so."""

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
from camkd.models.io import INFO_FILE, WEIGHTS_FILE, ModelInfo, save
from camkd.runs import load_model
from camkd.runs.folder import Run
from camkd.runs.load_model import find_model_folder, load, read_model_info, shipped_models
from camkd.types import InputError
from mischief import Evil, umask

SAID = ModelInfo(
    architecture="resnet8",
    classes=("Katze", "犬", "bird"),
    size=8,
    params=1,
    macs=2,
    role="student",
    method="cam-kd",
    data="shapes",
    data_fingerprint="abc",
    seed=3,
    teacher="/somewhere/teacher",
)


def network(seed: int = 5) -> nn.Module:
    model = build("resnet8", 3, 8, seed=seed)
    model.set_normalization([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    model(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))  # statistics of its own
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    save(network(), folder, SAID)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A run folder with a model, the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


# --- weights


def test_a_model_comes_back_with_every_number(folder: Path) -> None:
    model, back = network(), load(folder)
    assert type(back) is type(model)
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
        assert back.state_dict()[name].dtype == value.dtype
    assert not any(module.training for module in back.modules())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(back(x), model.eval()(x))
    assert camkd.load is load


def test_a_description_comes_back_with_the_weights_checksum(folder: Path) -> None:
    said = read_model_info(folder)
    assert replace(said, sha256="") == SAID
    assert len(said.sha256) == 64
    assert sorted(path.name for path in folder.iterdir()) == [INFO_FILE, WEIGHTS_FILE]


def test_saving_does_not_touch_the_model_and_takes_any_memory_format(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    save(model, tmp_path, SAID)
    assert all(module.training for module in model.modules())
    assert torch.equal(load(tmp_path).state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])


def test_saving_again_replaces_both_files(folder: Path) -> None:
    save(network(seed=6), folder, replace(SAID, seed=6))
    assert read_model_info(folder).seed == 6
    assert torch.equal(load(folder).state_dict()["fc.weight"], network(6).state_dict()["fc.weight"])


@pytest.mark.fault("a flipped byte in weights")
@pytest.mark.parametrize("place", [0.01, 0.5, 0.999])
def test_a_flipped_byte_is_found(folder: Path, place: float) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not what was written"):
        load(folder)


@pytest.mark.fault("weights cut or gone")
def test_weights_cut_short_or_missing_are_found(folder: Path) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(content[:-1])
    with pytest.raises(InputError, match="is not what was written"):
        load(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"has a model\.json but no model\.safetensors"):
        load(folder)


@pytest.mark.fault("a hostile description")
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
def test_a_broken_description_is_an_input_error(folder: Path, text: str | bytes) -> None:
    (folder / INFO_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_model_info, load):
        with pytest.raises(InputError, match=r"model\.json does not describe a model"):
            read(folder)


def test_an_entry_from_a_later_version_is_passed_over(folder: Path) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, "colour": "blue"}))
    assert read_model_info(folder).seed == SAID.seed
    load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vgg"}, "there is no model 'vgg'"),
        ({"architecture": "resnet20"}, "fit"),
        ({"classes": ["a", "b"]}, "fit"),
        ({"architecture": "wrn-16-4"}, "fit"),
    ],
)
def test_weights_that_do_not_fit_their_description_are_an_input_error(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(InputError, match=message):
        load(folder)


def resealed(folder: Path, content: bytes) -> None:
    """Put ``content`` where the weights are, with a description that says it belongs there."""
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / INFO_FILE).write_text(json.dumps({**values, "sha256": hashlib.sha256(content).hexdigest()}))


def tensors(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with such a header."""
    return struct.pack("<Q", len(header) if length is None else length) + header.encode() + data


HOSTILE = {
    "nothing": b"",
    "a header of 2^63 bytes": tensors("{}", length=1 << 63),
    "a header longer than the file": tensors("{}", length=1000),
    "no JSON": tensors("{x"),
    "deep JSON": tensors('{"a":' * 50_000),
    "half a surrogate": tensors('{"\\ud800": {"dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4)),
    "a number type that there is not": tensors('{"a":{"dtype":"PY","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "data that is not there": tensors('{"a":{"dtype":"F32","shape":[250],"data_offsets":[0,1000]}}'),
    "offsets backwards": tensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
    "a shape beyond all memory": tensors(
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', bytes(4)
    ),
    "two tensors in one place": tensors(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "tensors of no use": tensors('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
}


@pytest.mark.fault("hostile weights")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(folder: Path, name: str) -> None:
    resealed(folder, HOSTILE[name])
    with pytest.raises(InputError, match=r"model\.safetensors does not fit"):
        load(folder)


@pytest.mark.fault("a pickle with code in it")
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(folder: Path, how: str) -> None:
    marker, stream = folder / "executed", io.BytesIO()
    if how == "torch":
        torch.save({"weight": torch.zeros(2), "extra": Evil(marker)}, stream)
    else:
        pickle.dump(Evil(marker), stream)
    resealed(folder, stream.getvalue())
    with pytest.raises(InputError, match=r"model\.safetensors does not fit"):
        load(folder)
    assert not marker.exists()


@pytest.mark.fault("a hostile description")
@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 10**9}, {"size": "8"}, {"size": True}, {"classes": ["a"]}, {"classes": [1, 2, 3]},
     {"classes": "abc"[:1]}, {"classes": ["a", "b", "\ud800"]}, {"architecture": 3}, {"sha256": None}, {"params": 1.5}],
)  # fmt: skip
def test_a_description_of_nothing_that_could_be_is_an_input_error(folder: Path, change: dict[str, Any]) -> None:
    values = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    (folder / INFO_FILE).write_text(json.dumps({**values, **change}))
    with pytest.raises(InputError, match=r"model\.json does not describe a model"):
        load(folder)


# --- where a model lies


def test_a_train_folder_means_its_student_and_a_name_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(network(), tmp_path / "demo" / "student", SAID)
    save(network(), tmp_path / "shipped", SAID)
    monkeypatch.setattr(
        load_model, "shipped_models", lambda: {"tiny": tmp_path / "shipped", "tinier": tmp_path / "shipped"}
    )
    assert find_model_folder(tmp_path / "demo") == tmp_path / "demo" / "student"
    assert find_model_folder(str(tmp_path / "demo" / "student")) == tmp_path / "demo" / "student"
    assert find_model_folder("tiny") == tmp_path / "shipped"
    load("tiny")


def test_an_unknown_source_names_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_model, "shipped_models", lambda: {"tiny": tmp_path, "tinier": tmp_path})
    for source in ("nothing", tmp_path / "nowhere", tmp_path):
        for read in (find_model_folder, read_model_info, load):
            with pytest.raises(InputError, match="shipped: tiny, tinier") as caught:
                read(source)
            assert repr(str(source)) in str(caught.value)
    monkeypatch.setattr(load_model, "shipped_models", dict)
    with pytest.raises(InputError, match="shipped: none"):
        load("nothing")


def test_every_shipped_model_loads_and_is_what_it_says() -> None:
    for name in shipped_models():
        said, model = read_model_info(name), load(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == said.params, name
        assert model(torch.rand(1, 3, said.size, said.size)).shape == (1, len(said.classes)), name
        assert said.teacher is None or not Path(said.teacher).is_absolute(), f"{name}: a path of this machine"


# --- files


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_of_a_run_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    run = Run(tmp_path / "run")
    with umask(mask):
        run.start({"epochs": 3}, {"pictures": "abc"})
        save(network(), run.folder, SAID)
        run.checkpoints.save(1, {"step": 1}, (1, {"weight": torch.zeros(1)}))
        run.write_history([{"epoch": 1}])
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(mode)
    )


# --- numbers and settings


def test_history_and_metrics_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_history() == []
    assert run.read_metrics() == {}
    rows = [{"epoch": e, "train_loss": 1 / e, "terms": {"ce": 0.1 + 0.2}, "name": "é\u2028"} for e in (1, 2, 3)]
    run.write_history(rows)
    assert run.read_history() == rows
    assert len(run.history.read_text(encoding="utf-8").split("\n")) == 4, "one line an epoch"
    run.metrics.write_text(json.dumps({"accuracy": 0.5}))
    assert run.read_metrics() == {"accuracy": 0.5}


def test_a_number_that_is_none_is_refused_and_the_old_history_stays(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_history([{"epoch": 1}])
    with pytest.raises(ValueError, match="JSON"):
        run.write_history([{"epoch": 1}, {"epoch": 2, "train_loss": math.nan}])
    assert run.read_history() == [{"epoch": 1}]


def test_the_configuration_comes_back_and_the_environment_is_written(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.config() == {}
    config = {"data": "Bilder/Übung", "epochs": 30, "lr": 0.1, "weight_decay": 5e-4, "size": None, "clip": 1e-8}
    run.start(config, {"pictures": "abc"})
    assert run.config() == config
    assert list(run.config()) == list(config)
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["threads"] == torch.get_num_threads()


def test_a_run_is_finished_when_it_has_figures_and_a_model(folder: Path, tmp_path: Path) -> None:
    assert not Run(tmp_path / "empty").finished
    assert not Run(folder).finished
    Run(folder).metrics.write_text("{}")
    assert Run(folder).finished
    (folder / INFO_FILE).unlink()
    assert not Run(folder).finished


@pytest.mark.fault("a damaged file of a run")
@pytest.mark.parametrize("text", ["", "[", "[]", "3", "{" * 100_000, "a: !!python/name:os.system", "a: [", "\0"])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "metrics.jsonl", "environment.json"])
def test_a_damaged_file_of_a_run_is_an_input_error(tmp_path: Path, name: str, text: str) -> None:
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
    advice = "delete it" if name.startswith("metrics") else "bring it back"
    with pytest.raises(InputError, match=rf"{re.escape(name)} is damaged \(.*\): {advice}"):
        read()
