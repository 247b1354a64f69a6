"""Looking at a network's layers while it computes, and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Call(NamedTuple):
    """One call of a layer."""

    module: nn.Module
    output: Tensor
    inputs: Tensor


def plain(inputs: tuple[Any, ...], output: Any) -> bool:
    """Tell a call of a layer from a call of something with several outputs or named inputs only."""
    return isinstance(output, Tensor) and bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """Collect each call of ``modules``, in the order in which they end."""
    seen: list[Call] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if plain(inputs, output):
            seen.append(Call(module, output, inputs[0]))

    hooks = [module.register_forward_hook(see) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
