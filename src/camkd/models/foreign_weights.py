"""Weights from other libraries: a file written by PyTorch or safetensors, read without executing code.

Training scripts nest the state dict in a dict, and wrappers add a prefix to every name. Nesting and prefixes are
removed.
"""

from __future__ import annotations

import pickle
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from camkd.types import InputError

STATE_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "module",
)
"""Names under which training scripts store a state dict. Averaged weights are preferred, as in timm."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that wrappers such as ``DataParallel``, ``torch.compile`` and Lightning put before every name."""

MAX_NESTING = 4

COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Last parts of the names of entries that other libraries add to a state dict. These entries are not loaded."""

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the auxiliary heads of torchvision's GoogLeNet and Inception, which are used in training only."""

CLASS_KEYS = ("classes", "class_names", "class_to_idx", "idx_to_class")
"""Names under which training scripts store the classes in order."""

PLAIN_TYPES: list[Any] = [
    Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
    *(
        (type(np.float64(0)).__reduce__(np.float64(0))[0], f"numpy.{name}.multiarray.scalar")
        for name in ("_core", "core")
    ),
]
"""Types of plain values in checkpoints that PyTorch does not read by itself: options of argparse, NumPy's scalars."""

MAX_LISTED = 3
"""Maximum number of names of each kind that an error message lists."""


class ForeignWeights(NamedTuple):
    """Content of a file of weights.

    Attributes:
        path: The file.
        state: Tensors by name.
        source: Names of the entries that lead to the state dict, such as ``("model",)``. Empty for the file itself.
        classes: Class names in the order of the logits, or None if the file has none.
    """

    path: Path
    state: dict[str, Tensor]
    source: tuple[str, ...]
    classes: tuple[str, ...] | None


def read_weights(file: str | Path, *, needs_classes: bool = True) -> ForeignWeights:
    """Read a state dict from a file, and the class names if the file has them.

    A PyTorch file is read with ``weights_only=True``. A file that would execute code is refused.

    Args:
        file: A ``.safetensors`` file, or a file written by ``torch.save`` with a state dict, which may be nested under
            the names in `STATE_KEYS`.
        needs_classes: Whether an entry for the classes that holds no names in order is an error. Otherwise it is
            ignored.

    Returns:
        The state dict, and the class names or None.

    Raises:
        InputError: If there is no such file, if the file cannot be read without executing code, or if it holds no state
            dict, or if the class names are needed and cannot be read.

    Example:
        >>> weights = read_weights("checkpoint.pth")                    # doctest: +SKIP
        >>> weights.source, len(weights.state), weights.classes         # doctest: +SKIP
        (('model',), 122, ('cat', 'dog'))
    """
    path = Path(file).expanduser()
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"--weights must be a .safetensors, .pt or .pth file, got {path}, which {problem}. Check the path."
        )
    content = _load(path)
    tensors, source = _find_state_dict(content)
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        summary = f"a dict with {keys}" if keys else f"a {type(content).__name__}"
        raise InputError(f"{path} must hold a state dict, got {summary}. Save model.state_dict() with torch.save.")
    return ForeignWeights(path, tensors, source, _find_classes(content, path, needs_classes))


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise InputError(
                f"{path} must hold tensors and plain values only, got objects whose loading executes code. Save "
                "model.state_dict() with torch.save."
            ) from error
        raise _unreadable(path, error) from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    reason = "an empty file" if path.stat().st_size == 0 else sentence if " " in sentence else "other content"
    return InputError(f"{path} must be a file written by torch.save or safetensors, got: {reason}. Check the file.")


def _find_state_dict(content: Any, nesting: int = 0) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of the first state dict, and the names of the entries that lead to it."""
    if not isinstance(content, Mapping) or nesting > MAX_NESTING:
        return {}, ()
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) == len(content):
        return tensors, ()
    for key in STATE_KEYS:
        state, source = _find_state_dict(content.get(key), nesting + 1)
        if state:
            return state, (key, *source)
    return tensors, ()


def _find_classes(content: Any, path: Path, needs_classes: bool) -> tuple[str, ...] | None:
    """Return the class names of a checkpoint: the first entry with a key in `CLASS_KEYS`, else that under ``meta``."""
    if not isinstance(content, Mapping):
        return None
    meta = content.get("meta")
    for mapping in (content, meta if isinstance(meta, Mapping) else {}):
        for key in CLASS_KEYS:
            value = mapping.get(key)
            if value is not None and not (isinstance(value, list | tuple | Mapping | str) and not value):
                names = parse_classes(value)
                if names is None and needs_classes:
                    raise InputError(
                        f"{key} in {path} must be class names in order, got {_describe(value)}. Give the "
                        "classes with --classes."
                    )
                return names
    return None


def _describe(value: Any) -> str:
    text = repr(value) if not isinstance(value, Tensor) else f"a tensor of shape {tuple(value.shape)}"
    return text if len(text) < 80 else f"{text[:77]}..."


def parse_classes(value: Any) -> tuple[str, ...] | None:
    """Return class names in order from a list, a dict from names to indices, or a dict from indices to names.

    Args:
        value: The list or dict.

    Returns:
        The names, or None if ``value`` is anything else or the indices are not 0, 1, 2 and so on.

    Example:
        >>> parse_classes(["cat", "dog"]), parse_classes({"cat": 1, "dog": 0}), parse_classes({"0": "cat", "1": "dog"})
        (('cat', 'dog'), ('dog', 'cat'), ('cat', 'dog'))
    """
    if isinstance(value, list | tuple):
        return tuple(value) if all(isinstance(name, str) for name in value) else None
    if not isinstance(value, Mapping):
        return None
    pairs = list(value.items())
    if all(isinstance(index, int) for _, index in pairs):
        by_index = {int(index): name for name, index in pairs}
    elif all(str(index).isdecimal() for index, _ in pairs):
        by_index = {int(index): name for index, name in pairs}
    else:
        return None
    if sorted(by_index) != list(range(len(pairs))):
        return None
    names = tuple(by_index[index] for index in range(len(pairs)))
    return names if all(isinstance(name, str) for name in names) else None


def without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the names of a state dict if more names then match those of the network.

    Args:
        state: Tensors by name.
        expected: The state dict of the network.

    Returns:
        The tensors by their new names, without `COUNTERS` and `AUXILIARY` heads. If a prefix is removed, tensors whose
        names lack the prefix are left out.

    Example:
        >>> list(without_prefix({"module.fc.bias": torch.zeros(2)}, {"fc.bias": torch.zeros(2)}))
        ['fc.bias']
    """

    def count(candidate: Mapping[str, Tensor]) -> int:
        return len(candidate.keys() & expected.keys())

    weights = {
        name: tensor
        for name, tensor in state.items()
        if name.rpartition(".")[2] not in COUNTERS and not name.startswith(AUXILIARY)
    }
    return max(_candidates(weights), key=count)


def _candidates(state: dict[str, Tensor], nesting: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield a state dict, and the state dicts without one or several prefixes."""
    yield state
    for prefix in PREFIXES:
        stripped = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix) and not name.removeprefix(prefix).startswith(AUXILIARY)
        }
        if stripped and nesting < MAX_NESTING:
            yield from _candidates(stripped, nesting + 1)


def check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, network: str) -> None:
    """Check that a state dict has the names and shapes of a network, and finite values.

    Args:
        state: Tensors by name, after `without_prefix`.
        expected: The state dict of the network.
        path: The file, for the error message.
        network: Name of the network, for the error message.

    Raises:
        InputError: If a name is missing or unexpected, a shape differs, or a value is not finite. The message lists the
            first names of each kind and their number.
    """
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    problems = [f"{kind}: {_list_names(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise InputError(
            f"The weights in {path} must fit {network}, got {'; '.join(problems)}. Choose the network and the image "
            "size that the weights were trained with."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"The weights in {path} must be finite, got NaN or infinity in {name}. Use other weights.")


def _list_names(names: list[str]) -> str:
    """Return the first names, and their number if there are more."""
    listed = ", ".join(names[:MAX_LISTED])
    return listed if len(names) <= MAX_LISTED else f"{listed}, ... ({len(names)})"
