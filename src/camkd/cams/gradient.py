"""Maps out of features and the slopes of the logits: one backward pass a class, from the features on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkd.cams.choice import Choice, chosen
from camkd.cams.heads import Head, Place
from camkd.cams.hooks import plain
from camkd.cams.methods import Formula
from camkd.types import Prediction


def gradient(model: nn.Module, head: Head, x: Tensor, formula: Formula, classes: Choice) -> Prediction:
    """The ``formula`` of all classes or of ``classes``; the features are those of the head's place alone."""
    training, spatial = torch.is_grad_enabled(), head.place.layout.spatial
    # fused attention has no second derivative, which a loss of these maps needs
    kernels = sdpa_kernel(SDPBackend.MATH) if training else nullcontext()
    with torch.inference_mode(False), torch.set_grad_enabled(training), kernels:
        with _started_at(head.place, training) as captured:
            logits = model(x.clone() if x.is_inference() else x)
        torch.set_grad_enabled(True)
        start, shown = captured[-1], chosen(classes, logits)
        features = spatial(start)
        asked = logits if shown is None else logits.gather(1, shown)
        maps = [
            formula(
                features,
                spatial(torch.autograd.grad(logit.sum(), start, retain_graph=True, create_graph=training)[0]),
            )
            for logit in asked.unbind(1)
        ]
        cams = torch.stack(maps, 1)
    if training:
        return Prediction(logits, cams, (features,), shown)
    return Prediction(logits.detach(), cams.detach(), (features.detach(),), shown)


@contextmanager
def _started_at(place: Place, training: bool) -> Iterator[list[Tensor]]:
    """Record gradients from ``place`` on, and collect what lies there; the caller restores the gradient mode."""
    captured: list[Tensor] = []
    calls = 0

    def started(x: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls != place.call + 1:
            return None
        torch.set_grad_enabled(True)
        if not (training and x.requires_grad):
            x = x.detach().requires_grad_().clone()  # no leaf: what follows may work in place
        captured.append(x)
        return x

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = started(inputs[0]) if plain(inputs, inputs[0]) else None
        return None if x is None else (x, *inputs[1:])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return started(output) if plain(inputs, output) else None

    layer = place.layer
    hook = layer.register_forward_pre_hook(before) if place.before else layer.register_forward_hook(after)
    try:
        yield captured
    finally:
        hook.remove()
