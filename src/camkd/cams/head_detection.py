"""Detection of a classifier's head in a forward pass on random images.

The head is exact if the last linear layer receives the spatial mean of some layer's output. Otherwise the maps come
from gradients at the last layer with spatial cells that the logits depend on. The detected head is cached per model
until a module is replaced or the image size changes.
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
"""Largest number of tokens before the patches. A class token, a distillation token and four registers make six."""

MAX_LISTED_LAYERS = 8
"""Largest number of candidate layers in an error message."""


@dataclass(frozen=True)
class FeatureLayout:
    """Memory layout of a layer's spatial output.

    Args:
        kind: ``channels_first`` for ``(N, C, h, w)``, ``channels_last`` for ``(N, h, w, C)``, ``tokens`` for
            ``(N, prefix + h w, C)`` with the patches in row-major order.
        grid: height ``h`` and width ``w`` in cells.
        prefix: number of tokens before the patches.
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
        """Return True if the grid has the aspect ratio of the image, up to rounding."""
        return self.aspect_error(image_size) < math.inf

    def aspect_error(self, image_size: tuple[int, int]) -> float:
        """Return the distance between the aspect ratios of grid and image.

        Args:
            image_size: height and width in pixels.

        Returns:
            ``|log((h / w) (width / height))|``, or infinity where the ratios differ by more than rounding.
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
        x: the output, of 3 or 4 dimensions; other outputs have no layout.
        image_size: height and width of the images in pixels.
        earlier_grids: grids of earlier outputs. They separate patch tokens from prefix tokens.

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
"""``exact`` maps come from the weights of a linear head, ``gradient`` maps from a backward pass per class."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a forward pass, and the layout of its features.

    Args:
        layer: the layer.
        call_index: index of the call among the layer's calls; a ReLU module may be called several times.
        layout: layout of the features.
        use_input: the features are the layer's input and not its output.
    """

    layer: nn.Module
    call_index: int
    layout: FeatureLayout
    use_input: bool = False


@dataclass(frozen=True)
class Head:
    """The features that maps are computed from, and the linear layer after their spatial mean.

    Args:
        feature_call: the features. For a head "1x1 convolution, then global average pooling" they are the input of the
            convolution.
        classifier: the linear layer, or None for a head that is not linear and has gradient-based maps.
        stage_calls: the last call at each other resolution before ``feature_call``.
    """

    feature_call: LayerCall
    classifier: nn.Linear | nn.Conv2d | None
    stage_calls: list[LayerCall]

    @property
    def form(self) -> Form:
        return "gradient" if self.classifier is None else "exact"


@dataclass(frozen=True)
class _CachedHead:
    """A detected head, valid for one image shape and the modules it was detected with."""

    head: Head
    image_shape: torch.Size
    modules: list[nn.Module | None]


_detected_heads: WeakKeyDictionary[nn.Module, dict[str | None, _CachedHead]] = WeakKeyDictionary()


def detect_head(model: nn.Module, x: Tensor, layer: str | None = None) -> Head:
    """Detect the head of a model, or return the cached one.

    Args:
        model: the classifier. Its mode, hooks, buffers and gradients are left unchanged.
        x: images ``(N, C, H, W)``; only shape, dtype and device are used.
        layer: dotted name of the layer to take the features from (default: detected).

    Raises:
        InputError: if ``x`` is not a batch of images, if the layer does not exist, or if no layer has a map.
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
    """Check shape and dtype. An `ImageClassifier` needs RGB, as its normalization would broadcast a single channel."""
    is_image_batch = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    if not is_image_batch or (isinstance(model, ImageClassifier) and x.shape[1] != 3):
        raise InputError(
            f"x must be a floating-point tensor of images (N, 3, H, W), RGB in 0..1, got {_describe(x)}. "
            "Convert the images first."
        )


def _descendants(model: nn.Module) -> list[nn.Module | None]:
    """List all submodules, in a seventh of the time of ``model.modules()``, as every prediction calls it.

    The model itself is left out, because the cache must not keep it alive.
    """
    modules = list(model._modules.values())
    for module in modules:
        if module is not None:
            modules += module._modules.values()
    return modules


def _detect(model: nn.Module, x: Tensor, layer: str | None) -> Head:
    """Run the model on random images, and find its linear head or else its gradient-based head."""
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
    """Find the last call whose features have a gradient from the logits, or the last such call of ``layer``."""
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
    calls_of_layer = [i for i in reached if layer is not None and calls[i].module is layers.get(layer)]
    if calls_of_layer:
        return trace.gradient_head(calls_of_layer[-1])
    listed = [calls[i].module for i in reached or trace.layouts]
    raise InputError(_no_map_message(model, layer, layers, listed, bool(reached)))


@dataclass
class _ForwardTrace:
    """The layer calls of a forward pass, and the layouts of those with a spatial output, by index of the call."""

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
        """Find a linear layer that maps the spatial mean of some features, or only of ``layer``, to the logits."""
        for i in reversed(range(len(self.calls))):
            module, output, inputs = self.calls[i]
            if not _is_linear_layer(module):
                continue
            for layout in self._candidate_layouts(output):
                mean = _spatial_mean(inputs, layout) if layer in (None, module) else None
                if (
                    mean is not None
                    and _is_close(_spatial_mean(output, layout), logits)
                    and _computes_logits(module, mean, logits)
                ):
                    return Head(self._layer_call(i, layout, use_input=True), module, self._stage_calls(i, layout))
            mean = _flatten_pooled(inputs)
            if _is_close(_flatten_pooled(output), logits) and _computes_logits(module, mean, logits):
                for j in reversed(range(i)):
                    if layer not in (None, self.calls[j].module):
                        continue
                    for layout in self._candidate_layouts(self.calls[j].output):
                        if _is_close(_spatial_mean(self.calls[j].output, layout), mean):
                            return Head(self._layer_call(j, layout), module, self._stage_calls(j, layout))
        return None

    def last_linear_input(self, logits: Tensor) -> Tensor:
        """Return the input of the linear layer that outputs the logits, or the logits if there is no such layer.

        Gradients start there, because the weights of the linear layer may still be zero.
        """
        linear_calls = (call for call in reversed(self.calls) if _is_linear_layer(call.module))
        return next((call.inputs for call in linear_calls if call.output is logits), logits)

    def gradient_head(self, i: int) -> Head:
        layout = self.layouts[i]
        return Head(self._layer_call(i, layout), None, self._stage_calls(i, layout))

    def last_feature_call(self, reached: list[int]) -> int:
        """Return the last of the calls ``reached`` with as many channels as the model's last spatial output.

        If the logits depend on a class token, the last attention is the last layer to read the patch tokens. Its input
        is the output of the layer normalization; queries, keys and values have another width. Upsampled outputs are
        left out where possible, as they hold no more spatial information than their input.
        """
        candidates = [i for i in reached if not self._is_upsampled(i)] or reached
        num_channels = self._num_channels(next(reversed(self.layouts)))
        return next((i for i in reversed(candidates) if self._num_channels(i) == num_channels), candidates[-1])

    def _num_channels(self, i: int) -> int:
        return int(self.layouts[i].spatial(self.calls[i].output).shape[1])

    def _is_upsampled(self, i: int) -> bool:
        _, output, inputs = self.calls[i]
        return inputs.ndim == 4 == output.ndim and output[0, 0].numel() > inputs[0, 0].numel()

    def _layer_call(self, i: int, layout: FeatureLayout, use_input: bool = False) -> LayerCall:
        module = self.calls[i].module
        call_index = sum(call.module is module for call in self.calls[:i])
        return LayerCall(module, call_index, layout, use_input)

    def _stage_calls(self, end: int, end_layout: FeatureLayout) -> list[LayerCall]:
        top_level = set(_top_level_layers(unwrap(self.model)))
        last_at_grid = {
            layout.grid: i for i, layout in self.layouts.items() if i < end and self.calls[i].module in top_level
        }
        indices = sorted(i for grid, i in last_at_grid.items() if grid != end_layout.grid)
        return [self._layer_call(i, self.layouts[i]) for i in indices]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the wrapped model: descend as long as a module has exactly one child."""
    while len(children := list(model.children())) == 1:
        model = children[0]
    return model


def _top_level_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of ``module``, with every ``nn.Sequential`` expanded recursively."""
    for child in module.children():
        yield from _top_level_layers(child) if isinstance(child, nn.Sequential) else (child,)


def _named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every layer by its dotted name, in ``model`` and in the model it wraps."""
    layers = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    return {name: module for name, module in layers.items() if name}


def _no_map_message(
    model: nn.Module, layer: str | None, layers: dict[str, nn.Module], candidates: list[nn.Module], has_gradient: bool
) -> str:
    """Explain why there is no map, and list candidate layers: the outermost ones, and the later ones first."""
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
    """Return True if the layer maps the mean features to the logits, so that nothing nonlinear lies between them."""
    has_inputs = mean.ndim == 2 and mean.shape[1] == layer.weight.shape[1]
    return has_inputs and _is_close(F.linear(mean, layer.weight.flatten(1), layer.bias), logits)


def _spatial_mean(x: Tensor, layout: FeatureLayout) -> Tensor:
    return layout.spatial(x).flatten(2).mean(2)


def _flatten_pooled(x: Tensor) -> Tensor:
    """Return ``(N, C, 1, 1)`` as ``(N, C)``; more than one cell is averaged."""
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
