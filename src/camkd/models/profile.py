"""What a network costs, and how fine its map is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from camkd.models.eval_mode import eval_mode
from camkd.types import InputError


class Profile(NamedTuple):
    """Parameters, multiply-accumulates of one picture (convolutions and matrix products), and the map's cells.

    The cells are those of the last convolution.
    """

    params: int
    macs: int
    grid: tuple[int, int]


def profile(model: nn.Module, size: int) -> Profile:
    """Count the cost of ``model`` on one picture of ``size`` x ``size`` pixels.

    A network on the ``meta`` device is counted without computing anything. Layers used several times are counted as
    often as they run, attention with its two products of tokens by tokens. Modes are left as they were.
    """
    grid = (1, 1)

    def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal grid
        grid = (output.shape[2], output.shape[3])

    hooks = [m.register_forward_hook(see) for m in model.modules() if isinstance(m, nn.Conv2d)]
    parameter = next(model.parameters())
    try:
        with eval_mode(model), torch.no_grad(), _unfused(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    macs = counter.get_total_flops() // 2  # it counts a multiplication and an addition as two
    return Profile(sum(p.numel() for p in model.parameters()), macs, grid)


def profile_model(name: str, model: nn.Module, size: int) -> Profile:
    """`profile` of the network called ``name``. Raises ``InputError`` where such pictures are too small for it."""
    try:
        return profile(model, size)
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot take pictures of {size} x {size} pixels, as its layers leave nothing of them: give "
            "a larger --size."
        ) from error


@contextmanager
def _unfused() -> Iterator[None]:
    """Let attention compute by products that can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
