"""Identity of a network for cache keys: a hash of its architecture, and the versions of its libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from torch import nn

from camkd.models.external import LIBRARIES


def architecture_key(model: nn.Module) -> str:
    """Compute a hash of a network's modules and their settings, independent of its weights and its state.

    ``state_dict()`` and ``repr()`` do not determine the output of a network. For example, two vision transformers that
    differ only in ``global_pool`` have equal state dicts and equal representations. The hash therefore covers, for each
    module in ``named_modules(remove_duplicate=False)``,

    - its dotted name,
    - the qualified name of its class, for example ``torch.nn.modules.conv.Conv2d``,
    - its plain public attributes: instance attributes without a leading underscore whose value is an ``int``,
      ``float``, ``bool``, ``str``, None, or a tuple or list of these values. ``training`` is left out.

    A module whose class is defined in camkd contributes only its dotted name. Callers therefore add the name of the
    network (``ImageClassifier.info.architecture``), which determines the settings of such modules.

    Unchanged by:

    - weights, buffers, device, dtype, ``requires_grad``, hooks, and training or evaluation mode,
    - a renamed private attribute,
    - a renamed class or attribute of camkd, except for the name of a submodule,
    - the code of ``forward()``.

    Changed by:

    - an added, removed or renamed submodule,
    - a renamed class outside camkd,
    - another name or value of a plain public attribute outside camkd.

    A new release of torch, timm or torchvision may change a computation without a change of the hash. Callers therefore
    add `library_versions`.

    Args:
        model: The network.

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
    """Return the installed versions of the libraries that a network is built from.

    Args:
        architecture: Name of the network, as in `camkd.build`.

    Returns:
        The version of torch, and the version of timm or torchvision for ``timm:NAME`` or ``torchvision:NAME``.

    Raises:
        importlib.metadata.PackageNotFoundError: If timm or torchvision is not installed.

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
    """Yield the dotted name, class name and plain public attributes of each module, under each of its names."""
    for name, module in model.named_modules(remove_duplicate=False):
        cls = type(module)
        if cls.__module__.partition(".")[0] == "camkd":
            yield name, "", {}
        else:
            yield name, f"{cls.__module__}.{cls.__qualname__}", _plain_attributes(module)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain public attributes of a module, sorted by name. ``training`` is state and is left out."""
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float | str)
