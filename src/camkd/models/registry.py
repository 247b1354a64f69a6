"""Networks by name: the built-in ones, and those of timm and torchvision.

Adding one: a file with an ordinary ``nn.Module`` that derives from ``ImageClassifier``, a line in ``MODELS``, and its
entry in ``costs.json``, which the list of models reads so that it needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from camkd.models.base import ImageClassifier
from camkd.models.cam_net import CamNet
from camkd.models.external import check_external, is_external, make_external
from camkd.models.profile import Profile, profile
from camkd.models.resnet import BasicBlock, Bottleneck, ResNet
from camkd.models.resnet11 import ResNet11
from camkd.models.wide_resnet import WideResNet
from camkd.types import InputError

__all__ = [
    "MODELS",
    "ImageClassifier",
    "ModelFactory",
    "Profile",
    "build",
    "default_optimizer",
    "is_model_name",
    "model_factory",
    "profile",
]


ModelFactory = Callable[[int, int], ImageClassifier]
"""Makes a network for ``(classes, picture size)``."""


def _cifar_resnet(blocks: int) -> ModelFactory:
    return lambda classes, size: ResNet(BasicBlock, (16, 32, 64), (blocks,) * 3, classes, size)


def _resnet50(hidden: int = 0) -> ModelFactory:
    return lambda classes, size: ResNet(Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), classes, size, hidden=hidden)


MODELS: dict[str, ModelFactory] = {
    "cam-net": lambda classes, size: CamNet(classes),
    "cam-net-lite": lambda classes, size: CamNet(classes, lite=True),
    "resnet8": _cifar_resnet(1),
    "resnet20": _cifar_resnet(3),
    "resnet56": _cifar_resnet(9),
    "resnet11": lambda classes, size: ResNet11(classes),
    "wrn-16-4": lambda classes, size: WideResNet(16, 4, classes),
    "resnet50": _resnet50(),
    "resnet50-mlp": _resnet50(hidden=2048),
}


def default_optimizer(name: str) -> str:
    """What the class of the network ``name`` says, without making one.

    SGD where batches are normalised, AdamW for CAM-Net.
    """
    return (CamNet if name in ("cam-net", "cam-net-lite") else ImageClassifier).default_optimizer


def is_model_name(name: str) -> bool:
    """Tell whether ``name`` is that of a network, not of a run: built in, ``timm:NAME`` or ``torchvision:NAME``."""
    return name in MODELS or is_external(name)


def model_factory(name: str, *, pretrained: bool = True) -> ModelFactory:
    """What makes the network called ``name``. Raises ``InputError`` that lists the names where there is none.

    Without ``pretrained`` nothing is downloaded, whatever the name asks for.
    """
    if is_external(name):
        check_external(name)
        return lambda classes, size: make_external(name, classes, size, pretrained)
    if name not in MODELS:
        raise InputError(
            f"there is no model {name!r}: choose one of {', '.join(MODELS)}, or timm:NAME or torchvision:NAME."
        )
    return MODELS[name]


def build(name: str, classes: int, size: int, seed: int = 0, *, pretrained: bool = True) -> ImageClassifier:
    """Make the network ``name`` for ``classes`` classes and pictures of ``size`` pixels, drawn from ``seed``.

    ``name`` is in ``MODELS``, or ``timm:NAME`` or ``torchvision:NAME``; one with a tag, ``timm:resnet50.a1_in1k``, has
    the weights of that tag, which are downloaded, unless ``pretrained`` is False. The global random state is left as
    it was. Raises ``InputError`` for a name that is not there.

    >>> sum(p.numel() for p in build("cam-net", 10, 32).parameters()) <= 96_000
    True
    """
    make = model_factory(name, pretrained=pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(classes, size)
