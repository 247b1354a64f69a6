"""Shared types: invalid input, interruption of training, preprocessing, predictions, and baselines of map metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class InputError(ValueError):
    """Invalid user input.

    The message is one line that names the value, the rule and the fix. The command line prints it and exits with
    status 2.

    Example:
        >>> raise InputError("epochs must be 1 or more, got 0.")
        Traceback (most recent call last):
        camkd.types.InputError: epochs must be 1 or more, got 0.
    """


class Interrupted(KeyboardInterrupt):
    """Interruption of training by a signal. The exception names the run folder, which holds the saved state."""


Fit = Literal["crop", "pad"]
"""Treatment of images that are not square: ``crop`` keeps the center square, ``pad`` fills up the shorter side."""

Interpolation = Literal["bicubic", "bilinear"]
"""Filter that resizes images, with antialiasing."""


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of an image file to the input of a network.

    Args:
        size: Side of the square input in pixels.
        fit: ``crop``: the shorter side is resized to ``size``, and the center square is cropped. ``pad``: the longer
            side is resized to ``size``, and the rest of the square is filled with gray.
        interpolation: Filter of the resizing, with antialiasing.
        value_range: The gray values that become 0 and 255, for gray images of more than 8 bits. None: 0 and 65535.

    Example:
        >>> Preprocessing(64, "pad").description
        'the longer side is resized to 64 pixels (bicubic, antialiased), and gray (127) fills the rest of the square'
    """

    size: int
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
    value_range: tuple[float, float] | None = None

    @property
    def description(self) -> str:
        """The resizing in words."""
        resized = f"resized to {self.size} pixels ({self.interpolation}, antialiased)"
        if self.fit == "crop":
            return f"the shorter side is {resized}, and the center square is cropped"
        return f"the longer side is {resized}, and gray ({PAD_VALUE}) fills the rest of the square"


PAD_VALUE = 127
"""Red, green and blue of the pixels that ``pad`` adds."""


class Prediction(NamedTuple):
    """Output of a classifier for a batch of ``N`` images and ``K`` classes.

    Attributes:
        logits: Logits ``(N, K)``.
        cams: Class activation maps ``(N, K, h, w)``, or ``(N, k, h, w)`` of the classes in ``class_ids``. Each cell is
            the evidence for the class at one location of the layer that the maps are computed from. Maps of the method
            ``cam`` are in units of logits: with a linear head, ``logits = cams.mean((2, 3)) + bias``. None if not
            requested.
        features: Outputs ``(N, C, h, w)`` of the network's stages, from the input to the layer that the maps are
            computed from. `camkd.predict` defines a stage. None if not requested.
        class_ids: Classes ``(N, k)`` of ``cams``. None for all ``K`` classes in order.

    Example:
        >>> prediction = camkd.predict(model, images)                          # doctest: +SKIP
        >>> prediction.logits.shape, prediction.cams.shape                     # doctest: +SKIP
        (torch.Size([8, 10]), torch.Size([8, 10, 8, 8]))
    """

    logits: Tensor
    cams: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    class_ids: Tensor | None = None

    def float(self) -> Prediction:
        """Return the prediction with logits, maps and features in fp32."""
        features = None if self.features is None else tuple(stage.float() for stage in self.features)
        cams = None if self.cams is None else self.cams.float()
        return Prediction(self.logits.float(), cams, features, self.class_ids)

    def to(self, device: torch.device) -> Prediction:
        """Return the prediction on ``device``. A copy from the host to a CUDA device is asynchronous."""
        features = None if self.features is None else tuple(to_device(stage, device) for stage in self.features)
        cams = None if self.cams is None else to_device(self.cams, device)
        class_ids = None if self.class_ids is None else to_device(self.class_ids, device)
        return Prediction(to_device(self.logits, device), cams, features, class_ids)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on ``device``. A copy from the host to a CUDA device is asynchronous, through pinned memory."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class ChanceLevel(NamedTuple):
    """Baseline of a map metric: the score of a map that does not depend on the image, in place of the model's map.

    The baseline of ``cam_cosine`` is stored in ``metrics.json`` under the key ``cam_cosine_<suffix>``.

    Attributes:
        suffix: Suffix of the key.
        label: Short name in tables and figures.
        description: The map that is scored in place of the model's map.
    """

    suffix: str
    label: str
    description: str

    def key(self, metric: str) -> str:
        """Return the key of the baseline of ``metric`` in ``metrics.json``."""
        return f"{metric}_{self.suffix}"


CENTER = ChanceLevel("center", "center", "a Gaussian in the center of the image")
MEAN_MAP = ChanceLevel("mean_map", "mean map", "the teacher's mean map of the other images of the class")
SHUFFLED = ChanceLevel("shuffled", "other image", "the model's map of another image")
UNIFORM = ChanceLevel("chance", "anywhere", "a uniform map")

CHANCE_LEVELS = (CENTER, MEAN_MAP, SHUFFLED, UNIFORM)
"""Every baseline of a map metric. docs/metrics.md lists which metric has which."""
