"""Weights from other libraries: nesting, prefixes, class names, and files that are refused."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from camkd.models import build
from camkd.models.foreign_weights import check_fit, parse_classes, read_weights, without_prefix
from camkd.types import InputError


def state_dict(seed: int = 0) -> dict[str, Tensor]:
    return dict(build("resnet8", 3, 16, seed).state_dict())


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.module."]
)
@pytest.mark.parametrize(
    "keys", [(), ("state_dict",), ("model",), ("model_state_dict",), ("ema", "module"), ("model_ema",)]
)
def test_nested_and_prefixed_state_dicts(keys: tuple[str, ...], prefix: str, tmp_path: Path) -> None:
    expected = state_dict()
    content: Any = prefixed(expected, prefix)
    for key in reversed(keys):
        content = {"epoch": 3, "optimizer": {"lr": 0.1}, key: content}
    torch.save(content, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.source == keys
    assert_equal(without_prefix(weights.state, expected), expected)


def test_safetensors_and_wrappers_of_torch(tmp_path: Path) -> None:
    model = build("resnet8", 3, 16)
    expected = state_dict()
    save_file(prefixed(expected, "module."), tmp_path / "a.safetensors")
    assert_equal(without_prefix(read_weights(tmp_path / "a.safetensors").state, expected), expected)
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(model))
    torch.save(averaged.state_dict(), tmp_path / "b.pt")
    assert_equal(without_prefix(read_weights(tmp_path / "b.pt").state, expected), expected)


def test_averaged_weights_are_preferred_and_options_of_argparse_are_read(tmp_path: Path) -> None:
    model, average = state_dict(0), state_dict(1)
    content = {"model": model, "model_ema": average, "args": argparse.Namespace(lr=0.1), "epoch": 2}
    torch.save(content, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.source == ("model_ema",)
    assert_equal(weights.state, average)


@pytest.mark.parametrize(
    "entry",
    [
        {"classes": ["cat", "dog"]},
        {"class_names": ("cat", "dog")},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"idx_to_class": {1: "dog", 0: "cat"}},
        {"idx_to_class": {"1": "dog", "0": "cat"}},
        {"meta": {"classes": ["cat", "dog"]}},
    ],
)
def test_class_names_of_a_checkpoint(entry: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": state_dict(), **entry}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").classes == ("cat", "dog")


@pytest.mark.parametrize("value", [{"cat": 0, "dog": 2}, {"cat": "dog"}, [1, 2], "cat", {"0": 1.5}])
def test_other_values_are_not_class_names(value: Any) -> None:
    assert parse_classes(value) is None


@pytest.mark.parametrize("value", [3, torch.arange(3), torch.tensor(3), {"cat": 1, "dog": 2}])
def test_classes_that_are_not_names_in_order_are_refused_where_they_are_needed(value: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": state_dict(), "classes": value}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"classes in .*a\.pth must be class names in order, got .*--classes"):
        read_weights(tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth", needs_classes=False).classes is None


@pytest.mark.parametrize("value", [np.float64(0.9), np.float32(0.9), np.int64(3), np.bool_(True)])
def test_numpy_scalars_of_a_checkpoint_are_read(value: Any, tmp_path: Path) -> None:
    expected = state_dict()
    torch.save({"state_dict": expected, "best": value}, tmp_path / "a.pth")
    assert_equal(read_weights(tmp_path / "a.pth").state, expected)


@pytest.mark.parametrize(("content", "reason"), [(b"", "an empty file"), (b"hello" * 100, "other content")])
def test_content_of_another_file_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=f"got: {reason}"):
        read_weights(tmp_path / "a.pth")


def test_a_pickle_of_the_standard_library_is_refused_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps(state_dict(), protocol=4))
    with pytest.raises(InputError, match=r"a\.pth must hold tensors and plain values only"):
        read_weights(tmp_path / "a.pth")


class Dangerous:
    """An object whose loading would write a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/camkd-was-here"),)


def test_a_file_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": state_dict(), "extra": Dangerous()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth must hold tensors and plain values only.*executes code"):
        read_weights(tmp_path / "a.pth")
    torch.save(build("resnet8", 3, 16), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"b\.pth must hold tensors .*state_dict"):
        read_weights(tmp_path / "b.pth")
    assert not Path("/tmp/camkd-was-here").exists()


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<html>" * 50, b"\0" * 100])
def test_files_of_another_kind_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


def test_a_truncated_file_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"a\.pth must be a file written by torch"):
        read_weights(path)
    with pytest.raises(InputError, match="which is a folder"):
        read_weights(tmp_path)
    with pytest.raises(InputError, match=r"other\.pth, which does not exist"):
        read_weights(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"lr": 0.1}}])
def test_a_file_without_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="must hold a state dict, got a "):
        read_weights(tmp_path / "a.pth")


def test_names_and_shapes_that_do_not_fit_are_listed() -> None:
    expected = state_dict()
    state = {name: tensor for name, tensor in expected.items() if not name.startswith("fc")}
    state["conv1.weight"] = torch.zeros(16, 3, 7, 7)
    state |= {f"extra{number}": torch.zeros(1) for number in range(5)}
    first = next(iter(expected))
    with pytest.raises(InputError) as raised:
        check_fit(state, expected, Path("a.pth"), "resnet8")
    text = str(raised.value)
    assert "missing: fc.weight, fc.bias; unexpected: extra0, extra1, extra2, ... (5)" in text, (text, first)
    assert "\n" not in text


def test_a_wrong_shape_and_values_that_are_not_finite_are_named() -> None:
    expected = state_dict()
    name = "fc.weight"
    with pytest.raises(InputError, match=r"wrong shape: fc\.weight \(5, 64\) instead of \(3, 64\)"):
        check_fit({**expected, name: torch.zeros(5, 64)}, expected, Path("a.pth"), "resnet8")
    with pytest.raises(InputError, match=r"NaN or infinity in fc\.weight"):
        check_fit({**expected, name: expected[name] / 0}, expected, Path("a.pth"), "resnet8")
