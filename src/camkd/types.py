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
    shown: Tensor | None = None

    def float(self) -> Prediction:
        """The same in fp32."""
        stages = None if self.features is None else tuple(stage.float() for stage in self.features)
        return Prediction(self.logits.float(), None if self.cams is None else self.cams.float(), stages, self.shown)

    def to(self, device: torch.device) -> Prediction:
        """The same on ``device``; a GPU fetches it without the host waiting."""
        stages = None if self.features is None else tuple(sent(stage, device) for stage in self.features)
        cams, shown = (None if part is None else sent(part, device) for part in (self.cams, self.shown))
        return Prediction(sent(self.logits, device), cams, stages, shown)


def sent(part: Tensor, device: torch.device) -> Tensor:
    """``part`` on ``device``, without the host waiting for it."""
    if device.type == "cuda" and not part.is_cuda:
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)
