"""Key of a teacher cache: a hash of everything that teacher outputs depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from camkd.data.dataset import Dataset
from camkd.data.files import VERSION as DECODING_VERSION
from camkd.models.architecture import architecture_key, library_versions
from camkd.types import Interpolation

VERSION = 4
"""Version of the key. Increment it when the key is computed differently."""

OUTPUT_VERSION = 1
"""Version of the outputs. Increment it when the same weights would give other outputs.

Reasons are a changed ``forward``, changed maps, or another division of a batch into forward passes.
"""


def key_inputs(
    model: nn.Module,
    architecture: str,
    data: Dataset,
    size: int,
    interpolation: Interpolation,
    device: torch.device,
) -> dict[str, Any]:
    """Collect what a model's outputs depend on besides its weights, for `cache_key`.

    Images are identified by the content of their source files and by the decoding settings. So the key can be computed
    before the images are decoded at the size of the model.

    Args:
        model: The model.
        architecture: Name of the network.
        data: The dataset, at any size.
        size: Side of the model's images in pixels.
        interpolation: Filter that resizes the model's images.
        device: Device of the model. The key contains its type, not its index.

    Returns:
        JSON values under explicit names. Renaming one of these names invalidates every cache.
    """
    return {
        "architecture": architecture,
        "layers": architecture_key(model),
        "libraries": library_versions(architecture),
        "images": {
            "source": data.source_fingerprint,
            "decoding": DECODING_VERSION,
            "size": size,
            "fit": data.fit,
            "interpolation": data.interpolation and interpolation,
            "value_range": data.value_range,
        },
        "outputs": OUTPUT_VERSION,
        "device": device.type,
    }


def cache_key(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Hash a teacher's weights and everything else that its cached outputs depend on.

    Names of Python classes and configuration fields have no influence, so renaming them keeps every cache valid. Names
    of parameters and buffers do have an influence.

    Args:
        model: The teacher. Its parameters and buffers are hashed by name, dtype, shape and content.
        inputs: The other dependencies, as JSON values under explicit names.

    Returns:
        24 hexadecimal digits.

    Example:
        >>> cache_key(nn.Identity(), {"data": "abc"}) == cache_key(nn.Identity(), {"data": "abd"})
        False
    """
    digest = hashlib.sha256(json.dumps({"version": VERSION, **inputs}, sort_keys=True, allow_nan=False).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    return digest.hexdigest()[:24]
