"""Identity of a network for caches: a key of its modules, and the versions of its libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from torch import nn

from camkd.models.external import LIBRARIES


def architecture_key(model: nn.Module) -> str:
    """Compute a key of a network's architecture, independent of its weights and its state.

    ``state_dict()`` and ``repr()`` do not determine the output of a network: two vision transformers that differ only
    in ``global_pool`` have equal ones. The key therefore covers, for each module in ``named_modules()``,

    - its dotted name,
    - the qualified name of its class, for example ``torch.nn.modules.conv.Conv2d``,
    - its public instance attributes that are ``int``, ``float``, ``bool``, ``str``, None, or tuples or lists of these,
      by name.

    Modules of classes that are defined in camkd contribute only their dotted name. Add the architecture name
    (``ImageClassifier.info.architecture``) to the key of such a model: it determines the rest.

    The key does not change when weights, buffers, device, dtype, ``requires_grad``, hooks, or training and evaluation
    mode change. It does not change either when private attributes (with a leading underscore) are renamed, or when
    classes and attributes of camkd are renamed. It changes when a submodule is renamed, or when a class or a public
    scalar attribute outside camkd is renamed. In a new release torch, timm or torchvision may rename attributes or
    change a computation, so callers add `library_versions`. The code of ``forward()`` is not part of the key.

    Args:
        model: the network.

    Returns:
        A SHA-256 hash, 64 hexadecimal digits.

    Example:
        >>> narrow, wide = nn.AvgPool2d(2), nn.AvgPool2d(3)
        >>> architecture_key(narrow) == architecture_key(wide)
        False
        >>> architecture_key(narrow) == architecture_key(nn.AvgPool2d(2).eval())
        True
    """
    description = list(_describe_modules(model))
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def library_versions(architecture: str) -> dict[str, str]:
    """Return the versions of the libraries that a network is built from.

    Args:
        architecture: name of the network in `camkd.build`.

    Returns:
        The version of torch, and that of timm or torchvision for ``timm:NAME`` or ``torchvision:NAME``.

    Raises:
        importlib.metadata.PackageNotFoundError: if timm or torchvision is not installed.

    Example:
        >>> sorted(library_versions("resnet8"))
        ['torch']
    """
    prefix, colon, _ = architecture.partition(":")
    libraries = ["torch"]
    if colon and prefix in LIBRARIES:
        libraries.append(prefix)
    return {library: version(library) for library in libraries}


def _describe_modules(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield dotted name, class name and hyperparameters of each module, also of a module that occurs several times."""
    for name, module in model.named_modules(remove_duplicate=False):
        cls = type(module)
        if cls.__module__.partition(".")[0] == "camkd":
            yield name, "", {}
        else:
            yield name, f"{cls.__module__}.{cls.__qualname__}", _hyperparameters(module)


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    """Return the public scalar attributes of a module, sorted by name. ``training`` is state and is left out."""
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and _is_scalar(value)
    }


def _is_scalar(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_scalar(item) for item in value)
    return value is None or isinstance(value, int | float | str)
