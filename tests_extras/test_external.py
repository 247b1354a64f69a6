"""Networks of timm and torchvision by name: built, kept, loaded, with their own weights and without a library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import camkd
from camkd.cli.main import main
from camkd.models import ImageClassifier, build
from camkd.models.external import pretrained_info
from camkd.models.io import ModelInfo, save
from camkd.models.profile import profile
from camkd.types import InputError

CLASSES, SIZE = 3, 64
NAMES = [
    "timm:resnet18",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "torchvision:resnet18",
    "torchvision:vit_b_32",
    "torchvision:googlenet",
]


def pictures(size: int = SIZE) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def kept(name: str, model: nn.Module, folder: Path) -> nn.Module:
    """The network as it comes back from a run folder."""
    classes = tuple(f"class {k}" for k in range(CLASSES))
    save(model, folder, ModelInfo(name, classes, SIZE, 0, 0, "teacher", "plain", "shapes", "0" * 64, 0))
    return camkd.load(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_drawn_from_its_seed_and_comes_back_from_a_run_folder(name: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model, again = (build(name, CLASSES, SIZE, seed) for seed in (5, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model, ImageClassifier)
    assert model.training
    assert repr(model) == repr(again), "the key of a knowledge store is made of it"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    model.set_normalization([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    loaded, x = kept(name, model, tmp_path), pictures()
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
        inside = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1)
        torch.testing.assert_close(model(x), model.net(inside))  # type: ignore[operator]


def test_costs_of_a_transformer_count_attention() -> None:
    """16 tokens of patches and one of the class, 192 channels, 12 blocks: qkv, proj, two of 768, and the attention."""
    tokens, width, patches = 17, 192, 16
    block = tokens * width * width * (3 + 1 + 4 + 4) + 2 * tokens * tokens * width
    expected = patches * width * 16 * 16 * 3 + 12 * block + width * CLASSES
    model = build("timm:vit_tiny_patch16_224", CLASSES, SIZE)
    assert profile(model, SIZE).macs == expected
    assert profile(model, SIZE).params == sum(p.numel() for p in model.parameters())
    assert profile(build("torchvision:vit_b_32", CLASSES, SIZE), SIZE).macs == (
        4 * 768 * 32 * 32 * 3 + 12 * (5 * 768 * 768 * 12 + 2 * 5 * 5 * 768) + 768 * CLASSES
    )


def test_weights_that_a_timm_name_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's file is a file here: 1000 classes in it, 3 of the task."""
    torch.manual_seed(3)
    theirs = timm.create_model("resnet18", num_classes=1000)
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), path)
    real, asked = timm.create_model, []

    def create(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        asked.append((name, pretrained))
        overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if pretrained else {}
        return real(name, pretrained=pretrained, **settings, **overlay)

    monkeypatch.setattr(timm, "create_model", create)
    model = build("timm:resnet18.a1_in1k", CLASSES, SIZE)
    assert asked[-1] == ("resnet18.a1_in1k", True)
    for name, value in theirs.state_dict().items():
        assert name.startswith("fc.") or torch.equal(model.net.state_dict()[name], value), name  # type: ignore[union-attr]
    assert model.net.fc.weight.shape == (CLASSES, 512)  # type: ignore[union-attr]
    assert model.statistics_given
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    asked.clear()
    loaded = kept("timm:resnet18.a1_in1k", model, tmp_path / "run")
    assert not any(pretrained for _, pretrained in asked), "loading never downloads"
    assert torch.equal(loaded.mean, model.mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "tag"), [("resnet18", "DEFAULT"), ("vit_b_32", "IMAGENET1K_V1")])
def test_weights_that_a_torchvision_name_asks_for(wanted: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(wanted, weights=None).state_dict()  # 1000 classes, 224 pixels
    weights = type(torchvision.models.get_model_weights(wanted)["DEFAULT"])
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *args, **kwargs: dict(theirs))
    model = build(f"torchvision:{wanted}.{tag}", CLASSES, SIZE)
    own = model.net.state_dict()  # type: ignore[union-attr]
    changed = [name for name, value in theirs.items() if own[name].shape != value.shape]
    assert changed == (["fc.weight", "fc.bias"] if wanted == "resnet18" else ["encoder.pos_embedding", *changed[1:]])
    assert all(torch.equal(own[name], value) for name, value in theirs.items() if name not in changed)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    if wanted == "vit_b_32":  # the class token's place stays, the patches' 7x7 places become 2x2
        torch.testing.assert_close(own["encoder.pos_embedding"][:, 0], theirs["encoder.pos_embedding"][:, 0])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:resnet18.a1_in1k", 224),
        ("torchvision:resnet18.DEFAULT", 224),
        ("timm:tf_efficientnet_b2.ns_jft_in1k", 260),
    ],
)
def test_what_trained_weights_know(name: str, size: int) -> None:
    """ImageNet's classes in its order, under the first of their names."""
    classes, side = pretrained_info(name)
    assert (len(classes), side) == (1000, size)
    known = dict(enumerate(classes))
    assert {0: "tench", 281: "tabby", 282: "tiger cat", 999: "toilet tissue"}.items() <= known.items()


def test_weights_without_names_know_numbers() -> None:
    classes, _ = pretrained_info("timm:inception_v4.tf_in1k")
    assert classes[0] == "tench"
    with pytest.raises(
        InputError, match=r"timm:resnet18 has drawn weights, which know nothing: name trained ones .*a1_in1k"
    ):
        pretrained_info("timm:resnet18")


def test_where_trained_weights_of_timm_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", num_classes=1000).state_dict(), weights)
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        overlay = {"pretrained_cfg_overlay": {"file": str(weights)}} if pretrained else {}
        return real(name, pretrained=pretrained, **settings, **overlay)

    monkeypatch.setattr(timm, "create_model", create)
    Image.new("RGB", (300, 200), (200, 100, 30)).save(tmp_path / "wide.jpg")
    out = tmp_path / "maps.npz"
    status = main(["explain", "timm:resnet10t.c3_in1k", str(tmp_path / "wide.jpg"), "--top", "2", "--out", str(out)])
    assert status == 0
    with np.load(out) as found:
        assert found["model_maps"].shape == (1, 2, 6, 6)  # 176 pixels
        assert found["classes"][281] == "tabby"


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_weights_that_cannot_be_fetched(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=f"the weights of {name} cannot be fetched .*: connect to the network"
    ) as error:
        build(name, CLASSES, SIZE)
    assert "\n" not in str(error.value)
    build(name, CLASSES, SIZE, pretrained=False)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("timm:resnt18", "timm has no classifier 'resnt18': choose one like resnet18"),
        ("torchvision:resnt18", "torchvision has no classifier 'resnt18': choose one like resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("timm:resnet18.best", "timm has no weights 'best' for resnet18, but a1_in1k"),
        ("torchvision:resnet18.best", "torchvision has no weights 'best' for resnet18, but IMAGENET1K_V1, DEFAULT"),
        (
            "torchvision:vit_b_16",
            "torchvision:vit_b_16 cannot be made for pictures of 30 pixels .*: give another --size",
        ),
        ("torchvision:inception_v3", "cannot be made for pictures of 30 pixels"),
    ],
)
def test_names_that_are_not_there(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build(name, CLASSES, 30)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_library_that_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(InputError, match=rf"{library} .*: pip install 'camkd\[timm\]' brings timm and torchvision"):
        build(name, CLASSES, SIZE)


def test_a_torchvision_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("camkd.models.external.import_module", fail)
    with pytest.raises(InputError, match=r"timm cannot be imported \(operator .* does not exist\): install the torch"):
        build("timm:resnet18", CLASSES, SIZE)
