"""Detection of a classifier's head in a forward pass on random images.

The maps are exact if the last linear layer receives the spatial mean of another layer's output. Otherwise they are
computed from gradients at the last layer with a spatial output that the logits depend on. The detected head is cached
per model until a module is added, removed or replaced, or the shape of the images changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams.hooks import RecordedCall, record_calls
from camkd.models.base import ImageClassifier
from camkd.models.eval_mode import eval_mode
from camkd.types import InputError

MAX_PREFIX_TOKENS = 8
"""Maximum number of tokens before the patches. A class token, a distillation token and four registers are six."""

MAX_LISTED_LAYERS = 8
"""Maximum number of candidate layers that an error message lists."""


@dataclass(frozen=True)
class FeatureLayout:
    """Memory layout of a layer's spatial output.

    Args:
        kind: ``channels_first`` for ``(N, C, h, w)``, ``channels_last`` for ``(N, h, w, C)``, ``tokens`` for
            ``(N, prefix + h * w, C)`` with the patches in row-major order.
        grid: Height ``h`` and width ``w`` in cells.
        prefix: Number of tokens before the patches.
    """

    kind: Literal["channels_first", "channels_last", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0

    def spatial(self, x: Tensor) -> Tensor:
        """Return ``x`` as a view ``(N, C, h, w)``."""
        if self.kind == "channels_first":
            return x
        if self.kind == "channels_last":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-any-return]

    def matches(self, image_size: tuple[int, int]) -> bool:
        """Return True if the grid has about the aspect ratio of the image; see `aspect_error`."""
        return self.aspect_error(image_size) < math.inf

    def aspect_error(self, image_size: tuple[int, int]) -> float:
        """Return the distance between the aspect ratios of grid and image.

        Args:
            image_size: Height and width in pixels.

        Returns:
            ``|log((h / w) * (width / height))|``. Infinity if the grid differs from the aspect ratio of the image by
            one cell or more, and the two ratios also differ by a factor of 1.25 or more.
        """
        h, w = self.grid
        height, width = image_size
        factor = h * width / (w * height)
        is_close = abs(h * width - w * height) < max(height, width) or 0.8 < factor < 1.25
        return abs(math.log(factor)) if is_close else math.inf


def candidate_layouts(
    x: Tensor, image_size: tuple[int, int], earlier_grids: Iterable[tuple[int, int]] = ()
) -> Iterator[FeatureLayout]:
    """Yield the possible layouts of a layer's output, the most likely first.

    Args:
        x: The output of the layer. Outputs without 3 or 4 dimensions have no layout.
        image_size: Height and width of the images in pixels.
        earlier_grids: Grids of earlier outputs. Numbers of patches that match one of these grids come first.

    Yields:
        Layouts of more than one cell.
    """
    layouts: list[FeatureLayout] = []
    if x.ndim == 4:
        channels_first = FeatureLayout("channels_first", (x.shape[2], x.shape[3]))
        channels_last = FeatureLayout("channels_last", (x.shape[1], x.shape[2]))
        # a stable sort: channels first in case of a tie
        layouts = sorted((channels_first, channels_last), key=lambda layout: layout.aspect_error(image_size))
    elif x.ndim == 3:
        num_tokens = x.shape[1]
        splits = [(num_tokens - prefix, prefix) for prefix in range(min(MAX_PREFIX_TOKENS + 1, num_tokens))]
        grid_of_cells = {h * w: (h, w) for h, w in earlier_grids}
        layouts = [
            FeatureLayout("tokens", grid_of_cells[cells], prefix) for cells, prefix in splits if cells in grid_of_cells
        ]
        layouts += [FeatureLayout("tokens", _token_grid(cells, image_size), prefix) for cells, prefix in splits]
    return (layout for layout in layouts if math.prod(layout.grid) > 1)


def _token_grid(cells: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of ``cells`` cells with the aspect ratio of the image, or ``(0, 0)`` if there is none."""
    h = max(1, round(math.sqrt(cells * image_size[0] / image_size[1])))
    grid = h, cells // h
    return grid if math.prod(grid) == cells and FeatureLayout("tokens", grid).matches(image_size) else (0, 0)


Form = Literal["exact", "gradient"]
"""``exact`` maps are computed from the weights of a linear head, ``gradient`` maps by one backward pass per class."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a forward pass, and the layout of its features.

    Args:
        layer: The layer.
        call_index: Index of the call among the layer's calls; a ReLU module may be called several times.
        layout: Layout of the features.
        use_input: Whether the features are the first input of the layer instead of its output.
    """

    layer: nn.Module
    call_index: int
    layout: FeatureLayout
    use_input: bool = False


@dataclass(frozen=True)
class Head:
    """Head of a classifier: the features that maps are computed from, and the linear layer after their spatial mean.

    Args:
        feature_call: Layer call with the features. For the head "1x1 convolution, then global average pooling", the
            features are the input of the convolution.
        classifier: The linear layer. None for a head that is not linear, which has gradient-based maps.
        stage_calls: The last call of a top-level layer at each other resolution before ``feature_call``.
    """

    feature_call: LayerCall
    classifier: nn.Linear | nn.Conv2d | None
    stage_calls: list[LayerCall]

    @property
    def form(self) -> Form:
        """Form of the ``cam`` maps of this head."""
        return "gradient" if self.classifier is None else "exact"


@dataclass(frozen=True)
class _CachedHead:
    """Detected head, valid for one image shape ``(C, H, W)`` and for the modules of the model at its detection."""

    head: Head
    image_shape: torch.Size
    modules: list[nn.Module | None]


_detected_heads: WeakKeyDictionary[nn.Module, dict[str | None, _CachedHead]] = WeakKeyDictionary()


def detect_head(model: nn.Module, x: Tensor, layer: str | None = None) -> Head:
    """Detect the head of a model, or return the cached one.

    Args:
        model: The classifier. Its mode, hooks, buffers and gradients are left unchanged.
        x: Images ``(N, C, H, W)``. Their values are not used.
        layer: Dotted name of the layer to take the features from (default: the layer is detected).

    Returns:
        The head.

    Raises:
        InputError: If ``x`` is not a batch of images. If the model does not return logits. If ``layer`` does not exist
            or has no map. If no layer has a map.
    """
    _check_images(model, x)
    cache = _detected_heads.setdefault(model, {})
    modules = _descendants(model)
    cached = cache.get(layer)
    if cached is None or cached.image_shape != x.shape[1:] or cached.modules != modules:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            cached = _CachedHead(_detect(model, x, layer), x.shape[1:], modules)
        cache[layer] = cached
    return cached.head


def _check_images(model: nn.Module, x: Tensor) -> None:
    """Check shape and dtype. For an `ImageClassifier`, require three channels: its normalization broadcasts one."""
    is_image_batch = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    if not is_image_batch or (isinstance(model, ImageClassifier) and x.shape[1] != 3):
        raise InputError(
            f"x must be a floating-point tensor of images (N, 3, H, W), RGB in 0..1, got {_describe(x)}. "
            "Convert the images first."
        )


def _descendants(model: nn.Module) -> list[nn.Module | None]:
    """List all submodules. Every prediction calls this function; it takes a seventh of the time of ``modules()``.

    The model itself is left out, so that the cached list does not keep the model alive.
    """
    modules = list(model._modules.values())
    for module in modules:
        if module is not None:
            modules += module._modules.values()
    return modules


def _detect(model: nn.Module, x: Tensor, layer: str | None) -> Head:
    """Run the model on random images, and return its linear head, or else the head of gradient-based maps."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    images = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device, dtype)
    layers = _named_layers(model)
    with eval_mode(model), record_calls(model.modules()) as calls:
        logits = model(images)
    trace = _ForwardTrace(model, calls, images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError(
            f"{type(model).__name__} must return logits (N, K), got {_describe(logits)}. Wrap the model in a module "
            "whose forward() returns only the logits."
        )
    if not trace.layouts:
        raise InputError(
            f"{type(model).__name__} must have a layer with a spatial output (N, C, h, w) of more than one cell for a "
            f"class activation map, got none at {x.shape[2]} x {x.shape[3]} pixels. Use larger images or a model with "
            "convolutions."
        )
    head = None
    if layer is None:
        head = trace.find_linear_head(logits)
    elif layer in layers:
        head = trace.find_linear_head(logits, layers[layer])
    return head or _find_gradient_head(model, images, layer, layers)


def _find_gradient_head(model: nn.Module, images: Tensor, layer: str | None, layers: dict[str, nn.Module]) -> Head:
    """Return the head at the last call whose output has a nonzero gradient from the logits.

    With ``layer``, only calls of this layer are considered. Without it, `_ForwardTrace.last_feature_call` decides.
    """
    with eval_mode(model), torch.enable_grad(), record_calls(model.modules()) as calls:
        logits = model(images.requires_grad_())
        trace = _ForwardTrace(model, calls, images)
        target = trace.last_linear_input(logits)
        weights = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)).to(target)
        candidates = [i for i in trace.layouts if calls[i].output.requires_grad]  # detached outputs are left out
        gradients: Sequence[Tensor | None] = [None] * len(candidates)
        if candidates and target.requires_grad:
            outputs = [calls[i].output for i in candidates]
            gradients = torch.autograd.grad((target * weights).sum(), outputs, allow_unused=True)
    reached = [
        i
        for i, gradient in zip(candidates, gradients, strict=True)
        if gradient is not None and bool(trace.layouts[i].spatial(gradient).any())
    ]
    if layer is None and reached:
        return trace.gradient_head(trace.last_feature_call(reached))
    calls_of_layer = [i for i in reached if layer is not None and calls[i].layer is layers.get(layer)]
    if calls_of_layer:
        return trace.gradient_head(calls_of_layer[-1])
    listed = [calls[i].layer for i in reached or trace.layouts]
    raise InputError(_no_map_message(model, layer, layers, listed, bool(reached)))


@dataclass
class _ForwardTrace:
    """Layer calls of a forward pass, and the layout of each call with a spatial output, by index of the call."""

    model: nn.Module
    calls: list[RecordedCall]
    images: Tensor

    def __post_init__(self) -> None:
        self.image_size = (int(self.images.shape[2]), int(self.images.shape[3]))
        self.layouts: dict[int, FeatureLayout] = {}
        self.grids: list[tuple[int, int]] = []
        other_aspect: dict[int, FeatureLayout] = {}  # used if no output has the aspect ratio of the images
        for i, (_, output, _) in enumerate(self.calls):
            layout = next(self._candidate_layouts(output), None)
            if layout is None:
                continue
            if layout.matches(self.image_size):
                self.layouts[i] = layout
                if output.ndim == 4:
                    self.grids.append(layout.grid)
            elif layout.kind == "channels_first" and output.shape[1:3] != (1, 1):
                other_aspect[i] = layout  # (N, 1, 1, C) is excluded: one cell with channels last
        self.layouts = self.layouts or other_aspect

    def _candidate_layouts(self, x: Tensor) -> Iterator[FeatureLayout]:
        is_feature = x.ndim > 2 and len(x) == len(self.images) and x.is_floating_point()
        return candidate_layouts(x, self.image_size, self.grids) if is_feature else iter(())

    def find_linear_head(self, logits: Tensor, layer: nn.Module | None = None) -> Head | None:
        """Find the linear layer that maps the spatial mean of a layer's output to the logits.

        With ``layer``, only the features of this layer are considered. Return None if there is no such linear layer.
        """
        for i in reversed(range(len(self.calls))):
            module, output, first_input = self.calls[i]
            if not _is_linear_layer(module):
                continue
            for layout in self._candidate_layouts(output):
                mean = _spatial_mean(first_input, layout) if layer in (None, module) else None
                if (
                    mean is not None
                    and _is_close(_spatial_mean(output, layout), logits)
                    and _computes_logits(module, mean, logits)
                ):
                    return Head(self._layer_call(i, layout, use_input=True), module, self._stage_calls(i, layout))
            mean = _flatten_pooled(first_input)
            if _is_close(_flatten_pooled(output), logits) and _computes_logits(module, mean, logits):
                for j in reversed(range(i)):
                    if layer not in (None, self.calls[j].layer):
                        continue
                    for layout in self._candidate_layouts(self.calls[j].output):
                        if _is_close(_spatial_mean(self.calls[j].output, layout), mean):
                            return Head(self._layer_call(j, layout), module, self._stage_calls(j, layout))
        return None

    def last_linear_input(self, logits: Tensor) -> Tensor:
        """Return the input of the linear layer that outputs the logits, or the logits if there is no such layer.

        Gradients are computed from this input and not from the logits, because the weights of the linear layer may
        still be zero.
        """
        linear_calls = (call for call in reversed(self.calls) if _is_linear_layer(call.layer))
        return next((call.first_input for call in linear_calls if call.output is logits), logits)

    def gradient_head(self, i: int) -> Head:
        """Return the head with gradient-based maps of the output of call ``i``."""
        layout = self.layouts[i]
        return Head(self._layer_call(i, layout), None, self._stage_calls(i, layout))

    def last_feature_call(self, reached: list[int]) -> int:
        """Return the last call in ``reached`` with as many channels as the model's last spatial output.

        If the logits depend on a class token only, the last attention is the last layer that uses the patch tokens. Its
        input, the output of a layer normalization, has the width of the last spatial output. Its queries, keys and
        values may have another width. Upsampled outputs are left out if there are other candidates, because they hold
        no more spatial information than their input.

        Args:
            reached: Indices of the calls whose output has a nonzero gradient from the logits, in ascending order.
        """
        candidates = [i for i in reached if not self._is_upsampled(i)] or reached
        num_channels = self._num_channels(next(reversed(self.layouts)))
        return next((i for i in reversed(candidates) if self._num_channels(i) == num_channels), candidates[-1])

    def _num_channels(self, i: int) -> int:
        return int(self.layouts[i].spatial(self.calls[i].output).shape[1])

    def _is_upsampled(self, i: int) -> bool:
        _, output, first_input = self.calls[i]
        return first_input.ndim == 4 == output.ndim and output[0, 0].numel() > first_input[0, 0].numel()

    def _layer_call(self, i: int, layout: FeatureLayout, use_input: bool = False) -> LayerCall:
        layer = self.calls[i].layer
        call_index = sum(call.layer is layer for call in self.calls[:i])
        return LayerCall(layer, call_index, layout, use_input)

    def _stage_calls(self, end: int, end_layout: FeatureLayout) -> list[LayerCall]:
        top_level = set(_top_level_layers(unwrap(self.model)))
        last_at_grid = {
            layout.grid: i for i, layout in self.layouts.items() if i < end and self.calls[i].layer in top_level
        }
        indices = sorted(i for grid, i in last_at_grid.items() if grid != end_layout.grid)
        return [self._layer_call(i, self.layouts[i]) for i in indices]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the innermost wrapped model: replace a module by its child as long as it has exactly one child."""
    while len(children := list(model.children())) == 1:
        model = children[0]
    return model


def _top_level_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of ``module``, with every ``nn.Sequential`` expanded recursively."""
    for child in module.children():
        yield from _top_level_layers(child) if isinstance(child, nn.Sequential) else (child,)


def _named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by its dotted name in ``model``, and by its dotted name in the model that it wraps."""
    layers = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    return {name: module for name, module in layers.items() if name}


def _no_map_message(
    model: nn.Module, layer: str | None, layers: dict[str, nn.Module], candidates: list[nn.Module], has_gradient: bool
) -> str:
    """Return the error message if there is no map. It lists candidate layers, preferably outer and later layers."""
    name_of = {module: name for name, module in layers.items()}
    names = list(dict.fromkeys(name_of[module] for module in candidates if module in name_of))
    outermost = sorted(names, key=lambda name: (name.count("."), -names.index(name)))[:MAX_LISTED_LAYERS]
    listed = ", ".join(name for name in names if name in outermost)
    model_name = type(unwrap(model)).__name__
    if layer is not None and layer not in layers:
        return (
            f"layer must be the name of a layer of {model_name}, got {layer!r}. Choose a layer with a spatial output "
            f"that the logits depend on: {listed}."
        )
    if has_gradient:
        return (
            f"layer must have a spatial output that the logits of {model_name} depend on, got {layer!r}. Choose "
            f"another layer: {listed}."
        )
    return (
        f"the logits of {model_name} must have a gradient with respect to a layer with a spatial output ({listed}) for "
        "a class activation map, got none. Use a model that is differentiable from such a layer on."
    )


def _is_linear_layer(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _computes_logits(layer: nn.Linear | nn.Conv2d, mean: Tensor, logits: Tensor) -> bool:
    """Return True if the layer alone maps the mean features to the logits."""
    has_inputs = mean.ndim == 2 and mean.shape[1] == layer.weight.shape[1]
    return has_inputs and _is_close(F.linear(mean, layer.weight.flatten(1), layer.bias), logits)


def _spatial_mean(x: Tensor, layout: FeatureLayout) -> Tensor:
    return layout.spatial(x).flatten(2).mean(2)


def _flatten_pooled(x: Tensor) -> Tensor:
    """Return the spatial mean ``(N, C)`` of ``(N, C, h, w)``; return other tensors unchanged."""
    return x.flatten(2).mean(2) if x.ndim == 4 else x


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors with tolerances for the dtype of ``b``. Tensors of different shapes are not close."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(b.dtype).eps
    a = a.float()
    b = b.float()
    atol = max(1e-5, 2 * eps) * float(b.abs().max()) + 1e-12
    return torch.allclose(a, b, rtol=max(1e-3, 4 * eps), atol=atol)


def _describe(value: object) -> str:
    """Describe a value for an error message: type, or dtype and shape of a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
