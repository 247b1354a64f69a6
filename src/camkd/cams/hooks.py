"""Forward hooks that record the calls of layers in the current thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class RecordedCall(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: The layer, any ``nn.Module``.
        output: Output of the call.
        first_input: First positional argument of the call.
    """

    layer: nn.Module
    output: Tensor
    first_input: Tensor


class ThreadHook:
    """A hook that runs only in the thread that created it.

    Hooks belong to a module, which several threads may call at the same time.

    Args:
        function: The hook.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.thread = threading.get_ident()

    def __call__(self, *args: Any) -> Any:
        return self.function(*args) if threading.get_ident() == self.thread else None


def num_other_hooks(module: nn.Module) -> int:
    """Return the number of forward hooks of a module that are not of the class `ThreadHook`."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return sum(not isinstance(hook, ThreadHook) for hook in hooks)


def is_tensor_call(inputs: tuple[Any, ...], output: Any) -> bool:
    """Return True if the first positional argument of a call and its output are tensors."""
    return isinstance(output, Tensor) and bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[list[RecordedCall]]:
    """Record the calls of ``modules`` inside the context, in the order in which the calls return.

    Only calls in the current thread whose first positional argument and whose output are tensors are recorded. The
    hooks are removed on exit, also after an exception.

    Args:
        modules: The layers to record.

    Yields:
        The list of recorded calls, which grows with each call.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 3)
        >>> with record_calls([layer]) as calls:
        ...     output = layer(torch.zeros(1, 2))
        >>> calls[0].output is output
        True
    """
    calls: list[RecordedCall] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if is_tensor_call(inputs, output):
            calls.append(RecordedCall(module, output, inputs[0]))

    hook = ThreadHook(record)
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
