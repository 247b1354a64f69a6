"""What every room shares: a prediction, what wrong input raises, and the way to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class InputError(ValueError):
    """The user's input is wrong: one sentence naming the value, what was expected and what to do."""


class Prediction(NamedTuple):
    """What a classifier says about a batch of ``N`` pictures and ``K`` classes.

    ``logits`` is ``(N, K)``. ``cams`` is ``(N, K, h, w)``: each class's evidence at each place of the
    last spatial layer, in logit units, so that ``logits = cams.mean((2, 3)) + bias`` where the head is
    linear. ``features`` are the network's stages from the input on, each ``(N, C, h, w)``, the last one
    that layer itself (``camkd.predict`` says what a stage is). What nobody asked for is ``None``.
    Where ``shown (N, k)`` is given, ``cams`` is ``(N, k, h, w)``: the maps of these classes alone.
    """

    logits: Tensor
    cams: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    class_ids: Tensor | None = None

    def float(self) -> Prediction:
        """The same in fp32."""
        stages = None if self.features is None else tuple(stage.float() for stage in self.features)
        return Prediction(self.logits.float(), None if self.cams is None else self.cams.float(), stages, self.class_ids)

    def to(self, device: torch.device) -> Prediction:
        """The same on ``device``; a GPU fetches it without the host waiting."""
        stages = None if self.features is None else tuple(to_device(stage, device) for stage in self.features)
        cams, shown = (None if part is None else to_device(part, device) for part in (self.cams, self.class_ids))
        return Prediction(to_device(self.logits, device), cams, stages, shown)


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """``part`` on ``device``, without the host waiting for it."""
    if device.type == "cuda" and not part.is_cuda:
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


class ChanceLevel(NamedTuple):
    """Baseline of a map metric: the score of maps without knowledge of the image.

    The baseline of ``cam_cosine`` is stored beside it as ``cam_cosine_<suffix>``.
    """

    suffix: str
    label: str
    description: str

    def key(self, metric: str) -> str:
        """Return the key of the baseline of ``metric`` in ``metrics.json``."""
        return f"{metric}_{self.suffix}"


CHANCE_LEVELS = (
    ChanceLevel("shuffled", "other image", "the map of another image"),
    ChanceLevel("centre", "centre", "a Gaussian in the centre of the image"),
    ChanceLevel("chance", "anywhere", "a uniform map"),
)
"""Every baseline of a map metric."""
