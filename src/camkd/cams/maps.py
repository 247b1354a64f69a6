"""Map methods: their formulas, and the computation of exact and gradient-based maps.

Every formula has the signature ``formula(features, gradients) -> maps`` with

- ``features A (N, C, h, w)``: the output of the layer that the maps are computed from,
- ``gradients G (N, C, h, w)``: the gradients of one logit of each image with respect to the features,
- ``maps (N, h, w)``.

In the formulas, ``sum_c`` is a sum over channels. ``sum_xy`` and ``mean_xy`` are a sum and a mean over locations.

To add a method, write a formula and add a line to `MAP_METHODS`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkd.cams.class_selection import ClassSelection, select_classes, select_contrast
from camkd.cams.gather import gather_classes
from camkd.cams.head_detection import Head, LayerCall, check_logits
from camkd.cams.hooks import ThreadHook, is_tensor_call
from camkd.cams.tracing import Gate, OperationTrace
from camkd.types import Prediction

MAX_CLASSES_WITHOUT_WARNING = 100
"""Maximum number of gradient-based maps per image that are computed without a warning if no classes are selected."""

Formula = Callable[[Tensor, Tensor], Tensor]
"""``formula(features (N, C, h, w), gradients (N, C, h, w)) -> maps (N, h, w)``."""


def cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute class activation maps (CAM), in logit units, from gradients.

    From `Learning Deep Features for Discriminative Localization <https://arxiv.org/abs/1512.04150>`_
    (Zhou et al. 2016), which defines the map for a linear head, ``sum_c(W[k, c] * A[c])``. The gradients of such a head
    are ``G[c] = W[k, c] / (h * w)``, so the map of the paper equals::

        map = h * w * sum_c(A[c] * G[c])

    If the head is linear, `camkd.predict` computes this method from the weights, without gradients.

    Args:
        features: ``A (N, C, h, w)``.
        gradients: ``G (N, C, h, w)``.

    Returns:
        Maps ``(N, h, w)``, signed.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> prediction = camkd.predict(model, torch.rand(1, 3, 32, 32), method="cam")
        >>> prediction.cams.shape
        torch.Size([1, 10, 8, 8])
    """
    return hirescam(features, gradients) * features.shape[2] * features.shape[3]


def hirescam(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute HiResCAM, the elementwise product of features and gradients, summed over channels.

    From `Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks
    <https://arxiv.org/abs/2011.08891>`_ (Draelos and Carin 2020)::

        map = sum_c(A[c] * G[c])

    The map keeps its sign, without a ReLU.

    Args:
        features: ``A (N, C, h, w)``.
        gradients: ``G (N, C, h, w)``.

    Returns:
        Maps ``(N, h, w)``, signed.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> prediction = camkd.predict(model, torch.rand(1, 3, 32, 32), method="hirescam")
        >>> prediction.cams.shape
        torch.Size([1, 10, 8, 8])
    """
    return (features * gradients).sum(1)


def gradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM, the features weighted by their mean gradients.

    From `Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
    <https://arxiv.org/abs/1610.02391>`_ (Selvaraju et al. 2017)::

        map = relu(sum_c(mean_xy(G[c]) * A[c]))

    Args:
        features: ``A (N, C, h, w)``.
        gradients: ``G (N, C, h, w)``.

    Returns:
        Maps ``(N, h, w)``, zero or more.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> prediction = camkd.predict(model, torch.rand(1, 3, 32, 32), method="gradcam")
        >>> prediction.cams.shape
        torch.Size([1, 10, 8, 8])
    """
    return _weighted_sum(features, gradients.mean((2, 3)))


def layercam(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute LayerCAM, the features weighted elementwise by their positive gradients.

    From `LayerCAM: Exploring Hierarchical Class Activation Maps for Localization
    <https://doi.org/10.1109/TIP.2021.3089943>`_ (Jiang et al. 2021, IEEE TIP 30, equations 6 to 8)::

        map = relu(sum_c(relu(G[c]) * A[c]))

    The paper's tanh scaling of maps from early layers is not applied.

    Args:
        features: ``A (N, C, h, w)``.
        gradients: ``G (N, C, h, w)``.

    Returns:
        Maps ``(N, h, w)``, zero or more.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> prediction = camkd.predict(model, torch.rand(1, 3, 32, 32), method="layercam", layer="layer2")
        >>> prediction.cams.shape
        torch.Size([1, 10, 16, 16])
    """
    return (features * gradients.relu()).sum(1).relu()


def gradcam_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM++, the features weighted by a weighted sum of their positive gradients.

    From `Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks
    <https://arxiv.org/abs/1710.11063>`_ (Chattopadhyay et al. 2018, equations 5, 7 and 19)::

        map  = relu(sum_c(w[c] * A[c]))
        w[c] = sum_xy(a[c] * relu(G[c]))
        a[c] = G[c]^2 / (2 * G[c]^2 + G[c]^3 * sum_xy(A[c])),  zero where G[c] is zero

    The paper takes gradients of the exponential of the logit. Their factor ``exp(logit)`` is constant over a map and is
    left out.

    Args:
        features: ``A (N, C, h, w)``.
        gradients: ``G (N, C, h, w)``.

    Returns:
        Maps ``(N, h, w)``, zero or more.

    Example:
        >>> import camkd, torch
        >>> model = camkd.build("resnet8", classes=10, size=32).eval()
        >>> prediction = camkd.predict(model, torch.rand(1, 3, 32, 32), method="gradcam++")
        >>> prediction.cams.shape
        torch.Size([1, 10, 8, 8])
    """
    is_zero = gradients == 0
    denominator = 2 + gradients * features.sum((2, 3), keepdim=True)  # G^2 is a factor of every term and cancels
    alpha = torch.where(is_zero, 0, 1 / torch.where(is_zero, 1, denominator))
    return _weighted_sum(features, (alpha * gradients.relu()).sum((2, 3)))


def _weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Compute ``relu(sum_c(w[c] * A[c]))`` for weights ``(N, C)``."""
    return torch.einsum("nchw,nc->nhw", features, weights.to(features.dtype)).relu()


MAP_METHODS: dict[str, Formula] = {
    "cam": cam,
    "gradcam": gradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "gradcam++": gradcam_plus_plus,
}
"""Formula by method name. If the head is linear, ``cam`` is computed from the weights instead of its formula."""


def exact_maps(model: nn.Module, head: Head, x: Tensor, classes: ClassSelection) -> Prediction | None:
    """Compute ``cam[k] = sum_c(W[k, c] * A[c])`` from the weights of a linear head.

    Dropout between the mean and the linear layer multiplies each channel by a factor. Logits and maps have the same
    factors, so ``logits = mean_xy(cams) + bias`` holds in training mode too.

    Args:
        model: The classifier.
        head: Head of the classifier, with the form ``exact``.
        x: Images ``(N, 3, H, W)``.
        classes: The classes to compute maps of.

    Returns:
        Logits and maps. The only entry of ``features`` is the tensor ``A`` that the maps are computed from. None if the
        operations between features and logits differ from those of the detected head.
    """
    feature_call = head.feature_call
    trace = OperationTrace()
    with _capture_features(feature_call, trace) as captured:
        logits = model(x)
    check_logits(model, logits)
    path = trace.linear_path(logits, lambda tensor, path: tensor is captured[-1] if captured else False)
    if path is None or path.signature() != head.path_signature or not _is_operand_of(head.linear, path.linear.operands):
        return None
    class_ids = select_classes(classes, logits)
    features = feature_call.layout.spatial(captured[-1])
    against = select_contrast(classes, logits)
    weight, bias = path.linear.operands
    assert weight is not None
    if feature_call.use_input:  # the output of the 1x1 convolution is the map, plus the bias in every cell
        cams = feature_call.layout.spatial(path.linear.output)
        if bias is not None:
            cams = cams - bias.view(-1, 1, 1)
        selected = cams if class_ids is None else gather_classes(cams, class_ids)
        if against is not None:
            selected = selected - classes.gamma * gather_classes(cams, against).mean(1, keepdim=True)
        return Prediction(logits, selected, (features,), class_ids)
    scale = path.scale()
    scaled = features if scale is None else features * scale[:, :, None, None]
    weight = weight.to(features.dtype).flatten(1)
    if class_ids is None:
        cams = F.conv2d(scaled, weight[:, :, None, None])
    else:
        cams = torch.einsum("nkc,nchw->nkhw", weight[class_ids], scaled)
    if against is not None:
        cams = cams - classes.gamma * torch.einsum("nc,nchw->nhw", weight[against].mean(1), scaled)[:, None]
    return Prediction(logits, cams, (features,), class_ids)


def _is_operand_of(linear: nn.Module | None, operands: tuple[Tensor | None, ...]) -> bool:
    """Return True if the operation used the weight and the bias of the layer."""
    weight, bias = operands
    return getattr(linear, "weight", None) is weight and getattr(linear, "bias", None) is bias


def gradient_maps(model: nn.Module, head: Head, x: Tensor, formula: Formula, classes: ClassSelection) -> Prediction:
    """Compute maps by a formula of features and gradients, with one backward pass per class.

    The map of an image is computed from the gradient of its own logit. In training mode, batch statistics between the
    features and the logits are constants for this gradient, so other images of the batch have no influence on a map.

    Args:
        model: The classifier.
        head: Head of the classifier.
        x: Images ``(N, 3, H, W)``.
        formula: A value of `MAP_METHODS`.
        classes: The classes to compute maps of.

    Returns:
        Logits and maps. The only entry of ``features`` is the tensor ``A`` that the maps are computed from. Logits,
        maps and features are differentiable if gradients are enabled, else detached.
    """
    differentiable = torch.is_grad_enabled()
    spatial = head.feature_call.layout.spatial
    gate = Gate()
    # a loss of the maps needs second derivatives, which fused attention does not implement
    attention = math_attention() if differentiable else nullcontext()
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable), attention:
        with _capture_features(head.feature_call, OperationTrace(gate), differentiable=differentiable) as captured:
            logits = model(x.clone() if x.is_inference() else x)
        check_logits(model, logits)
        torch.set_grad_enabled(True)
        source = captured[-1]
        class_ids = select_classes(classes, logits)
        _warn_of_many_classes(logits, class_ids)
        features = spatial(source)
        selected = logits if class_ids is None else logits.gather(1, class_ids)
        against = select_contrast(classes, logits)
        if against is not None:
            selected = selected - classes.gamma * logits.gather(1, against).mean(1, keepdim=True)
        maps = []
        gate.closed = True
        for logit in selected.unbind(1):
            (gradient,) = torch.autograd.grad(logit.sum(), source, retain_graph=True, create_graph=differentiable)
            maps.append(formula(features, spatial(gradient)))
        gate.closed = False
        cams = torch.stack(maps, 1)
    if differentiable:
        return Prediction(logits, cams, (features,), class_ids)
    return Prediction(logits.detach(), cams.detach(), (features.detach(),), class_ids)


def _warn_of_many_classes(logits: Tensor, class_ids: Tensor | None) -> None:
    if class_ids is None and logits.shape[1] > MAX_CLASSES_WITHOUT_WARNING:
        warnings.warn(
            f"gradient-based maps of all {logits.shape[1]} classes take {logits.shape[1]} backward passes. Pass top= "
            "or classes= to select classes.",
            stacklevel=4,
        )


@contextmanager
def _capture_features(
    feature_call: LayerCall, trace: OperationTrace, *, differentiable: bool | None = None
) -> Iterator[list[Tensor]]:
    """Capture the features of a layer call in this thread, and trace the operations from this call on.

    Args:
        feature_call: The layer call.
        trace: The trace, which is active from the features to the exit of the context.
        differentiable: None to leave the features unchanged. Otherwise gradients are enabled from this call on, and
            the caller restores the gradient mode. True keeps the graph from the images to the features, False
            detaches the features.

    Yields:
        A list that receives the features.
    """
    captured: list[Tensor] = []
    num_calls = 0

    def capture(x: Tensor) -> Tensor | None:
        nonlocal num_calls
        num_calls += 1
        if num_calls != feature_call.call_index + 1:
            return None
        if differentiable is not None:
            torch.set_grad_enabled(True)
            if not (differentiable and x.requires_grad):
                x = x.detach().requires_grad_().clone()  # not a leaf, because the next layer may work in place
        captured.append(x)
        active.enter_context(trace)
        return None if differentiable is None else x

    def capture_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = capture(inputs[0]) if is_tensor_call(inputs, inputs[0]) else None
        return None if x is None else (x, *inputs[1:])

    def capture_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return capture(output) if is_tensor_call(inputs, output) else None

    layer = feature_call.layer
    if feature_call.use_input:
        hook = layer.register_forward_pre_hook(ThreadHook(capture_input))
    else:
        hook = layer.register_forward_hook(ThreadHook(capture_output))
    with ExitStack() as active:
        try:
            yield captured
        finally:
            hook.remove()


class _MathAttention:
    """Reference count of the threads that need the math backend of attention. The setting is global in PyTorch."""

    lock = threading.Lock()
    num_users = 0
    setting: AbstractContextManager[None]


@contextmanager
def math_attention() -> Iterator[None]:
    """Compute attention by the math backend of PyTorch, which has second derivatives."""
    state = _MathAttention
    with state.lock:
        if state.num_users == 0:
            state.setting = sdpa_kernel(SDPBackend.MATH)
            state.setting.__enter__()
        state.num_users += 1
    try:
        yield
    finally:
        with state.lock:
            state.num_users -= 1
            if state.num_users == 0:
                state.setting.__exit__(None, None, None)
