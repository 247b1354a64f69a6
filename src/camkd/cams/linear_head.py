"""The last linear layer of a classifier, which maps one feature vector per image to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from camkd.cams.head_detection import check_logits, detect_head
from camkd.cams.hooks import record_calls
from camkd.models.eval_mode import eval_mode
from camkd.types import InputError


def linear_head(model: nn.Module, x: Tensor) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Find the linear layer whose output, averaged over its locations if it has several, is the logits.

    The layer is found by a forward pass, not by its name: the last linear layer or 1x1 convolution that returned the
    logits, or else the linear layer of an exact head, such as a 1x1 convolution before the average.

    Args:
        model: A classifier. Its modes, buffers and gradients are left unchanged.
        x: Images ``(N, 3, H, W)``.

    Returns:
        Dotted name of the layer, and the layer.

    Raises:
        InputError: If the logits are not the output of a linear layer with one feature vector per image.

    Example:
        >>> from camkd.models import build
        >>> linear_head(build("resnet50-mlp", classes=10, size=32), torch.rand(2, 3, 32, 32))[0]
        'head.2'
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)  # the size of a kernel is checked by `head_inputs`
    }
    with eval_mode(model), torch.no_grad(), record_calls(layers.values()) as calls:
        logits = model(x)
    check_logits(model, logits)
    candidates = [call.layer for call in reversed(calls) if torch.equal(call.output.flatten(1), logits)][:1]
    if not candidates:
        with eval_mode(model):
            linear = detect_head(model, x).linear
        candidates = [] if linear is None else [linear]
    for name, layer in layers.items():
        if layer in candidates and _is_linear_in_features(model, layer, x, logits):
            return name, layer
    raise InputError(
        f"{type(model).__name__} must end in a linear layer of one feature vector per image, got another head. "
        "Choose another network, or train all layers."
    )


@contextmanager
def head_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Record the feature vectors that a linear layer receives inside the context, averaged over locations.

    Args:
        layer: A linear layer or a 1x1 convolution.

    Yields:
        A list that receives ``(N, D)`` for each call of the layer.
    """
    inputs: list[Tensor] = []

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features = arguments[0]
        if isinstance(module, nn.Conv2d):
            inputs.append(features.mean((2, 3)))
        else:
            inputs.append(features if features.ndim == 2 else features.flatten(1, -2).mean(1))

    hook = layer.register_forward_pre_hook(record)
    try:
        yield inputs
    finally:
        hook.remove()


def _is_linear_in_features(model: nn.Module, layer: nn.Linear | nn.Conv2d, x: Tensor, logits: Tensor) -> bool:
    """Return True if the layer, applied to the mean of its input, returns the logits."""
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size != (1, 1) or layer.groups > 1):
        return False
    with eval_mode(model), torch.no_grad(), head_inputs(layer) as inputs:
        model(x)
    if len(inputs) != 1 or len(inputs[0]) != len(x):
        return False
    outputs = nn.functional.linear(inputs[0], layer.weight.detach().flatten(1), layer.bias)
    return torch.allclose(outputs, logits, rtol=1e-3, atol=1e-4 + 1e-3 * float(logits.abs().max()))
