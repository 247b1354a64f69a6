"""Prediction of logits and class activation maps."""

from __future__ import annotations

from torch import Tensor, nn

from camkd.cams.class_selection import ClassSelection
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
    classes: ClassSelection = None,
    features: bool = False,
) -> Prediction:
    """Predict logits and class activation maps.

    The maps are differentiable if gradients are enabled, so a loss may contain them. The model's modes, hooks and
    gradients are left unchanged.

    Args:
        model: Any ``nn.Module`` that returns logits ``(N, K)``.
        x: Images ``(N, 3, H, W)``, RGB in 0..1. A model that is not an `ImageClassifier` may take other channels.
        method: Name of a map method in ``camkd.cams.MAP_METHODS``. Only the maps of ``cam`` are in logit units.
        layer: Dotted name of the layer whose output the maps are computed from, in its last call that the logits depend
            on. The default is the layer whose spatial mean a linear head receives. Without a linear head, the default
            is the last layer with a spatial output that the logits depend on.
        classes: The classes to compute maps of: indices ``(N, k)``, a number ``k`` for the ``k`` most probable classes
            of each image, or None for all ``K``. Gradient-based maps take one backward pass per class.
        features: Whether to return the stages of the model too. A stage is the last output at a spatial resolution.
            Only the outputs of the model's top-level layers are considered; a top-level ``nn.Sequential`` is replaced
            by its layers. The last stage is always the output that the maps are computed from.

    Returns:
        A `Prediction` with

        - ``logits (N, K)``,
        - ``cams (N, K, h, w)``, or ``(N, k, h, w)`` for selected classes,
        - ``features``: the stages from input to output, each ``(N, C, h, w)``; None unless ``features=True``,
        - ``class_ids (N, k)``: the selected classes; None for all.

    Raises:
        InputError: If ``method`` or ``layer`` does not exist; the message lists the choices. If ``x`` is not a batch of
            images. If ``classes`` is invalid. If the model does not return logits, or has no layer with a spatial
            output that the logits depend on.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("cam-net", classes=10, size=32)
        >>> logits, cams, *_ = camkd.predict(model, torch.rand(4, 3, 32, 32))
        >>> logits.shape, cams.shape
        (torch.Size([4, 10]), torch.Size([4, 10, 16, 16]))
        >>> torch.allclose(logits, cams.mean((2, 3)) + model.head.bias, atol=1e-5)
        True
        >>> camkd.predict(model, torch.rand(4, 3, 32, 32), method="gradcam", classes=2).cams.shape
        torch.Size([4, 2, 16, 16])
    """
    if method not in MAP_METHODS:
        raise InputError(f"method must be one of {', '.join(MAP_METHODS)}, got {method!r}.")
    head = detect_head(model, x, layer)
    if not features:
        return _predict(model, head, x, method, classes)._replace(features=None)
    with record_calls(dict.fromkeys(call.layer for call in head.stage_calls)) as recorded_calls:
        prediction = _predict(model, head, x, method, classes)
    stages = []
    for call in head.stage_calls:
        outputs = [recorded.output for recorded in recorded_calls if recorded.layer is call.layer]
        stages.append(call.layout.spatial(outputs[call.call_index]))
    assert prediction.features is not None
    return prediction._replace(features=(*stages, *prediction.features))


def form(model: nn.Module, x: Tensor, *, layer: str | None = None) -> Form:
    """Return the form of a model's ``cam`` maps.

    Args:
        model: A classifier.
        x: Images ``(N, 3, H, W)``. Their values are not used.
        layer: Dotted name of the layer, see `predict`.

    Returns:
        ``"exact"`` if the maps are computed from the weights of a linear head, ``"gradient"`` if from gradients.

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
    classifier = detect_head(model, x).classifier
    if classifier is None:
        return None
    return classifier.weight.new_zeros(len(classifier.weight)) if classifier.bias is None else classifier.bias


def _predict(model: nn.Module, head: Head, x: Tensor, method: str, classes: ClassSelection) -> Prediction:
    if method == "cam" and head.classifier is not None:
        return exact_maps(model, head, x, classes)
    return gradient_maps(model, head, x, MAP_METHODS[method], classes)
