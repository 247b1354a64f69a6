"""Exact maps, gradient-based maps, and the formula of each map method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkd.cams.class_selection import Choice, select_classes
from camkd.cams.head_detection import Head, LayerCall
from camkd.cams.hooks import is_tensor_call, record_calls
from camkd.types import Prediction

Formula = Callable[[Tensor, Tensor], Tensor]


def cam(features: Tensor, slopes: Tensor) -> Tensor:
    """``z sum_c A[c] G[c]``: what CAM (Zhou et al. 2016, arXiv 1512.04150) is where the head is linear."""
    return hirescam(features, slopes) * features.shape[2] * features.shape[3]


def hirescam(features: Tensor, slopes: Tensor) -> Tensor:
    """``sum_c A[c] G[c]``: HiResCAM (Draelos and Carin 2020, arXiv 2011.08891), with its sign."""
    return (features * slopes).sum(1)


def gradcam(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c mean_xy(G[c]) A[c])``: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391)."""
    return _weighted(features, slopes.mean((2, 3)))


def layercam(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c relu(G[c]) A[c])``: LayerCAM (Jiang et al. 2021, IEEE TIP 30, eq. 6 to 8; no tanh)."""
    return (features * slopes.relu()).sum(1).relu()


def gradcam_plus_plus(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c w[c] A[c])``: Grad-CAM++ (Chattopadhyay et al. 2018, arXiv 1710.11063, eq. 5, 7 and 19).

    ``w[c] = sum_xy a[c] relu(G[c])`` with ``a[c] = G[c]^2 / (2 G[c]^2 + G[c]^3 sum_xy(A[c]))``, and nought where ``G``
    is. The score is the exponential of the logit; its factor ``exp(logit)``, the same for a whole map, is left out.
    """
    flat = slopes == 0
    ratio = 2 + slopes * features.sum((2, 3), keepdim=True)  # a = 1 / ratio: the square is in every summand
    share = torch.where(flat, 0, 1 / torch.where(flat, 1, ratio))
    return _weighted(features, (share * slopes.relu()).sum((2, 3)))


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """``relu(sum_c w[c] A[c])`` for ``w (N, C)``."""
    return torch.einsum("nchw,nc->nhw", features, weights.to(features.dtype)).relu()


MAP_METHODS: dict[str, Formula] = {
    "cam": cam,
    "gradcam": gradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "gradcam++": gradcam_plus_plus,
}
"""By name. ``cam`` is taken from the weights, without a gradient, where the head is linear."""


def exact(model: nn.Module, head: Head, x: Tensor, classes: Choice) -> Prediction:
    """``cam[k] = sum_c W[k, c] A[c]`` of all classes or of ``classes``; its features are the averaged layer alone."""
    place, classifier = head.place, head.classifier
    assert classifier is not None
    with record_calls([place.layer]) as seen:
        logits = model(x)
    _, output, features = seen[place.call]
    shown = select_classes(classes, logits)
    if place.before:  # the map is there already, with the bias on every cell
        maps, features = place.layout.spatial(output), place.layout.spatial(features)
        cams = maps if classifier.bias is None else maps - classifier.bias.view(-1, 1, 1)
        if shown is not None:
            cams = cams.gather(1, shown[:, :, None, None].expand(-1, -1, *cams.shape[2:]))
        return Prediction(logits, cams, (features,), shown)
    features = place.layout.spatial(output)
    weight = classifier.weight.to(output.dtype).flatten(1)
    if shown is None:
        cams = F.conv2d(features, weight[:, :, None, None])
    else:
        cams = torch.einsum("nkc,nchw->nkhw", weight[shown], features)
    return Prediction(logits, cams, (features,), shown)


def gradient(model: nn.Module, head: Head, x: Tensor, formula: Formula, classes: Choice) -> Prediction:
    """The ``formula`` of all classes or of ``classes``; the features are those of the head's place alone."""
    training, spatial = torch.is_grad_enabled(), head.place.layout.spatial
    # fused attention has no second derivative, which a loss of these maps needs
    kernels = sdpa_kernel(SDPBackend.MATH) if training else nullcontext()
    with torch.inference_mode(False), torch.set_grad_enabled(training), kernels:
        with _started_at(head.place, training) as captured:
            logits = model(x.clone() if x.is_inference() else x)
        torch.set_grad_enabled(True)
        start, shown = captured[-1], select_classes(classes, logits)
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
def _started_at(place: LayerCall, training: bool) -> Iterator[list[Tensor]]:
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
        x = started(inputs[0]) if is_tensor_call(inputs, inputs[0]) else None
        return None if x is None else (x, *inputs[1:])

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return started(output) if is_tensor_call(inputs, output) else None

    layer = place.layer
    hook = layer.register_forward_pre_hook(before) if place.before else layer.register_forward_hook(after)
    try:
        yield captured
    finally:
        hook.remove()
