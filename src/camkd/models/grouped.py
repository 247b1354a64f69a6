"""Classifier with grouped classes: each logit is the log-sum-exp of the logits of a group of classes.

The name of a grouped network is the name of the base network, followed by ``+groups-K`` for the ``K`` classes of the
base, for example ``timm:resnet50.a1_in1k+groups-1000``. The groups are a buffer, which is saved with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from camkd.models.base import ImageClassifier
from camkd.types import InputError

SUFFIX = "+groups-"


class GroupedClassifier(ImageClassifier):
    """Classifier whose classes are groups of the classes of a base classifier.

        logit[c] = log(sum_k(exp(logit[k])))    for k in groups[c]

    The probability of a class is the sum of the probabilities of its group, relative to all grouped classes. Classes of
    the base that are in no group are ignored. A map of this network is gradient-based: the weighted sum of the maps
    of the group, with the softmax of the group's logits as weights. It is not exact, because its mean is the weighted
    mean of the logits and not their log-sum-exp.

    Args:
        base: The classifier, from images ``(N, 3, H, W)`` to logits ``(N, K)``. Its normalization moves to this module.
        groups: For each class, the indices of the classes of ``base`` in its group.
        base_classes: Number ``K`` of classes of ``base``.

    Example:
        >>> from camkd.models import build
        >>> model = GroupedClassifier(build("resnet8", classes=4, size=32), [(0, 3), (1,)], base_classes=4).eval()
        >>> x = torch.rand(1, 3, 32, 32)
        >>> torch.allclose(model(x)[0, 0], model.base(model.normalize(x))[0, [0, 3]].logsumexp(0))
        True
    """

    groups: Tensor

    def __init__(self, base: ImageClassifier, groups: Sequence[Sequence[int]], base_classes: int) -> None:
        super().__init__()
        self.set_normalization(base.mean.flatten().tolist(), base.std.flatten().tolist())
        self.has_pretrained_normalization = base.has_pretrained_normalization
        base.set_normalization([0.0] * 3, [1.0] * 3)
        self.base = base
        member = torch.zeros(len(groups), base_classes, dtype=torch.bool)
        for row, group in zip(member, groups, strict=True):
            row[list(group)] = True
        self.register_buffer("groups", member)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.base(self.normalize(x))
        if logits.dtype in (torch.half, torch.bfloat16):
            logits = logits.float()
        return logits[:, None].masked_fill(~self.groups, -torch.inf).logsumexp(2)


def split_groups(name: str) -> tuple[str, int]:
    """Split the name of a grouped network into the name and the number of classes of the base network.

    Args:
        name: Name of any network.

    Returns:
        The name of the base network, and its number of classes. Without suffix, ``name`` and 0.

    Raises:
        InputError: If the number of classes is missing or less than 2.

    Example:
        >>> split_groups("timm:resnet18+groups-1000"), split_groups("resnet8")
        (('timm:resnet18', 1000), ('resnet8', 0))
    """
    base, suffix, number = name.partition(SUFFIX)
    if not suffix:
        return name, 0
    if not (number.isascii() and number.isdecimal() and int(number) > 1):
        raise InputError(
            f"the number of classes in the model name must be 2 or more after {SUFFIX!r}, got {name!r}. Write the "
            f"name as in {base}{SUFFIX}1000."
        )
    return base, int(number)


def grouped_name(name: str, base_classes: int) -> str:
    """Return the name of a grouped network.

    Example:
        >>> grouped_name("resnet8", 1000)
        'resnet8+groups-1000'
    """
    return f"{name}{SUFFIX}{base_classes}"
