"""Every built-in network keeps the contract, and has the size and names of the literature."""

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
def built() -> Callable[[str], ImageClassifier]:
    """Each network once, in evaluation mode; leave it as it is."""
    made: dict[str, ImageClassifier] = {}

    def get(name: str) -> ImageClassifier:
        if name not in made:
            made[name] = build(name, CLASSES, SIZE, seed=7).eval()
        return made[name]

    return get


def pictures(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def outline(name: str, classes: int, size: int) -> ImageClassifier:
    """A network without numbers, for counting."""
    with torch.device("meta"):
        return MODELS[name](classes, size)


def count(name: str, classes: int, size: int) -> int:
    return sum(parameter.numel() for parameter in outline(name, classes, size).parameters())


# --- sizes and names


def test_parameters_are_those_of_the_papers() -> None:
    assert count("resnet20", 10, 32) == pytest.approx(0.27e6, rel=0.02)
    assert count("resnet56", 10, 32) == pytest.approx(0.86e6, rel=0.01)
    assert count("wrn-16-4", 10, 32) == pytest.approx(2.75e6, rel=0.002)
    assert count("resnet50", 1000, 224) == 25_557_032
    assert count("resnet50-mlp", 10, 32) == pytest.approx(27.7e6, rel=0.002)


def test_resnet8_by_hand() -> None:
    """Kernels, two numbers a normalised channel, classifier."""
    stage_1 = 2 * (9 * 16 * 16 + 32)
    stage_2 = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 3 * 64
    stage_3 = 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 3 * 128
    assert count("resnet8", 10, 32) == 27 * 16 + 32 + stage_1 + stage_2 + stage_3 + 64 * 10 + 10


def torchvision_names() -> set[str]:
    """The rules by which torchvision names the tensors of ResNet-50."""

    def normalisation(prefix: str) -> list[str]:
        return [f"{prefix}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *normalisation("bn1"), "fc.weight", "fc.bias"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            for layer in (1, 2, 3):
                names.append(f"layer{stage}.{block}.conv{layer}.weight")
                names += normalisation(f"layer{stage}.{block}.bn{layer}")
        names.append(f"layer{stage}.0.downsample.0.weight")
        names += normalisation(f"layer{stage}.0.downsample.1")
    return set(names)


def test_resnet50_has_torchvisions_names_and_shapes() -> None:
    state = outline("resnet50", 1000, 224).state_dict()
    assert set(state) == torchvision_names() | {"mean", "std"}
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert state["fc.weight"].shape == (1000, 2048)


def test_resnet50s_stride_sits_on_the_3x3_as_in_torchvision() -> None:
    model = outline("resnet50", 10, 224)
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
def test_the_stem_follows_the_picture_size(name: str, last: str, size: int, map_side: int) -> None:
    model = outline(name, 10, size)
    shapes: list[torch.Size] = []
    model.get_submodule(last).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert model(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 10)
    assert shapes[0][2:] == (map_side, map_side)


def test_the_student_is_small_and_its_map_fine_and_exact() -> None:
    model = build("cam-net", 10, 32)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 96_000
    logits, cams, *_ = predict(model, pictures(2, 32))
    assert form(model, pictures(2, 32)) == "exact"
    assert logits.shape == (2, 10)
    assert cams is not None
    assert cams.shape[:2] == (2, 10)
    assert min(cams.shape[2:]) >= 8


# --- every network


@every_model
def test_logits_are_finite_and_a_picture_does_not_depend_on_its_batch(
    name: str, built: Callable[[str], ImageClassifier]
) -> None:
    model, x = built(name), pictures()
    with torch.no_grad():
        logits = model(x)
        alone = torch.cat([model(picture[None]) for picture in x])
    assert logits.shape == (3, CLASSES)
    assert logits.isfinite().all()
    assert logits.std() > 0
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


@every_model
def test_training_in_bf16_stays_finite_and_reaches_every_parameter(
    name: str, built: Callable[[str], ImageClassifier]
) -> None:
    model = copy.deepcopy(built(name)).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pictures(2))
    loss = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.dtype == torch.float32


@every_model
def test_the_seed_decides_the_weights_and_nothing_else_does(name: str, built: Callable[[str], ImageClassifier]) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = build(name, CLASSES, SIZE, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    first = built(name).state_dict()
    assert again.state_dict().keys() == first.keys()
    assert all(torch.equal(value, first[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", ["cam-net", "resnet8", "wrn-16-4"])
def test_another_seed_draws_other_weights(name: str, built: Callable[[str], ImageClassifier]) -> None:
    other = build(name, CLASSES, SIZE, seed=8)
    for (key, ours), theirs in zip(built(name).named_parameters(), other.parameters(), strict=True):
        if ours.ndim > 1:
            assert not torch.equal(ours, theirs), key


@every_model
def test_normalisation_is_inside(name: str, built: Callable[[str], ImageClassifier]) -> None:
    model, x = copy.deepcopy(built(name)), pictures(1)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
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
def test_name_and_network_agree_about_the_optimizer(name: str, built: Callable[[str], ImageClassifier]) -> None:
    assert (
        default_optimizer(name) == built(name).default_optimizer == ("adamw" if name.startswith("cam-net") else "sgd")
    )


@every_model
def test_it_takes_any_number_of_classes(name: str) -> None:
    for classes in (2, 1000):
        model = outline(name, classes, 32)
        assert model(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, classes)


def test_a_network_that_is_not_there_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="there is no model 'vgg': choose one of cam-net, cam-net-lite, resnet8"):
        build("vgg", 10, 32)
