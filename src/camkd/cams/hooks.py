"""Looking at a network's layers while it computes, and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class RecordedCall(NamedTuple):
    """One call of a layer."""

    module: nn.Module
    output: Tensor
    inputs: Tensor


def is_tensor_call(inputs: tuple[Any, ...], output: Any) -> bool:
    """Tell a call of a layer from a call of something with several outputs or named inputs only."""
    return isinstance(output, Tensor) and bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def record_calls(modules: Iterable[nn.Module]) -> Iterator[list[RecordedCall]]:
    """Collect each call of ``modules``, in the order in which they end."""
    seen: list[RecordedCall] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if is_tensor_call(inputs, output):
            seen.append(RecordedCall(module, output, inputs[0]))

    hooks = [module.register_forward_hook(see) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
