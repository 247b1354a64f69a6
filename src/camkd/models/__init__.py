"""The built-in networks, by name.

Adding one: a file with an ordinary ``nn.Module`` that derives from ``Normalised``, and a line in ``MODELS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from camkd.models.cam_net import CamNet
from camkd.models.normalise import Normalised
from camkd.models.profile import Profile, profile
from camkd.models.resnet import BasicBlock, Bottleneck, ResNet
from camkd.models.wide_resnet import WideResNet
from camkd.types import InputError

__all__ = ["MODELS", "ModelEntry", "Normalised", "Profile", "build", "entry", "profile"]


@dataclass(frozen=True)
class ModelEntry:
    """How to make a network for ``(classes, picture size)``, and what to say of it in a list."""

    make: Callable[[int, int], Normalised]
    summary: str
    form: Literal["exact", "gradient"] = "exact"  # of its class activation maps


def _cifar_resnet(blocks: int) -> Callable[[int, int], Normalised]:
    return lambda classes, size: ResNet(BasicBlock, (16, 32, 64), (blocks,) * 3, classes, size)


def _resnet50(hidden: int = 0) -> Callable[[int, int], Normalised]:
    return lambda classes, size: ResNet(Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), classes, size, hidden=hidden)


MODELS: dict[str, ModelEntry] = {
    "cam-net": ModelEntry(lambda classes, size: CamNet(classes), "our student: 1x1 convolution head, 8x8 map"),
    "resnet8": ModelEntry(_cifar_resnet(1), "CIFAR ResNet, 1 block a stage"),
    "resnet20": ModelEntry(_cifar_resnet(3), "CIFAR ResNet, 3 blocks a stage"),
    "resnet56": ModelEntry(_cifar_resnet(9), "CIFAR ResNet, 9 blocks a stage"),
    "wrn-16-4": ModelEntry(lambda classes, size: WideResNet(16, 4, classes), "wide ResNet: a teacher for CPUs"),
    "resnet50": ModelEntry(_resnet50(), "ResNet-50; torchvision's names, so its weights load"),
    "resnet50-mlp": ModelEntry(
        _resnet50(hidden=2048),
        "the write-up's teacher, 27.8 M with normalisation statistics: 2,048 hidden units in the head",
        "gradient",
    ),
}


def entry(name: str) -> ModelEntry:
    """The entry called ``name``. Raises ``InputError`` that lists the names where there is none."""
    if name not in MODELS:
        raise InputError(f"there is no model {name!r}: choose one of {', '.join(MODELS)}.")
    return MODELS[name]


def build(name: str, classes: int, size: int, seed: int = 0) -> Normalised:
    """Make the network ``name`` for ``classes`` classes and pictures of ``size`` pixels, drawn from ``seed``.

    The global random state is left as it was. Raises ``InputError`` for a name that is not in ``MODELS``.

    >>> sum(p.numel() for p in build("cam-net", 10, 32).parameters()) <= 96_000
    True
    """
    make = entry(name).make
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(classes, size)
