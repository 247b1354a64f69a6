"""Networks of timm and torchvision by name: building, saving, loading, pretrained weights and error cases."""

from __future__ import annotations

import importlib.metadata
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
from camkd.models.architecture import architecture_key, library_versions
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


def images(size: int = SIZE) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def save_and_load(name: str, model: nn.Module, folder: Path) -> nn.Module:
    """Save the network to a run folder, and load it again."""
    classes = tuple(f"class {k}" for k in range(CLASSES))
    save(model, folder, ModelInfo(name, classes, SIZE, 0, 0, "teacher", "plain", "shapes", "0" * 64, 0))
    return camkd.load(folder)


@pytest.mark.parametrize("name", NAMES)
def test_weights_depend_only_on_the_seed_and_are_restored_from_a_run_folder(name: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model = build(name, CLASSES, SIZE, seed=5)
    again = build(name, CLASSES, SIZE, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(model, ImageClassifier)
    assert model.training
    assert architecture_key(model) == architecture_key(again), "it is part of the key of a teacher cache"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    model.set_normalization([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    loaded = save_and_load(name, model, tmp_path)
    assert architecture_key(loaded) == architecture_key(model)
    x = images()
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
        normalized = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.3, 0.2, 0.1]).view(3, 1, 1)
        torch.testing.assert_close(model(x), model.net(normalized))  # type: ignore[operator]


def test_architecture_key_depends_on_the_pooling_of_a_vision_transformer() -> None:
    """The weights and ``repr()`` of both networks are equal."""
    models = [
        timm.create_model(
            "vit_tiny_patch16_224", num_classes=CLASSES, global_pool=pool, class_token=True, fc_norm=False
        )
        for pool in ("token", "avg")
    ]
    assert repr(models[0]) == repr(models[1])
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert architecture_key(models[0]) != architecture_key(models[1])


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_version_of_the_library_is_recorded(library: str) -> None:
    versions = library_versions(f"{library}:resnet18")
    assert versions.keys() == {"torch", library}
    assert versions[library] == importlib.metadata.version(library)


def test_cost_of_a_transformer_includes_attention() -> None:
    """Count 16 patch tokens and a class token, 192 channels, 12 blocks of qkv, projection, MLP and attention."""
    tokens, width, patches = 17, 192, 16
    block = tokens * width * width * (3 + 1 + 4 + 4) + 2 * tokens * tokens * width
    expected = patches * width * 16 * 16 * 3 + 12 * block + width * CLASSES
    model = build("timm:vit_tiny_patch16_224", CLASSES, SIZE)
    assert profile(model, SIZE).macs == expected
    assert profile(model, SIZE).params == sum(p.numel() for p in model.parameters())
    assert profile(build("torchvision:vit_b_32", CLASSES, SIZE), SIZE).macs == (
        4 * 768 * 32 * 32 * 3 + 12 * (5 * 768 * 768 * 12 + 2 * 5 * 5 * 768) + 768 * CLASSES
    )


def test_pretrained_weights_of_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A local file replaces the download. It has 1000 classes, the network 3."""
    torch.manual_seed(3)
    pretrained_model = timm.create_model("resnet18", num_classes=1000)
    path = tmp_path / "weights.pth"
    torch.save(pretrained_model.state_dict(), path)
    create_model = timm.create_model
    calls = []

    def create_from_file(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        calls.append((name, pretrained))
        overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if pretrained else {}
        return create_model(name, pretrained=pretrained, **kwargs, **overlay)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    model = build("timm:resnet18.a1_in1k", CLASSES, SIZE)
    assert calls[-1] == ("resnet18.a1_in1k", True)
    for name, value in pretrained_model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(model.net.state_dict()[name], value), name  # type: ignore[union-attr]
    assert model.net.fc.weight.shape == (CLASSES, 512)  # type: ignore[union-attr]
    assert model.has_pretrained_normalization
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    calls.clear()
    loaded = save_and_load("timm:resnet18.a1_in1k", model, tmp_path / "run")
    assert not any(pretrained for _, pretrained in calls), "loading must not download"
    assert torch.equal(loaded.mean, model.mean)  # type: ignore[arg-type]


@pytest.mark.parametrize(("network", "tag"), [("resnet18", "DEFAULT"), ("vit_b_32", "IMAGENET1K_V1")])
def test_pretrained_weights_of_torchvision(network: str, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    pretrained = torchvision.models.get_model(network, weights=None).state_dict()  # 1000 classes, 224 pixels
    weights = type(torchvision.models.get_model_weights(network)["DEFAULT"])
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *args, **kwargs: dict(pretrained))
    model = build(f"torchvision:{network}.{tag}", CLASSES, SIZE)
    state = model.net.state_dict()  # type: ignore[union-attr]
    changed = [name for name, value in pretrained.items() if state[name].shape != value.shape]
    assert changed == (["fc.weight", "fc.bias"] if network == "resnet18" else ["encoder.pos_embedding", *changed[1:]])
    assert all(torch.equal(state[name], value) for name, value in pretrained.items() if name not in changed)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    if network == "vit_b_32":  # only the embeddings of the patches are interpolated, from 7x7 to 2x2
        torch.testing.assert_close(state["encoder.pos_embedding"][:, 0], pretrained["encoder.pos_embedding"][:, 0])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:resnet18.a1_in1k", 224),
        ("torchvision:resnet18.DEFAULT", 224),
        ("timm:tf_efficientnet_b2.ns_jft_in1k", 260),
    ],
)
def test_classes_and_image_size_of_pretrained_weights(name: str, size: int) -> None:
    """The classes of ImageNet in their order, each with the first of its names."""
    classes, image_size, _ = pretrained_info(name)
    assert len(classes) == 1000
    assert image_size == size
    name_of_class = dict(enumerate(classes))
    assert {0: "tench", 281: "tabby", 282: "tiger cat", 999: "toilet tissue"}.items() <= name_of_class.items()


def test_weights_without_label_names_have_the_names_of_imagenet() -> None:
    classes = pretrained_info("timm:inception_v4.tf_in1k").classes
    assert classes[0] == "tench"


def test_random_weights_have_no_classes() -> None:
    with pytest.raises(InputError, match=r"timm:resnet18 must name pretrained weights, got no tag.*a1_in1k"):
        pretrained_info("timm:resnet18")


def test_explain_with_pretrained_weights_of_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", num_classes=1000).state_dict(), weights)
    create_model = timm.create_model

    def create_from_file(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        overlay = {"pretrained_cfg_overlay": {"file": str(weights)}} if pretrained else {}
        return create_model(name, pretrained=pretrained, **kwargs, **overlay)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    Image.new("RGB", (300, 200), (200, 100, 30)).save(tmp_path / "wide.jpg")
    out = tmp_path / "maps.npz"
    status = main(["explain", "timm:resnet10t.c3_in1k", str(tmp_path / "wide.jpg"), "--top", "2", "--out", str(out)])
    assert status == 0
    with np.load(out) as arrays:
        assert arrays["model_maps"].shape == (1, 2, 6, 6)  # 176 pixels
        assert arrays["classes"][281] == "tabby"


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "torchvision:resnet18.IMAGENET1K_V1"])
def test_failing_download_raises(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"the weights of {name} cannot be downloaded ") as error:
        build(name, CLASSES, SIZE)
    assert "\n" not in str(error.value)
    build(name, CLASSES, SIZE, pretrained=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", "must be a classifier of timm, got 'resnt18'.* resnet18"),
        ("torchvision:resnt18", "must be a classifier of torchvision, got 'resnt18'.* resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "must be a classifier of torchvision, got 'fasterrcnn_resnet50_fpn'"),
        ("timm:resnet18.best", "timm:resnet18 must be one of a1_in1k.*, got 'best'"),
        ("torchvision:resnet18.best", "torchvision:resnet18 must be one of IMAGENET1K_V1, DEFAULT, got 'best'"),
        ("torchvision:vit_b_16", "`--size` must be supported by torchvision:vit_b_16, got 30 pixels"),
        ("torchvision:inception_v3", "`--size` must be supported by torchvision:inception_v3, got 30 pixels"),
    ],
)
def test_unknown_names_and_unsupported_sizes_raise(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, CLASSES, 30)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_missing_library_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.models", None)
    with pytest.raises(InputError, match=rf"{library} .* pip install 'camkd\[timm\]'"):
        build(name, CLASSES, SIZE)


def test_torchvision_built_for_another_torch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("camkd.models.external.import_module", fail)
    with pytest.raises(InputError, match=r"timm cannot be imported \(operator torchvision::nms does not exist\)"):
        build("timm:resnet18", CLASSES, SIZE)
