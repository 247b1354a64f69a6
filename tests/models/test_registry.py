"""Built-in networks: the model interface, and sizes and parameter names from the literature."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from camkd.cams import form, predict
from camkd.models import MODELS, ImageClassifier, build, default_optimizer
from camkd.types import InputError

CLASSES, SIZE = 5, 8

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def built_model() -> Callable[[str], ImageClassifier]:
    """Return a function that builds each network once, in evaluation mode. Tests must not change the networks."""
    models: dict[str, ImageClassifier] = {}

    def get(name: str) -> ImageClassifier:
        if name not in models:
            models[name] = build(name, CLASSES, SIZE, seed=7).eval()
        return models[name]

    return get


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def meta_model(name: str, classes: int, size: int) -> ImageClassifier:
    """Build a network on the meta device, without memory for its parameters."""
    with torch.device("meta"):
        return MODELS[name](classes, size)


def num_parameters(name: str, classes: int, size: int) -> int:
    return sum(parameter.numel() for parameter in meta_model(name, classes, size).parameters())


# --- sizes and parameter names


@pytest.mark.slow
def test_numbers_of_parameters_equal_those_of_the_papers() -> None:
    assert num_parameters("resnet20", 10, 32) == pytest.approx(0.27e6, rel=0.02)
    assert num_parameters("resnet56", 10, 32) == pytest.approx(0.86e6, rel=0.01)
    assert num_parameters("wrn-16-4", 10, 32) == pytest.approx(2.75e6, rel=0.002)
    assert num_parameters("resnet50", 1000, 224) == 25_557_032
    assert num_parameters("resnet50-mlp", 10, 32) == pytest.approx(27.7e6, rel=0.002)


def test_number_of_parameters_of_resnet8_equals_a_count_by_hand() -> None:
    """Kernels, scale and shift of each normalized channel, classifier."""
    stage_1 = 2 * (9 * 16 * 16 + 32)
    stage_2 = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 3 * 64
    stage_3 = 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * 128
    assert num_parameters("resnet8", 10, 32) == 27 * 16 + 32 + stage_1 + stage_2 + stage_3 + 64 * 10 + 10


def torchvision_names() -> set[str]:
    """Return torchvision's names of the tensors of ResNet-50."""

    def batchnorm(prefix: str) -> list[str]:
        return [f"{prefix}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *batchnorm("bn1"), "fc.weight", "fc.bias"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for layer in (1, 2, 3):
                names.append(f"layer{stage}.{block}.conv{layer}.weight")
                names += batchnorm(f"layer{stage}.{block}.bn{layer}")
        names.append(f"layer{stage}.0.downsample.0.weight")
        names += batchnorm(f"layer{stage}.0.downsample.1")
    return set(names)


def test_resnet50_has_the_parameter_names_and_shapes_of_torchvision() -> None:
    state = meta_model("resnet50", 1000, 224).state_dict()
    assert set(state) == torchvision_names() | {"mean", "std"}
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert state["fc.weight"].shape == (1000, 2048)


def test_resnet50_has_the_stride_on_the_3x3_convolution_as_in_torchvision() -> None:
    model = meta_model("resnet50", 10, 224)
    for stage in ("layer2", "layer3", "layer4"):
        block = model.get_submodule(f"{stage}.0")
        assert [getattr(block, f"conv{i}").stride for i in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]
        assert block.downsample[0].stride == (2, 2)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("name", "last", "size", "map_side"),
    [
        ("resnet20", "layer3", 32, 8),
        ("resnet20", "layer3", 64, 16),
        ("resnet20", "layer3", 65, 5),
        ("resnet50", "layer4", 32, 4),
        ("resnet50", "layer4", 64, 8),
        ("resnet50", "layer4", 224, 7),
        ("wrn-16-4", "layers", 32, 8),
    ],
)
def test_stem_depends_on_the_image_size(name: str, last: str, size: int, map_side: int) -> None:
    model = meta_model(name, 10, size)
    shapes: list[torch.Size] = []
    model.get_submodule(last).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert model(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 10)
    assert shapes[0][2:] == (map_side, map_side)


def test_cam_net_is_small_and_has_a_fine_exact_map() -> None:
    model = build("cam-net", 10, 32)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 96_000
    logits, cams, *_ = predict(model, images(2, 32))
    assert form(model, images(2, 32)) == "exact"
    assert logits.shape == (2, 10)
    assert cams is not None
    assert cams.shape[:2] == (2, 10)
    assert min(cams.shape[2:]) >= 8


# --- the model interface


@every_model
@pytest.mark.slow
def test_logits_are_finite_and_do_not_depend_on_the_batch(
    name: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = built_model(name)
    x = images()
    with torch.no_grad():
        logits = model(x)
        single = torch.cat([model(image[None]) for image in x])
    assert logits.shape == (3, CLASSES)
    assert logits.isfinite().all()
    assert logits.std() > 0
    torch.testing.assert_close(logits, single, rtol=1e-4, atol=1e-4)


@every_model
@pytest.mark.slow
def test_gradients_under_bf16_autocast_are_finite_for_every_parameter(
    name: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    model = copy.deepcopy(built_model(name)).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(2))
    loss = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.dtype == torch.float32


@every_model
def test_weights_depend_only_on_the_seed(name: str, built_model: Callable[[str], ImageClassifier]) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = build(name, CLASSES, SIZE, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    first = built_model(name).state_dict()
    assert again.state_dict().keys() == first.keys()
    assert all(torch.equal(value, first[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["cam-net", "resnet8", "wrn-16-4"])
def test_another_seed_initializes_other_weights(name: str, built_model: Callable[[str], ImageClassifier]) -> None:
    other = build(name, CLASSES, SIZE, seed=8)
    for (key, parameter), other_parameter in zip(built_model(name).named_parameters(), other.parameters(), strict=True):
        if parameter.ndim > 1:
            assert not torch.equal(parameter, other_parameter), key


@every_model
def test_normalization_is_part_of_the_model(name: str, built_model: Callable[[str], ImageClassifier]) -> None:
    model = copy.deepcopy(built_model(name))
    x = images(1)
    mean = torch.tensor([0.4, 0.5, 0.6])
    std = torch.tensor([0.2, 0.3, 0.25])
    with torch.no_grad():
        default = model(x)
        model.set_normalization(mean.tolist(), std.tolist())
        inside = model(x)
        torch.testing.assert_close(model.normalize(x), (x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        model.set_normalization([0, 0, 0], [1, 1, 1])
        outside = model((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(inside, default, rtol=1e-3)
    assert {"mean", "std"} <= set(model.state_dict())
    assert not {"mean", "std"} & {key for key, _ in model.named_parameters()}


@every_model
def test_default_optimizer_of_name_and_network_are_equal(
    name: str, built_model: Callable[[str], ImageClassifier]
) -> None:
    expected = "adamw" if name.startswith("cam-net") else "sgd"
    assert default_optimizer(name) == expected
    assert built_model(name).default_optimizer == expected


@every_model
@pytest.mark.slow
def test_networks_take_any_number_of_classes(name: str) -> None:
    for classes in (2, 1000):
        model = meta_model(name, classes, 32)
        assert model(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, classes)


def test_message_for_an_unknown_network() -> None:
    with pytest.raises(InputError) as error:
        build("vgg", 10, 32)
    choices = f"{', '.join(MODELS)}, timm:NAME or torchvision:NAME"
    assert str(error.value) == f"model must be one of {choices}, got 'vgg'. Choose one of them."
