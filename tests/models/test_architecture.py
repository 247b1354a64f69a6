"""Keys of network architectures, and versions of libraries."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torch import Tensor, nn

from camkd.models import build
from camkd.models.architecture import architecture_key, library_versions


class VisionTransformer(nn.Module):
    """Stand-in for timm's vision transformer: ``global_pool`` changes the output, but not the weights or ``repr()``."""

    def __init__(self, global_pool: str = "token", width: int = 4) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.grid_size = (2, 2)
        self._fused = True
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        x = x[:, 0] if self.global_pool == "token" else x.mean(1)
        return self.head(self.drop(x))


def transformer(global_pool: str = "token") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(global_pool)


def test_networks_that_differ_only_in_a_scalar_attribute_have_different_keys() -> None:
    token = transformer("token")
    mean = transformer("avg")
    assert repr(token) == repr(mean)
    assert all(torch.equal(a, b) for a, b in zip(token.state_dict().values(), mean.state_dict().values(), strict=True))
    assert architecture_key(token) != architecture_key(mean)


def test_key_is_reproducible() -> None:
    key = architecture_key(transformer())
    assert key == architecture_key(transformer())
    assert len(key) == 64
    assert int(key, 16) >= 0


def test_key_does_not_depend_on_state() -> None:
    model = transformer()
    key = architecture_key(model)
    assert architecture_key(model.eval()) == key
    assert architecture_key(model.requires_grad_(False)) == key
    assert architecture_key(model.double()) == key
    assert architecture_key(model.to("meta")) == key
    model = transformer()
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    nn.init.zeros_(model.head.weight)
    model.register_forward_hook(lambda module, inputs, output: None)
    assert architecture_key(model) == key


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("global_pool", None), ("grid_size", (2, 3)), ("scale", 0.5), ("sizes", [1, 2]), ("shape", ((1, 2), None))],
)
def test_key_depends_on_public_scalar_attributes(attribute: str, value: object) -> None:
    model = transformer()
    setattr(model, attribute, value)
    assert architecture_key(model) != architecture_key(transformer())


@pytest.mark.parametrize(("attribute", "value"), [("_fused", False), ("config", {"a": 1}), ("function", torch.relu)])
def test_key_does_not_depend_on_private_or_other_attributes(attribute: str, value: object) -> None:
    model = transformer()
    setattr(model, attribute, value)
    assert architecture_key(model) == architecture_key(transformer())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.norm, "eps", 1e-3),
        lambda model: setattr(model.drop, "p", 0.2),
        lambda model: setattr(model, "drop", nn.Identity()),
        lambda model: model.add_module("extra", nn.Identity()),
    ],
    ids=["eps", "dropout", "class", "module"],
)
def test_key_depends_on_submodules_and_their_hyperparameters(change: object) -> None:
    model = transformer()
    change(model)  # type: ignore[operator]
    assert architecture_key(model) != architecture_key(transformer())


def test_key_depends_on_the_class_unless_it_is_defined_in_camkd() -> None:
    class RenamedTransformer(VisionTransformer):
        pass

    torch.manual_seed(0)
    renamed = RenamedTransformer()
    assert architecture_key(renamed) != architecture_key(transformer())
    RenamedTransformer.__module__ = "camkd.models.one"
    key = architecture_key(renamed)
    RenamedTransformer.__module__ = "camkd.models.other"
    RenamedTransformer.__qualname__ = "Other"
    assert architecture_key(renamed) == key


def test_key_lists_a_shared_module_under_each_name() -> None:
    relu = nn.ReLU()
    assert architecture_key(nn.Sequential(relu, relu)) == architecture_key(nn.Sequential(nn.ReLU(), nn.ReLU()))
    assert architecture_key(nn.Sequential(relu, relu)) != architecture_key(nn.Sequential(relu))


def test_built_in_networks_have_reproducible_and_different_keys() -> None:
    names = ["cam-net", "cam-net-lite", "resnet8", "resnet20", "wrn-16-4"]
    keys = [architecture_key(build(name, 3, 16)) for name in names]
    assert keys == [architecture_key(build(name, 3, 16, seed=1)) for name in names]
    assert len(set(keys)) == len(names)


def test_versions_of_the_libraries_a_network_is_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camkd.models.architecture.version", lambda library: f"{library} version")
    assert library_versions("resnet8") == {"torch": "torch version"}
    assert library_versions("timm:resnet18") == {"torch": "torch version", "timm": "timm version"}
    assert library_versions("torchvision:vit_b_32.DEFAULT") == {
        "torch": "torch version",
        "torchvision": "torchvision version",
    }


def test_version_of_torch_is_that_of_the_installed_package() -> None:
    assert library_versions("cam-net") == {"torch": importlib.metadata.version("torch")}
