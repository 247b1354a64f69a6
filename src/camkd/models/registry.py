"""Registry of networks: the built-in networks, and the networks of timm and torchvision.

A name is a key of `MODELS`, ``timm:NAME`` or ``torchvision:NAME``. A tag after a dot selects pretrained weights of timm
or torchvision, as in ``timm:resnet50.a1_in1k`` (`camkd.models.external`). The suffix ``+groups-K`` stands for a network
of ``K`` classes whose classes are grouped (`camkd.models.grouped`).

To add a network, write a file with a subclass of `ImageClassifier`, add a line to `MODELS`, and add the network's cost
to ``costs.json``. ``camkd list models`` reads ``costs.json``, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from camkd.models.base import ImageClassifier
from camkd.models.cam_net import CamNet
from camkd.models.external import check_external, is_external, make_external
from camkd.models.grouped import GroupedClassifier, split_groups
from camkd.models.resnet import BasicBlock, Bottleneck, ResNet
from camkd.models.resnet11 import ResNet11
from camkd.models.wide_resnet import WideResNet
from camkd.types import InputError

__all__ = [
    "MODELS",
    "ModelFactory",
    "build",
    "default_optimizer",
    "is_model_name",
    "model_factory",
]


ModelFactory = Callable[[int, int], ImageClassifier]
"""``factory(num_classes, image_size) -> model``. The image size is the side of the images in pixels."""


def _cifar_resnet(blocks_per_stage: int) -> ModelFactory:
    def make(num_classes: int, image_size: int) -> ImageClassifier:
        return ResNet(BasicBlock, (16, 32, 64), (blocks_per_stage,) * 3, num_classes, image_size)

    return make


def _resnet50(hidden_features: int = 0) -> ModelFactory:
    def make(num_classes: int, image_size: int) -> ImageClassifier:
        widths = (64, 128, 256, 512)
        return ResNet(Bottleneck, widths, (3, 4, 6, 3), num_classes, image_size, hidden_features=hidden_features)

    return make


MODELS: dict[str, ModelFactory] = {
    "cam-net": CamNet,
    "cam-net-lite": lambda num_classes, image_size: CamNet(num_classes, image_size, variant="lite"),
    "cam-net-large": lambda num_classes, image_size: CamNet(num_classes, image_size, variant="large"),
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet56": _cifar_resnet(9),
    "resnet11": lambda num_classes, image_size: ResNet11(num_classes),
    "wrn-16-4": lambda num_classes, image_size: WideResNet(16, 4, num_classes),
    "resnet50": _resnet50(),
    "resnet50-mlp": _resnet50(hidden_features=2048),
}
"""Factories of the built-in networks by name."""


def default_optimizer(name: str) -> str:
    """Return the default optimizer of a network without building it.

    Args:
        name: Name of the network.

    Returns:
        ``adamw`` for CAM-Net and its variants; ``sgd`` for all others.
    """
    is_cam_net = split_groups(name)[0] in ("cam-net", "cam-net-lite", "cam-net-large")
    return (CamNet if is_cam_net else ImageClassifier).default_optimizer


def is_model_name(name: str) -> bool:
    """Return True for the name of a built-in network, and for any ``timm:NAME`` or ``torchvision:NAME``."""
    return name.partition("+")[0] in MODELS or is_external(name)


def model_factory(name: str, *, pretrained: bool = True) -> ModelFactory:
    """Return the factory of a network.

    Args:
        name: A key of `MODELS`, ``timm:NAME`` or ``torchvision:NAME``.
        pretrained: Whether the factory downloads pretrained weights, if ``name`` has a tag such as ``.a1_in1k``.

    Raises:
        InputError: If there is no such network, or if timm or torchvision cannot be imported. The message names
            choices.
    """
    name, base_classes = split_groups(name)
    if base_classes:
        return _grouped_factory(model_factory(name, pretrained=pretrained), base_classes)
    if is_external(name):
        check_external(name)
        return lambda num_classes, image_size: make_external(name, num_classes, image_size, pretrained)
    if name not in MODELS:
        raise InputError(
            f"model must be one of {', '.join(MODELS)}, timm:NAME or torchvision:NAME, got {name!r}. "
            "Choose one of them."
        )
    return MODELS[name]


def _grouped_factory(factory: ModelFactory, base_classes: int) -> ModelFactory:
    """Return the factory of a grouped network with the groups ``k % num_classes``, which loaded weights replace."""

    def make(num_classes: int, image_size: int) -> ImageClassifier:
        groups = [range(label, base_classes, num_classes) for label in range(num_classes)]
        return GroupedClassifier(factory(base_classes, image_size), groups, base_classes)

    return make


def build(name: str, classes: int, size: int, seed: int = 0, *, pretrained: bool = True) -> ImageClassifier:
    """Build a network.

    Args:
        name: A key of `MODELS`, ``timm:NAME`` or ``torchvision:NAME``. A tag after a dot, as in
            ``timm:resnet50.a1_in1k``, selects pretrained weights.
        classes: Number of classes.
        size: Side of the images in pixels.
        seed: Seed of the initial weights. The global random state is left unchanged.
        pretrained: Whether to download the weights that a tag selects. If not, or without a tag, all weights are
            random.

    Returns:
        The model in training mode. It maps images ``(N, 3, H, W)``, RGB in 0..1, to logits ``(N, classes)``.

    Raises:
        InputError: If there is no such network or no such weights, or if the network does not take images of this size.

    Example:
        >>> model = build("cam-net", classes=10, size=32)
        >>> model(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 10])
        >>> sum(p.numel() for p in model.parameters())
        86858
    """
    factory = model_factory(name, pretrained=pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return factory(classes, size)
