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
        model: a classifier that returns logits ``(N, K)``. It needs no changes.
        x: images ``(N, 3, H, W)``, RGB in 0..1. Models other than an `ImageClassifier` may take any number of channels.
        method: name of a map method in ``camkd.cams.MAP_METHODS``. Only maps of ``cam`` are in logit units.
        layer: dotted name of the layer whose output the maps are computed from, in its last call. The default is the
            layer whose spatial mean a linear head receives. If there is none, it is the last layer with spatial cells
            that the logits depend on.
        classes: the classes to compute maps of: indices ``(N, k)``, or a number ``k`` for the ``k`` most probable
            classes of each image, or None for all ``K``. Gradient-based methods take one backward pass per class.
        features: also return the stages of the model. A stage is the last output at a spatial resolution, among the
            model's top-level layers and those inside a top-level ``nn.Sequential``. Any other block counts as a single
            layer. The last stage is always the layer that the maps are computed from.

    Returns:
        A `Prediction` with

        - ``logits (N, K)``,
        - ``cams (N, K, h, w)``, or ``(N, k, h, w)`` for selected classes,
        - ``features``: the stages from input to output, each ``(N, C, h, w)``; None unless ``features=True``,
        - ``class_ids (N, k)``: the selected classes; None for all.

    Raises:
        InputError: if the method or the layer does not exist; the message lists the choices. Also if the model has no
            spatial layer, or if ``x`` is not a batch of images.

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
    with record_calls(dict.fromkeys(call.layer for call in head.stage_calls)) as recorded:
        prediction = _predict(model, head, x, method, classes)
    stages = []
    for call in head.stage_calls:
        outputs = [output for module, output, _ in recorded if module is call.layer]
        stages.append(call.layout.spatial(outputs[call.call_index]))
    assert prediction.features is not None
    return prediction._replace(features=(*stages, *prediction.features))


def form(model: nn.Module, x: Tensor, *, layer: str | None = None) -> Form:
    """Return the form of a model's ``cam`` maps.

    Args:
        model: a classifier.
        x: images ``(N, 3, H, W)``; only shape, dtype and device are used.
        layer: dotted name of the layer, see `predict`.

    Returns:
        ``"exact"`` if the maps come from the weights of a linear head, ``"gradient"`` if they come from gradients.

    Raises:
        InputError: as `predict`.

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
        model: a classifier.
        x: images ``(N, 3, H, W)``; only shape, dtype and device are used.

    Returns:
        The bias ``(K,)``, zeros for a head without bias, or None for gradient-based maps.

    Raises:
        InputError: as `predict`.

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
