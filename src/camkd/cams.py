"""Class activation maps of any classifier, in the forward pass that makes the prediction.

*Exact form* (Zhou et al. 2016, arXiv 1512.04150). A head "global average, then linear" and a head "1x1 convolution,
then global average" are one thing: with features ``A (C, h, w)`` and weights ``W (K, C)``,

    cam[k] = sum_c W[k, c] A[c]        logit[k] = mean_xy(cam[k]) + bias[k]

*Gradient form* (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891), for every other head:

    cam[k] = h w sum_c A[c] * d logit[k] / d A[c]

The factor ``h w`` makes it equal to the exact form wherever the head happens to be linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.models.modes import evaluating
from camkd.types import InputError, Prediction

Form = Literal["exact", "gradient"]


@dataclass(frozen=True)
class _Head:
    """Where a network's map comes from: the layer whose output is averaged, and the linear layer after it.

    Where the head is "1x1 convolution, then global average", both are that convolution. What the head was found
    from is kept with it: another picture size or a replaced layer means that it has to be found again.
    """

    layer: nn.Module
    call: int  # which of the layer's calls in a forward pass: a rectifier may be used in several places
    classifier: nn.Linear | nn.Conv2d | None  # None: no linear head, so the map is gradient-based
    stages: list[tuple[nn.Module, int]]  # layer and call of each stage before the averaged layer
    shape: torch.Size
    modules: list[nn.Module | None]

    @property
    def form(self) -> Form:
        return "gradient" if self.classifier is None else "exact"


_heads: WeakKeyDictionary[nn.Module, _Head] = WeakKeyDictionary()


def predict(model: nn.Module, x: Tensor, *, features: bool = False) -> Prediction:
    """Logits and class activation maps of ``model`` for the pictures ``x (N, 3, H, W)``, RGB in 0..1.

    Differentiable where gradients are enabled: the maps can be part of a loss. Modes, hooks and gradients are
    left as they were. Raises ``InputError`` for a network without a spatial layer.

    ``features=True`` also returns the network's stages, each ``(N, C, h, w)``, from the input to the averaged layer,
    which is always the last. A stage is the last output at each spatial resolution among the network's own layers and
    those reached from it through ``nn.Sequential`` alone: a block of any other kind is one layer.

    >>> model = camkd.build("cam-net", classes=10, size=32)                     # doctest: +SKIP
    >>> logits, cams, *_ = camkd.predict(model, torch.rand(4, 3, 32, 32))       # doctest: +SKIP
    >>> torch.allclose(logits, cams.mean((2, 3)) + model.head.bias, atol=1e-5)  # doctest: +SKIP
    True
    """
    head = _head_of(model, x)
    answer = _exact if head.classifier is not None else _gradient
    if not features:
        logits, cams, _ = answer(model, head, x)
        return Prediction(logits, cams)
    with _outputs_of(dict.fromkeys(layer for layer, _ in head.stages)) as seen:
        logits, cams, last = answer(model, head, x)
    stages = [[output for module, output, _ in seen if module is layer][call] for layer, call in head.stages]
    return Prediction(logits, cams, (*stages, last))


def form(model: nn.Module, x: Tensor) -> Form:
    """Say whether the maps of ``model`` are ``exact`` or ``gradient``-based, trying pictures shaped like ``x``."""
    return _head_of(model, x).form


def bias(model: nn.Module, x: Tensor) -> Tensor | None:
    """The ``b (K,)`` in ``logits = cams.mean((2, 3)) + b`` for pictures shaped like ``x``; None for gradient form."""
    classifier = _head_of(model, x).classifier
    if classifier is None:
        return None
    return classifier.weight.new_zeros(len(classifier.weight)) if classifier.bias is None else classifier.bias


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps ``(..., h, w)`` to ``size`` cells: average-pooled where they shrink, bilinear where they grow.

    Cells are areas (``align_corners=False``).
    """
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    flat = maps.reshape(1, -1, height, width)
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def centre_prior(h: int, w: int) -> Tensor:
    """The map ``(h,w)`` of one who looks at the middle: a Gaussian, sigma a quarter of each side, peak 1.

    >>> centre_prior(3, 3)[1, 1].item()
    1.0
    """
    y, x = (((torch.arange(n) + 0.5) / n - 0.5) / 0.25 for n in (h, w))
    return torch.exp(-(y[:, None] ** 2 + x**2) / 2)


def _exact(model: nn.Module, head: _Head, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classifier = head.classifier
    assert classifier is not None
    with _outputs_of([head.layer]) as seen:
        logits = model(x)
    _, output, features = seen[head.call]
    if head.layer is classifier:  # the map is there already, with the bias on every cell
        return logits, output if classifier.bias is None else output - classifier.bias.view(-1, 1, 1), features
    weight = classifier.weight.to(output.dtype)
    return logits, F.conv2d(output, weight.reshape(len(weight), -1, 1, 1)), output


def _gradient(model: nn.Module, head: _Head, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    training = torch.is_grad_enabled()
    captured: list[Tensor] = []
    calls = 0

    def start_here(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        nonlocal calls
        if not _plain(inputs, output):
            return None
        calls += 1
        if calls != head.call + 1:
            return None
        torch.set_grad_enabled(True)  # from here to the logits only; the context below restores it
        if not (training and output.requires_grad):
            output = output.detach().requires_grad_().clone()  # no leaf: what follows may work in place
        captured.append(output)
        return captured[-1]

    with torch.inference_mode(False), torch.set_grad_enabled(training):
        hook = head.layer.register_forward_hook(start_here)
        try:
            logits = model(x.clone() if x.is_inference() else x)
        finally:
            hook.remove()
        torch.set_grad_enabled(True)
        features = captured[-1]
        maps = [
            (features * torch.autograd.grad(logit.sum(), features, retain_graph=True, create_graph=training)[0]).sum(1)
            for logit in logits.unbind(1)
        ]
        cams = torch.stack(maps, 1) * features.shape[2] * features.shape[3]
    if training:
        return logits, cams, features
    return logits.detach(), cams.detach(), features.detach()


def _head_of(model: nn.Module, x: Tensor) -> _Head:
    head, modules = _heads.get(model), _modules_below(model)  # without the model: it shall not keep itself alive
    if head is None or head.shape != x.shape[1:] or head.modules != modules:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            head = _heads[model] = _Head(*_find_head(model, x), x.shape[1:], modules)
    return head


def _modules_below(model: nn.Module) -> list[nn.Module | None]:
    """List what ``model.modules()`` lists, in a seventh of its time: this runs at each prediction."""
    found = list(model._modules.values())
    for module in found:
        if module is not None:
            found += module._modules.values()
    return found


def _find_head(
    model: nn.Module, x: Tensor
) -> tuple[nn.Module, int, nn.Linear | nn.Conv2d | None, list[tuple[nn.Module, int]]]:
    """Find the head by a dry run on noise: which layer's average is it that the last linear layer sees?

    The averaged layer, its call, the linear layer, and the stages before the averaged one.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    probe = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device, dtype)
    with evaluating(model), _outputs_of(model.modules()) as seen:
        logits = model(probe)
    spatial = [i for i, (_, output, _) in enumerate(seen) if output.ndim == 4 and output[0, 0].numel() > 1]
    if not spatial:
        raise InputError(
            f"{type(model).__name__} has no layer with a spatial (N, C, h, w) output of more than one cell, so it has "
            "no class activation map: use larger pictures or a network with convolutions."
        )

    def called(i: int) -> tuple[nn.Module, int]:
        return seen[i][0], sum(module is seen[i][0] for module, _, _ in seen[:i])

    def before(i: int, resolution: torch.Size) -> list[tuple[nn.Module, int]]:
        own = set(_own_layers(model))
        last = {seen[j][1].shape[2:]: j for j in spatial if j < i and seen[j][0] in own}  # the later of equal ones
        return [called(j) for size, j in sorted(last.items(), key=lambda item: item[1]) if size != resolution]

    for i in reversed(range(len(seen))):
        module, output, inputs = seen[i]
        if not _is_linear_head(module) or not _same(_averaged(output), logits):
            continue
        if i in spatial:
            return *called(i), module, before(i, inputs.shape[2:])
        average = _averaged(inputs)
        if _same(F.linear(average, module.weight.flatten(1), module.bias), logits):
            for j in reversed(spatial):
                if _same(_averaged(seen[j][1]), average):
                    return *called(j), module, before(j, seen[j][1].shape[2:])
    return *called(spatial[-1]), None, before(spatial[-1], seen[spatial[-1]][1].shape[2:])


def _own_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The children of ``module``, an ``nn.Sequential`` among them replaced by its own, and so on."""
    for child in module.children():
        yield from _own_layers(child) if isinstance(child, nn.Sequential) else (child,)


def _is_linear_head(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _averaged(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2) if x.ndim == 4 else x


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b, eps = a.float(), b.float(), torch.finfo(b.dtype).eps
    atol = max(1e-5, 2 * eps) * float(b.abs().max()) + 1e-12
    return torch.allclose(a, b, rtol=max(1e-3, 4 * eps), atol=atol)


def _plain(inputs: tuple[Any, ...], output: Any) -> bool:
    """Tell a call of a layer from a call of something with several outputs or named inputs only."""
    return isinstance(output, Tensor) and bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def _outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Collect (module, output, input) of each call of ``modules``, in the order in which they end."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if _plain(inputs, output):
            seen.append((module, output, inputs[0]))

    hooks = [module.register_forward_hook(see) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
