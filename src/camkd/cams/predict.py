"""Asking a network for logits and maps."""

from __future__ import annotations

from torch import Tensor, nn

from camkd.cams.class_selection import Choice
from camkd.cams.head_detection import Form, Head, detect_head
from camkd.cams.hooks import record_calls
from camkd.cams.maps import MAP_METHODS, exact, gradient
from camkd.types import InputError, Prediction


def predict(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    layer: str | None = None,
    classes: Choice = None,
    features: bool = False,
) -> Prediction:
    """Logits and class activation maps of ``model`` for the pictures ``x (N, 3, H, W)``, RGB in 0..1.

    ``method`` is a name in ``METHODS``; ``cam`` alone is in logit units. ``layer`` is the dotted name of the layer
    whose output the maps are made of, in its last call; without it that is the layer whose average a linear head sees,
    or else the last one with spatial cells that the logits depend on. ``classes`` asks for the maps of some classes
    alone: a tensor ``(N, k)`` of them, or a number ``k`` for each picture's ``k`` likeliest. They are in the answer's
    ``shown (N, k)``, and a method with gradients then takes ``k`` backward passes and not one for every class.

    Differentiable where gradients are enabled: the maps can be part of a loss. Modes, hooks and gradients are
    left as they were. Raises ``InputError`` for a network without a spatial layer, for a method or a layer that is
    not there, naming those that are, and for what are no such pictures; a network of your own may take other channels.

    ``features=True`` also returns the network's stages, each ``(N, C, h, w)``, from the input to the layer the maps are
    made of, which is always the last. A stage is the last output at each spatial resolution among the network's own
    layers and those reached from it through ``nn.Sequential`` alone: a block of any other kind is one layer.

    >>> model = camkd.build("cam-net", classes=10, size=32)                     # doctest: +SKIP
    >>> logits, cams, *_ = camkd.predict(model, torch.rand(4, 3, 32, 32))       # doctest: +SKIP
    >>> torch.allclose(logits, cams.mean((2, 3)) + model.head.bias, atol=1e-5)  # doctest: +SKIP
    True
    """
    if method not in MAP_METHODS:
        raise InputError(f"there is no map method {method!r}: choose one of {', '.join(MAP_METHODS)}.")
    head = detect_head(model, x, layer)
    if not features:
        return _answer(model, head, x, method, classes)._replace(features=None)
    with record_calls(dict.fromkeys(place.layer for place in head.stages)) as seen:
        answer = _answer(model, head, x, method, classes)
    stages = []
    for place in head.stages:
        outputs = [output for module, output, _ in seen if module is place.layer]
        stages.append(place.layout.spatial(outputs[place.call]))
    assert answer.features is not None
    return answer._replace(features=(*stages, *answer.features))


def form(model: nn.Module, x: Tensor, *, layer: str | None = None) -> Form:
    """Say whether the ``cam`` of ``model`` is ``exact`` or ``gradient``-based, trying pictures shaped like ``x``."""
    return detect_head(model, x, layer).form


def bias(model: nn.Module, x: Tensor) -> Tensor | None:
    """The ``b (K,)`` in ``logits = cams.mean((2, 3)) + b`` for pictures shaped like ``x``; None for gradient form."""
    classifier = detect_head(model, x).classifier
    if classifier is None:
        return None
    return classifier.weight.new_zeros(len(classifier.weight)) if classifier.bias is None else classifier.bias


def _answer(model: nn.Module, head: Head, x: Tensor, method: str, classes: Choice) -> Prediction:
    if method == "cam" and head.classifier is not None:
        return exact(model, head, x, classes)
    return gradient(model, head, x, MAP_METHODS[method], classes)
