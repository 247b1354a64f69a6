"""Key of a teacher cache: a hash of everything that teacher outputs depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

VERSION = 3
"""Version of the key. Increment it when the key is computed differently."""


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
