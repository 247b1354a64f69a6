"""Prediction of logits and class activation maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camkd.cams.class_selection import ClassSelection, check_selection
from camkd.cams.head_detection import Form, Head, detect_head
from camkd.cams.hooks import record_calls
from camkd.cams.maps import MAP_METHODS, exact_maps, gradient_maps
from camkd.types import InputError, Prediction


def predict(
    model: nn.Module,
    x: Tensor,
    *,
    method: str = "cam",
    layer: str | None = None,
    classes: Tensor | None = None,
    top: int | None = None,
    against: Tensor | None = None,
    gamma: float = 1.0,
    features: bool = False,
) -> Prediction:
    """Predict logits and class activation maps.

    The maps are differentiable if gradients are enabled, so a loss may contain them. The model's modes, hooks and
    gradients are left unchanged. Several threads may predict with one model at the same time.

    Args:
        model: Any ``nn.Module`` that returns logits ``(N, K)``, in its current mode.
        x: Images ``(N, 3, H, W)``, RGB in 0..1. Only an `ImageClassifier` requires three channels.
        method: Name of a map method in ``camkd.cams.MAP_METHODS``. Only the maps of ``cam`` are in logit units.
        layer: Dotted name of the layer to compute the maps from. If the layer is called several times, its last call
            that the logits depend on counts. The default is the layer whose spatial mean a linear head receives.
            Without a linear head, it is the last layer that all paths from the image to the logits pass through.
        classes: Indices ``(N, k)`` of the classes to compute maps of (default: all ``K`` classes). Gradient-based maps
            take one backward pass per class.
        top: Number ``k`` of most probable classes of each image to compute maps of, instead of ``classes``.
        against: Indices ``(N, m)`` of other classes for a contrast map: the map of a class minus ``gamma`` times the
            mean map of the other classes (Finer-CAM, Zhang et al. 2025, arXiv 2501.11309). With ``gamma=1``, the mean
            of an exact contrast map is the logit of the class minus the mean logit of the other classes, both without
            biases.
        gamma: Weight of the classes in ``against``.
        features: Whether to return feature maps too, one per spatial resolution: the last output of a top-level layer
            at that resolution. A top-level ``nn.Sequential`` is replaced by its layers. The last feature map is always
            the one that the maps are computed from.

    Returns:
        A `Prediction` with

        - ``logits (N, K)``,
        - ``cams (N, K, h, w)``, or ``(N, k, h, w)`` for selected classes,
        - ``features``: the feature maps from input to output, each ``(N, C, h, w)``; None unless ``features=True``,
        - ``class_ids (N, k)``: the selected classes; None for all.

    Raises:
        InputError: If ``method`` or ``layer`` does not exist; the message lists the choices. If ``x`` is not a batch of
            images in 0..1. If ``classes``, ``top`` or ``against`` is invalid. If the model is compiled, has weights
            that are not finite, does not return logits, or has no layer with a spatial output that the logits depend
            on.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("cam-net", classes=10, size=32)
        >>> logits, cams, *_ = camkd.predict(model, torch.rand(4, 3, 32, 32))
        >>> logits.shape, cams.shape
        (torch.Size([4, 10]), torch.Size([4, 10, 16, 16]))
        >>> torch.allclose(logits, cams.mean((2, 3)) + model.head.bias, atol=1e-5)
        True
        >>> camkd.predict(model, torch.rand(4, 3, 32, 32), method="gradcam", top=2).cams.shape
        torch.Size([4, 2, 16, 16])
    """
    if not isinstance(method, str) or method not in MAP_METHODS:
        raise InputError(f"method must be one of {', '.join(MAP_METHODS)}, got {method!r}. Choose one of them.")
    selection = check_selection(classes, top, against, gamma)
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        model = model.module  # replicas run in other threads
    head = detect_head(model, x, layer)
    if torch.is_grad_enabled() or method != "cam" or head.form != "exact":
        _check_weights(model)
    if not features:
        return _predict(model, head, x, method, layer, selection)._replace(features=None)
    with record_calls(dict.fromkeys(call.layer for call in head.earlier_calls)) as recorded_calls:
        prediction = _predict(model, head, x, method, layer, selection)
    earlier = []
    for call in head.earlier_calls:
        outputs = [recorded.output for recorded in recorded_calls if recorded.layer is call.layer]
        earlier.append(call.layout.spatial(outputs[call.call_index]))
    assert prediction.features is not None
    return prediction._replace(features=(*earlier, *prediction.features))


def form(model: nn.Module, x: Tensor, *, layer: str | None = None) -> Form:
    """Return the form of a model's ``cam`` maps.

    Args:
        model: A classifier.
        x: Images ``(N, 3, H, W)``. Their values are not used.
        layer: Dotted name of the layer, see `predict`.

    Returns:
        ``"exact"`` if the maps are computed from the weights of a linear head; ``"gradient"`` if from gradients;
        ``"partial"`` if from gradients at a layer that other paths from the image to the logits bypass, such as a class
        token.

    Raises:
        InputError: If there is no map; see `predict`.

    Example:
        >>> import camkd, torch
        >>> x = torch.rand(1, 3, 32, 32)
        >>> form(camkd.build("resnet8", classes=10, size=32), x)
        'exact'
        >>> form(camkd.build("resnet50-mlp", classes=10, size=32), x)
        'gradient'
    """
    return detect_head(model, x, layer).form


def bias(model: nn.Module, x: Tensor) -> Tensor | None:
    """Return the bias of a linear head: ``b (K,)`` in ``logits = cams.mean((2, 3)) + b``.

    Args:
        model: A classifier.
        x: Images ``(N, 3, H, W)``. Their values are not used.

    Returns:
        The bias ``(K,)``. Zeros for a linear head without bias, None for a head that is not linear.

    Raises:
        InputError: If there is no map; see `predict`.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> x = torch.rand(1, 3, 32, 32)
        >>> logits, cams, *_ = camkd.predict(model, x)
        >>> torch.allclose(logits, cams.mean((2, 3)) + bias(model, x), atol=1e-5)
        True
    """
    linear: Any = detect_head(model, x).linear
    if linear is None:
        return None
    return linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias  # type: ignore[no-any-return]


def _check_weights(model: nn.Module) -> None:
    """Check that the weights may be part of a graph of gradients."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError(
            f"the weights of {type(model).__name__} must be created outside of torch.inference_mode() for gradients, "
            "got inference tensors. Build or load the model outside of it."
        )


def _predict(
    model: nn.Module, head: Head, x: Tensor, method: str, layer: str | None, selection: ClassSelection
) -> Prediction:
    if method == "cam" and head.form == "exact":
        prediction = exact_maps(model, head, x, selection)
        if prediction is not None:
            return prediction
        head = detect_head(model, x, layer, exact=False)
    return gradient_maps(model, head, x, MAP_METHODS[method], selection)
