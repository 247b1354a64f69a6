"""The built-in networks, by name.

Adding one: a file with an ordinary ``nn.Module`` that derives from ``Normalised``, a line in ``MODELS``, and its
entry in ``costs.json``, which the list of models reads so that it needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from camkd.models.cam_net import CamNet
from camkd.models.normalise import Normalised
from camkd.models.profile import Profile, profile
from camkd.models.resnet import BasicBlock, Bottleneck, ResNet
from camkd.models.resnet11 import ResNet11
from camkd.models.wide_resnet import WideResNet
from camkd.types import InputError

__all__ = ["MODELS", "Make", "Normalised", "Profile", "build", "entry", "profile"]


Make = Callable[[int, int], Normalised]
"""Makes a network for ``(classes, picture size)``."""


def _cifar_resnet(blocks: int) -> Make:
    return lambda classes, size: ResNet(BasicBlock, (16, 32, 64), (blocks,) * 3, classes, size)


def _resnet50(hidden: int = 0) -> Make:
    return lambda classes, size: ResNet(Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), classes, size, hidden=hidden)


MODELS: dict[str, Make] = {
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


def entry(name: str) -> Make:
    """What makes the network called ``name``. Raises ``InputError`` that lists the names where there is none."""
    if name not in MODELS:
        raise InputError(f"there is no model {name!r}: choose one of {', '.join(MODELS)}.")
    return MODELS[name]


def build(name: str, classes: int, size: int, seed: int = 0) -> Normalised:
    """Make the network ``name`` for ``classes`` classes and pictures of ``size`` pixels, drawn from ``seed``.

    The global random state is left as it was. Raises ``InputError`` for a name that is not in ``MODELS``.

    >>> sum(p.numel() for p in build("cam-net", 10, 32).parameters()) <= 96_000
    True
    """
    make = entry(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(classes, size)
