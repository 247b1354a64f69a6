"""Cost of a model: parameters, multiply-accumulates, and the size of its last convolution's output."""

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
    """Cost of a model.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates per image, of convolutions and matrix products.
        map_size: Height and width of the output of the last called ``nn.Conv2d``, in cells; ``(1, 1)`` without one.
    """

    params: int
    macs: int
    map_size: tuple[int, int]


def profile(model: nn.Module, size: int) -> Profile:
    """Count parameters and multiply-accumulates of a model.

    A layer is counted each time it is called. Attention counts as its two matrix products, of queries with keys and of
    attention weights with values.

    Args:
        model: The model. Modes and hooks are left unchanged. On the ``meta`` device nothing is computed.
        size: Side of the image in pixels.

    Returns:
        The cost for one image ``(1, 3, size, size)``.

    Raises:
        RuntimeError: If the image is too small for the model.

    Example:
        >>> from camkd.models import build
        >>> profile(build("resnet8", classes=10, size=32), size=32)
        Profile(params=78042, macs=12501632, map_size=(8, 8))
    """
    map_size = (1, 1)

    def record_size(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal map_size
        map_size = (output.shape[2], output.shape[3])

    hooks = [m.register_forward_hook(record_size) for m in model.modules() if isinstance(m, nn.Conv2d)]
    parameter = next(model.parameters())
    try:
        with eval_mode(model), torch.no_grad(), _math_attention(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    macs = counter.get_total_flops() // 2  # a multiply-accumulate is two floating-point operations
    return Profile(sum(p.numel() for p in model.parameters()), macs, map_size)


def profile_model(name: str, model: nn.Module, size: int) -> Profile:
    """Profile a model as `profile` does, with an `InputError` if the image is too small.

    Args:
        name: Name of the model in the error message.
        model: The model.
        size: Side of the image in pixels.

    Returns:
        The cost for one image ``(1, 3, size, size)``.

    Raises:
        InputError: If the image is too small for the model.
    """
    try:
        return profile(model, size)
    except RuntimeError as error:
        raise InputError(
            f"`--size` must be large enough for the layers of {name}, got {size} x {size} pixels. Choose a larger size."
        ) from error


@contextmanager
def _math_attention() -> Iterator[None]:
    """Compute attention by separate matrix products, which ``FlopCounterMode`` counts."""
    fastpath_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath_enabled)
