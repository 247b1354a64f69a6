"""Save a model as a folder of weights, model info, metrics and model card.

Weights are stored as safetensors, and nothing is pickled. The model info holds the checksum of the weights, so that
`camkd.load` detects a corrupted file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from safetensors.torch import save as serialize
from torch import nn

from camkd.models.card import render_card
from camkd.types import Fit, Interpolation, Preprocessing
from camkd.utils.files import atomic_write, write_json, write_text

MAX_IMAGE_SIZE = 1 << 14
"""Largest side of the images in pixels that `ModelInfo.check` accepts."""

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class ModelInfo:
    """Description of a trained model, the content of ``model.json``.

    Args:
        architecture: Name of the network, as in `camkd.build`.
        classes: Class names, in the order of the logits.
        size: Side of the images in pixels.
        params: Number of parameters.
        macs: Multiply-accumulates per image.
        role: ``teacher``, ``control`` or ``student``; ``model`` for a network with pretrained weights.
        method: Method of the loss; empty for a network with pretrained weights.
        data: Dataset: a name or the path of a folder; empty for a network with pretrained weights.
        data_fingerprint: `Dataset.fingerprint` of the dataset; empty for a network with pretrained weights.
        seed: Seed of the initial weights.
        teacher: Teacher of the run, for example the absolute path of its run folder. None without a teacher.
        value_range: The gray values that became 0 and 255 in the training images, for gray images of more than 8 bits;
            None if there was no such image.
        source_fingerprint: `Dataset.source_fingerprint` of the dataset; empty for a network with pretrained weights.
        fit: Treatment of images that are not square: ``crop`` or ``pad``; see `camkd.types.Preprocessing`.
        interpolation: Filter that resized the images: ``bicubic`` or ``bilinear``.
        temperature: Temperature that ``camkd calibrate`` divided weight and bias of the last layer by; 1 without.
        threshold: Confidence, the largest softmax probability, below which an answer counts as unsure. None without.
        sha256: Checksum of the weights file, hexadecimal; empty before saving.
    """

    architecture: str
    classes: tuple[str, ...]
    size: int
    params: int
    macs: int
    role: str
    method: str
    data: str
    data_fingerprint: str
    seed: int
    teacher: str | None = None
    value_range: tuple[float, float] | None = None
    source_fingerprint: str = ""
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
    temperature: float = 1.0
    threshold: float | None = None
    sha256: str = ""

    @property
    def preprocessing(self) -> Preprocessing:
        """Conversion of an image file to the input of the model."""
        return Preprocessing(self.size, self.fit, self.interpolation, self.value_range)

    def check(self) -> None:
        """Check the type of each field, the classes and the image size.

        Raises:
            TypeError: If a field has the wrong type.
            ValueError: If there are fewer than two classes, if a class name is not a string of valid Unicode, or if
                ``size``, ``value_range``, ``temperature`` or ``threshold`` is out of range, or if ``fit`` or
                ``interpolation`` is unknown.
        """
        for name, annotation in get_type_hints(ModelInfo).items():
            value = getattr(self, name)
            types: dict[str, Any] = {"classes": tuple, "value_range": tuple | None, "fit": str, "interpolation": str}
            expected_type = types.get(name, annotation)
            if not isinstance(value, expected_type) or isinstance(value, bool):
                raise TypeError(f"{name} must be of type {_type_name(expected_type)}, got {value!r}")
        if len(self.classes) < 2 or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes must be two names or more, got {list(self.classes)!r}")
        for name, value, choices in (
            ("fit", self.fit, get_args(Fit)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if self.value_range is not None:
            low, high = self.value_range
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"value_range must be two increasing numbers, got {list(self.value_range)!r}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be more than 0, got {self.temperature}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        if not 1 <= self.size <= MAX_IMAGE_SIZE:
            raise ValueError(f"size must be between 1 and {MAX_IMAGE_SIZE}, got {self.size}")
        "".join(self.classes).encode()  # raises for a lone surrogate, which cannot be printed

    def portable(self) -> ModelInfo:
        """Return a copy without paths of this machine: the dataset by its base name, and no teacher."""
        return replace(self, data=Path(self.data).name, teacher=None)


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def save(model: nn.Module, folder: Path, info: ModelInfo) -> None:
    """Save weights and model info; each file is written atomically.

    Args:
        model: The model.
        folder: The folder to write ``model.safetensors`` and ``model.json`` to; it is created if needed.
        info: The model info. Its ``sha256`` is replaced by the checksum of the weights.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = serialize(tensors)
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(content)
    write_json(folder / INFO_FILE, {**asdict(info), "sha256": hashlib.sha256(content).hexdigest()})


def save_portable(
    model: nn.Module, folder: Path, info: ModelInfo, metrics: Mapping[str, Any], source: str = "FOLDER"
) -> None:
    """Save weights, model info without paths of this machine, metrics and a model card.

    Args:
        model: The model.
        folder: The folder to write ``model.safetensors``, ``model.json``, ``metrics.json`` and ``README.md`` to.
        info: The model info. `ModelInfo.portable` removes the paths.
        metrics: Content of ``metrics.json``. If it is empty, the file is not written.
        source: Argument of ``camkd.load`` in the example of the card.

    Example:
        >>> model = camkd.load("runs/mine")                                           # doctest: +SKIP
        >>> save_portable(model, Path("to-share"), model.info, model.metrics)         # doctest: +SKIP
    """
    portable = info.portable()
    save(model, folder, portable)
    if metrics:
        write_json(folder / METRICS_FILE, dict(metrics))
    write_text(folder / CARD_FILE, render_card(asdict(portable), metrics, "pytorch", source=source))
