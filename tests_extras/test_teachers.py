"""Teachers that need no training run of their own, with networks of timm and torchvision."""

from __future__ import annotations

import json
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
from camkd.cams import form
from camkd.cams.linear_head import linear_head
from camkd.cli.main import main
from camkd.config import DataConfig, RunConfig, TeacherConfig, TrainConfig
from camkd.data.dataset import Dataset, Split
from camkd.experiments.pipeline import train_run
from camkd.experiments.start_network import default_interpolation, resolve_size, resolve_start, start_network
from camkd.models import build
from camkd.models.external import has_pretrained_weights, pretrained_info, usual_normalization
from camkd.models.io import ModelInfo, save
from camkd.types import InputError

CLASSES = ("berry", "leaf", "sky")


def images(size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def dataset(size: int, count: int = 12) -> Dataset:
    rng = np.random.default_rng(0)

    def split() -> Split:
        labels = np.arange(count, dtype=np.int64) % 3
        pixels = rng.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
        pixels[np.arange(count), :, :, labels] += 100
        return Split(pixels, labels)

    return Dataset("colors", CLASSES, split(), split(), split(), "f" * 64, "f" * 64, ())


def teacher_config(model: str, epochs: int = 1, **start: Any) -> RunConfig:
    train = TrainConfig(epochs=epochs, batch_size=6, precision="fp32", device="cpu", figure_every=0)
    return RunConfig(DataConfig("colors"), train, model=model, role="teacher", teacher=TeacherConfig(**start))


TRANSFORMERS = ["timm:vit_tiny_patch16_224", "timm:deit3_small_patch16_224", "torchvision:vit_b_32"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_patch_mean_has_exact_maps_and_the_weights_of_the_class_token(name: str, tmp_path: Path) -> None:
    token = build(name, 3, 64, seed=3).eval()
    mean = build(f"{name}+patch-mean", 3, 64, seed=3).eval()
    nn.init.normal_(linear_head(token, images())[1].weight)  # torchvision starts from zeros
    assert token.state_dict().keys() == mean.state_dict().keys()
    mean.load_state_dict(token.state_dict())
    x = images()
    assert form(token, x) != "exact"
    assert form(mean, x) == "exact"
    with torch.no_grad():
        logits = mean(x)
        assert not torch.allclose(logits, token(x), atol=1e-3)
    _, head = linear_head(mean, x)
    tokens: list[torch.Tensor] = []
    norm = mean.net.norm if name.startswith("timm") else mean.net.encoder.ln
    hook = norm.register_forward_hook(lambda module, arguments, output: tokens.append(output))
    with torch.no_grad():
        mean(x)
    hook.remove()
    expected = nn.functional.linear(tokens[0][:, 1:].mean(1), head.weight, head.bias)
    torch.testing.assert_close(logits, expected)
    info = ModelInfo(f"{name}+patch-mean", CLASSES, 64, 0, 0, "teacher", "plain", "colors", "0" * 64, 0)
    save(mean, tmp_path, info)
    with torch.no_grad():
        assert torch.equal(camkd.load(tmp_path)(x), logits)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "timm:swin_tiny_patch4_window7_224"])
def test_patch_mean_of_other_networks_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="class token"):
        build(f"{name}+patch-mean", 3, 64)


def test_unknown_suffix_is_refused() -> None:
    with pytest.raises(InputError, match=r"must be \+patch-mean, got 'timm:resnet18\+mean'"):
        build("timm:resnet18+mean", 3, 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224+patch-mean"),
        ("torchvision:vit_b_32", "torchvision:vit_b_32+patch-mean"),
        ("timm:resnet18", "timm:resnet18"),
        ("timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050"),
        ("timm:deit_tiny_distilled_patch16_224", "timm:deit_tiny_distilled_patch16_224"),
    ],
)
def test_transformers_with_a_new_head_get_the_mean_of_the_patches(name: str, expected: str) -> None:
    messages: list[str] = []
    config = resolve_start(teacher_config(name, train="head"), dataset(64), messages.append)
    assert config.model == expected
    assert bool(messages) == (name != expected)
    assert resolve_start(config, dataset(64), messages.append) == config


@pytest.mark.parametrize(
    "name",
    [
        *(
            "timm:mobilenetv3_small_050",
            "timm:tf_efficientnet_lite0",
            "timm:convnext_atto",
            "timm:swin_tiny_patch4_window7_224",
        ),
        *("torchvision:vgg11", "torchvision:mobilenet_v2", "torchvision:densenet121"),
    ],
)
def test_heads_of_other_networks_are_found(name: str) -> None:
    model = build(name, 3, 64)
    _, layer = linear_head(model, images())
    assert layer.weight.shape[0] == 3


def test_an_activation_after_the_last_layer_is_refused() -> None:
    with pytest.raises(InputError, match="must end in a linear layer"):
        linear_head(build("torchvision:squeezenet1_1", 3, 64), images())


def test_torchvision_resnet_of_plain_pytorch_is_loaded(tmp_path: Path) -> None:
    """The logits are those of torchvision's network on images that are normalized outside of it."""
    network = torchvision.models.resnet18(num_classes=3)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x = images(count=6)
    nn.functional.cross_entropy(network(x), torch.arange(6) % 3).backward()
    optimizer.step()
    network.eval()
    torch.save({"model": nn.DataParallel(network).state_dict(), "epoch": 1}, tmp_path / "a.pth")
    config = teacher_config("torchvision:resnet18", epochs=0, weights=str(tmp_path / "a.pth"))
    data = dataset(64)
    metrics = train_run(tmp_path / "run", resolve_start(config, data), data)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    normalized = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(camkd.load(tmp_path / "run")(x), network(normalized))
    assert metrics["cam_form"] == "exact"
    other = teacher_config("timm:resnet34", epochs=0, weights=str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match=r"must fit timm:resnet34, got missing: layer1\.2\.conv1\.weight, .*\(\d+\)"):
        train_run(tmp_path / "other", other, data)
    assert not (tmp_path / "other").exists()


def test_size_and_normalization_of_pretrained_weights() -> None:
    assert pretrained_info("timm:tf_efficientnet_lite0.in1k")[1:] == (224, "bicubic")
    assert pretrained_info("torchvision:resnet18.IMAGENET1K_V1")[1:] == (224, "bilinear")
    assert usual_normalization("timm:tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)
    assert has_pretrained_weights("timm:vit_tiny_patch16_224.augreg_in21k+patch-mean")
    config = RunConfig(DataConfig("a/folder"), model="timm:inception_v3.tf_in1k", role="teacher")
    assert resolve_size(config).data.size == 299
    bilinear = "torchvision:resnet18.IMAGENET1K_V1"
    assert default_interpolation(bilinear, "a/folder") == "bilinear"
    assert default_interpolation(bilinear, "cifar10") == default_interpolation("resnet8", "a/folder") == "bicubic"
    assert default_interpolation("timm:tf_efficientnet_lite0.in1k", "a/folder") == "bicubic"
    for unchanged in (DataConfig("a/folder", size=64), DataConfig("cifar10")):
        assert resolve_size(RunConfig(unchanged, model=config.model)).data == unchanged
    assert resolve_size(RunConfig(DataConfig("a/folder"), model="timm:inception_v3")).data.size is None


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nn.Module:
    """Weights of a ResNet-18 for 1,000 classes, in a local file that replaces the download of timm."""
    torch.manual_seed(3)
    model = timm.create_model("resnet18", num_classes=1000)
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    create_model = timm.create_model

    def create_from_file(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        overlay = {"pretrained_cfg_overlay": {"file": str(path)}} if pretrained else {}
        return create_model(name, pretrained=pretrained, **kwargs, **overlay)

    monkeypatch.setattr(timm, "create_model", create_from_file)
    return model.eval()


def test_imagenet_classes_are_mapped_to_those_of_the_data(pretrained: nn.Module, tmp_path: Path) -> None:
    table = tmp_path / "map.csv"
    table.write_text("imagenet,class\ntabby,berry\nEgyptian cat,berry\n207,leaf\n970,sky\n", encoding="utf-8")
    config = teacher_config("timm:resnet18.a1_in1k", epochs=0, classes=str(table))
    config = resolve_start(config, dataset(64))
    assert config.model == "timm:resnet18.a1_in1k+groups-1000"
    model = start_network(config, dataset(64)).eval()
    x = images()
    with torch.no_grad():
        base = pretrained((x - model.mean) / model.std)
        torch.testing.assert_close(model(x)[:, 0], base[:, [281, 285]].logsumexp(1))
        torch.testing.assert_close(model(x)[:, 1:], base[:, [207, 970]])


def test_head_of_pretrained_weights_from_the_command_line(
    pretrained: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 60, (40, 40, 3))
            pixels[:, :, label] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
    out = tmp_path / "run"
    arguments = ["teacher", "--data", str(tmp_path / "images"), "--model", "timm:resnet18.a1_in1k", "--train", "head"]
    options = ["--size", "64", "--head-views", "2", "--precision", "fp32", "--figure-every", "0"]
    assert main([*arguments, *options, "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    metrics = json.loads(captured.out)
    assert metrics["cam_form"] == "exact"
    assert metrics["val_accuracy"] > 0.5
    assert "head: weight decay" in captured.err
    state = camkd.load(out).state_dict()
    for name, value in pretrained.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[f"net.{name}"], value), name
    model = camkd.load(out)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
