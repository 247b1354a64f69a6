"""Selection of the device and the precision."""

from __future__ import annotations

import pytest
import torch

from camkd.types import InputError
from camkd.utils import devices
from camkd.utils.devices import describe_device, pick_device, pick_precision

CPU = torch.device("cpu")


def test_pick_device_prefers_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda"


@pytest.mark.parametrize("name", ["quantum", "cuda:77", "meta", ""])
def test_unavailable_device_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert str(caught.value) == (
        f"device must be auto, cpu, or a device that PyTorch can use on this machine, got {name!r}. Choose auto or cpu."
    )


@pytest.mark.parametrize(
    ("speedup", "precision", "description"),
    [
        (2.5, "bf16", "cpu in bf16, 2.5 times as fast as fp32"),
        (1.1, "fp32", "cpu in fp32, 0.9 times as fast as bf16"),
        (0.25, "fp32", "cpu in fp32, 4.0 times as fast as bf16"),
    ],
)
def test_auto_precision_on_a_cpu_follows_the_measured_speedup(
    monkeypatch: pytest.MonkeyPatch, speedup: float, precision: str, description: str
) -> None:
    monkeypatch.setattr(devices, "bf16_speedup", lambda: speedup)
    assert pick_precision("auto", CPU) == precision
    assert describe_device("auto", CPU) == description


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_given_precision_is_kept(precision: devices.Precision) -> None:
    assert pick_precision(precision, CPU) == precision
    assert describe_device(precision, CPU) == f"cpu in {precision}"


def test_auto_precision_on_mps_is_fp32() -> None:
    assert pick_precision("auto", torch.device("mps")) == "fp32"


def test_bf16_speedup_keeps_the_random_state() -> None:
    before = torch.get_rng_state()
    assert 0 < devices.bf16_speedup.__wrapped__() < 100
    assert torch.equal(torch.get_rng_state(), before)
