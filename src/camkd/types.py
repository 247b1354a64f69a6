"""The two types every room shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """The user's input is wrong: one sentence naming the value, what was expected and what to do."""


class Prediction(NamedTuple):
    """What a classifier says about a batch of ``N`` pictures and ``K`` classes.

    ``logits`` is ``(N, K)``. ``cams`` is ``(N, K, h, w)``: each class's evidence at each place of the
    last spatial layer, in logit units, so that ``logits = cams.mean((2, 3)) + bias`` where the head is
    linear. ``features`` is ``(N, C, h, w)``, that layer itself. What nobody asked for is ``None``.
    """

    logits: Tensor
    cams: Tensor | None = None
    features: Tensor | None = None

    def float(self) -> Prediction:
        """The same in fp32."""
        return Prediction(*(None if part is None else part.float() for part in self))  # type: ignore[arg-type]
