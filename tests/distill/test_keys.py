"""Keys of teacher caches: equal for equal outputs, different for anything that changes an output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from camkd.distill import keys
from camkd.distill.keys import cache_key
from camkd.models.architecture import architecture_key

INPUTS: dict[str, Any] = {
    "architecture": "resnet8",
    "libraries": {"torch": "2.6.0"},
    "data": "abc",
    "augmentation": "version=2 crop=1",
    "augmentation_seed": 0,
    "records": {"version": 2, "classes": 3, "map": [4, 4], "bias": [0.5, -1.25]},
    "outputs": 1,
    "device": "cpu",
    "precision": "fp32",
}


class Network(nn.Sequential):
    """A convolution, batch normalization and a rectifier."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())


class VisionTransformer(nn.Module):
    """Stand-in for timm's vision transformer: ``global_pool`` changes outputs, but neither weights nor ``repr()``."""

    def __init__(self, global_pool: str) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.head = nn.Linear(2, 3)


def constant_network() -> Network:
    """The same weights on every machine and with every release of torch."""
    model = Network()
    for number, tensor in enumerate(model.state_dict().values()):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) / 4 + number)
    return model


def model_key(model: nn.Module) -> str:
    """Return the key of a teacher with the key of its layers."""
    return cache_key(model, {**INPUTS, "layers": architecture_key(model)})


def test_key_is_stable() -> None:
    """A change of this hash makes every existing cache useless: then increase `keys.VERSION`."""
    assert cache_key(constant_network(), INPUTS) == "500a346cd86b3f585c8e207d"


def test_key_is_the_name_of_a_folder() -> None:
    key = cache_key(Network(), INPUTS)
    assert len(key) == 24
    assert int(key, 16) >= 0


def test_key_depends_on_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    key = cache_key(model, INPUTS)
    monkeypatch.setattr(keys, "VERSION", keys.VERSION + 1)
    assert cache_key(model, INPUTS) != key


# --- the model


def test_equal_models_have_equal_keys() -> None:
    model = Network()
    key = model_key(model)
    assert model_key(copy.deepcopy(model)) == key
    assert model_key(model.eval()) == key, "a teacher is always in evaluation mode"
    assert model_key(model.requires_grad_(False)) == key
    assert model_key(model.to(memory_format=torch.channels_last)) == key  # type: ignore[call-overload]


def test_renamed_class_has_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(Network):
        pass

    model = Network()
    renamed = Renamed()
    renamed.load_state_dict(model.state_dict())
    assert cache_key(renamed, INPUTS) == cache_key(model, INPUTS)
    monkeypatch.setattr(Network, "__module__", "camkd.models.network")
    monkeypatch.setattr(Renamed, "__module__", "camkd.models.renamed")
    assert model_key(renamed) == model_key(model), "architecture_key ignores the class names of camkd"


def test_renamed_attribute_has_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "__module__", "camkd.models.network")
    model = Network()
    renamed = copy.deepcopy(model)
    model.depth = 3
    renamed.num_layers = 3
    assert model_key(renamed) == model_key(model), "architecture_key ignores the attributes of classes in camkd"


def test_non_parameter_attribute_has_another_key() -> None:
    token = VisionTransformer("token")
    mean = copy.deepcopy(token)
    mean.global_pool = "avg"
    assert cache_key(token, INPUTS) == cache_key(mean, INPUTS)
    assert model_key(token) != model_key(mean)


def change_last_bit(model: nn.Module) -> None:
    weight = model.state_dict()["0.weight"].view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


def change_stride(model: nn.Sequential) -> None:
    convolution = nn.Conv2d(3, 4, 1, stride=2)
    convolution.load_state_dict(model[0].state_dict())
    model[0] = convolution


MODEL_CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "last bit of a weight": change_last_bit,
    "statistic": lambda model: model[1].running_mean.add_(0.1),  # type: ignore[operator, union-attr]
    "bias": lambda model: model.state_dict()["0.bias"].add_(0.1),
    "activation": lambda model: model.__setitem__(2, nn.GELU()),
    "layer": lambda model: model.append(nn.Identity()),
    "stride": change_stride,
    "dtype": lambda model: model.double(),
}


@pytest.mark.parametrize("change", MODEL_CHANGES)
def test_changed_model_has_another_key(change: str) -> None:
    model = Network()
    changed = copy.deepcopy(model)
    MODEL_CHANGES[change](changed)
    assert model_key(changed) != model_key(model)


def test_model_in_bf16_has_a_key() -> None:
    model = Network().bfloat16()
    assert cache_key(model, INPUTS) == cache_key(copy.deepcopy(model), INPUTS)
    assert cache_key(model, INPUTS) != cache_key(Network(), INPUTS)


def test_equal_bytes_of_another_dtype_have_another_key() -> None:
    floats = nn.Identity()
    integers = nn.Identity()
    floats.register_buffer("offset", torch.zeros(3))
    integers.register_buffer("offset", torch.zeros(3, dtype=torch.int32))
    assert cache_key(floats, INPUTS) != cache_key(integers, INPUTS)


# --- the inputs


def test_key_does_not_depend_on_the_order_of_inputs() -> None:
    model = Network()
    assert cache_key(model, dict(reversed(INPUTS.items()))) == cache_key(model, INPUTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "resnet11"},
        {"libraries": {"torch": "2.7.0"}},
        {"libraries": {"torch": "2.6.0", "timm": "1.0.0"}},
        {"data": "abd"},
        {"augmentation": "version=3 crop=1"},
        {"augmentation_seed": 1},
        {"augmentation_seed": "0"},
        {"records": {**INPUTS["records"], "version": 3}},
        {"records": {**INPUTS["records"], "map": [2, 8]}},
        {"records": {**INPUTS["records"], "bias": None}},
        {"outputs": 2},
        {"device": "cuda"},
        {"precision": "bf16"},
        {"size": 32},
    ],
    ids=str,
)
def test_changed_input_has_another_key(changes: dict[str, Any]) -> None:
    model = Network()
    assert cache_key(model, {**INPUTS, **changes}) != cache_key(model, INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_missing_input_has_another_key(name: str) -> None:
    model = Network()
    others = {other: value for other, value in INPUTS.items() if other != name}
    assert cache_key(model, others) != cache_key(model, INPUTS)


def test_input_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        cache_key(nn.Identity(), {"scale": float("nan")})
    with pytest.raises(TypeError):
        cache_key(nn.Identity(), {"scale": object()})
