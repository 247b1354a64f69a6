"""Detection of a classifier's head: the layer that maps are computed from, and the linear layer after it.

The maps are exact if the logits are a linear layer of the spatial mean of another layer's output. Otherwise they are
computed from gradients at the last layer that all paths from the image to the logits pass through. The head is a
property of the architecture: it is found with random images and random weights (``probe.py``), or with the weights of
the model if random weights give no gradient. It is cached per model until a module, a mode or a hook changes, or the
shape or the dtype of the images does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from camkd.cams.hooks import RecordedCall, num_other_hooks, record_calls
from camkd.cams.layouts import FeatureLayout, candidate_layouts
from camkd.cams.probe import NUM_IMAGES, Probe, follows_image_positions
from camkd.cams.tracing import LinearPath
from camkd.models.base import ImageClassifier
from camkd.types import InputError

MAX_LISTED_LAYERS = 8
"""Maximum number of candidate layers that an error message lists."""

MAX_IMAGE_VALUE = 10.0
"""Maximum value of an image. RGB in 0..1 that was normalized outside of the model stays below it, 0..255 does not."""

Form = Literal["exact", "gradient", "partial"]
"""Form of ``cam`` maps.

``exact`` maps are computed from the weights of a linear head. ``gradient`` and ``partial`` maps take one backward pass
per class. All information about the image passes through the features of ``gradient`` maps. ``partial`` maps explain
only a part of the logit: other paths, such as a class token, bypass the features.
"""


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
        form: Form of the ``cam`` maps.
        linear: The linear layer of an exact head, else None.
        path_signature: `LinearPath.signature` of an exact head. Maps of a forward pass with another signature are
            computed from gradients.
        earlier_calls: For every other spatial resolution, the last call of a top-level layer before ``feature_call``.
    """

    feature_call: LayerCall
    form: Form
    linear: nn.Module | None
    path_signature: tuple[object, ...]
    earlier_calls: list[LayerCall]


@dataclass(frozen=True)
class _CachedHead:
    """A detected head, and the modules of the model at its detection."""

    head: Head
    modules: list[nn.Module | None]


_detected_heads: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], _CachedHead]] = WeakKeyDictionary()


def detect_head(model: nn.Module, x: Tensor, layer: str | None = None, *, exact: bool = True) -> Head:
    """Detect the head of a model, or return the cached one.

    Args:
        model: The classifier. Its mode, hooks, buffers and gradients are left unchanged.
        x: Images ``(N, C, H, W)``. Their values do not matter for the head.
        layer: Dotted name of the layer to take the features from (default: the layer is detected).
        exact: Whether to use an exact head if the model has one. Otherwise maps are computed from gradients.

    Returns:
        The head.

    Raises:
        InputError: If ``x`` is not a batch of images, or ``model`` not an uncompiled module with finite weights. If the
            model does not return logits. If ``layer`` does not exist or has no map. If no layer has a map.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got a {type(model).__name__}. Pass the uncompiled module.")
    _check_images(model, x)
    if layer is not None and not isinstance(layer, str):
        raise InputError(f"layer must be the dotted name of one layer, got {layer!r}. Pass a string.")
    modules = _descendants(model)
    state = [(module.training, num_other_hooks(module)) for module in (model, *modules) if module is not None]
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    dtypes = (x.dtype, _weight_dtype(model), torch.is_autocast_enabled(x.device.type))
    key = (layer, exact, x.shape[1:], dtypes, compiled, tuple(state))
    cache = _detected_heads.setdefault(model, {})
    cached = cache.get(key)
    if cached is None or cached.modules != modules:
        _check_model(model)
        if x.device.type != "cpu":
            _check_range(x)
        with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
            cached = _CachedHead(_HeadDetector(model, x, layer).detect(exact), modules)
        cache[key] = cached
    return cached.head


def check_logits(model: nn.Module, logits: Any) -> None:
    """Check that a model has returned logits ``(N, K)``.

    Args:
        model: The model.
        logits: The output of the model, of any type.

    Raises:
        InputError: If it has returned anything else. The message names the mode of the model.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        mode = "training" if model.training else "evaluation"
        raise InputError(
            f"{type(model).__name__} must return logits (N, K) in {mode} mode, got {_describe(logits)}. Wrap the model "
            "in a module whose forward() returns only the logits."
        )


def check_not_probabilities(model: nn.Module, logits: Tensor) -> None:
    """Check that the outputs of a model are not probabilities. The host waits for the device.

    Args:
        model: The model.
        logits: The outputs of the model, ``(N, K)``.

    Raises:
        InputError: If all outputs ``(N, K)`` are 0 or more and add up to 1.
    """
    sums = logits.detach().float().sum(1)
    if logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise InputError(
            f"{type(model).__name__} must return logits, got probabilities, which add up to 1. Remove the softmax at "
            "its end."
        )


def _check_images(model: nn.Module, x: Tensor) -> None:
    """Check shape, dtype and range of the images.

    An `ImageClassifier` requires three channels, because its normalization would broadcast a single channel to three.
    The range is checked on a CPU only, where it does not make the host wait, and not during an export. On other devices
    `detect_head` checks the images with which it detects a head.
    """
    is_image_batch = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and x.shape[0] > 0
    if not is_image_batch or (isinstance(model, ImageClassifier) and x.shape[1] != 3):
        raise InputError(
            f"x must be a floating-point tensor of images (N, 3, H, W), RGB in 0..1, got {_describe(x)}. "
            "Convert the images first."
        )
    if x.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()):
        _check_range(x)


def _check_range(x: Tensor) -> None:
    highest = float(x.detach().amax())
    if highest > MAX_IMAGE_VALUE:
        raise InputError(f"x must be RGB in 0..1, got values up to {highest:g}. Divide the images by 255.")


def _check_model(model: nn.Module) -> None:
    """Check that the layers of a model can be called from Python, and that its weights are finite."""
    compiled = hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
    exported = isinstance(model, torch.fx.GraphModule) and not any(
        node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters())
        for node in model.graph.nodes
    )
    scripted = isinstance(model, torch.jit.ScriptModule)
    if compiled or exported or scripted:
        kind = "compiled" if compiled else "exported" if exported else "scripted or traced"
        raise InputError(
            f"model must be an uncompiled module with Python layers, got the {kind} {type(model).__name__}. Pass the "
            "uncompiled module."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.detach().isfinite().all()):
            raise InputError(f"the weights of the model must be finite, got NaN or infinity in {name}. Retrain it.")


def _descendants(model: nn.Module) -> list[nn.Module | None]:
    """List all submodules. Every prediction calls this function; it takes a seventh of the time of ``modules()``.

    The model itself is left out, so that the cached list does not keep the model alive.
    """
    modules = list(model._modules.values())
    for module in modules:
        if module is not None:
            modules += module._modules.values()
    return modules


class _HeadDetector:
    """Detection of one head.

    Args:
        model: The classifier.
        x: Images ``(N, C, H, W)``, for shape, dtype and device.
        layer: Dotted name of the layer to take the features from, or None.
    """

    def __init__(self, model: nn.Module, x: Tensor, layer: str | None) -> None:
        self.model = model
        self.x = x
        self.layer = layer
        self.layers = _named_layers(model)
        self.image_size = (int(x.shape[2]), int(x.shape[3]))
        self.random_weights = True
        self.confirmed: dict[tuple[int, FeatureLayout], bool] = {}

    def detect(self, exact: bool) -> Head:
        """Return the exact head if there is one and ``exact`` is true, else the head of gradient-based maps."""
        with torch.enable_grad():
            self._run()
            head = self._exact_head() if exact and (self.layer is None or self.layer in self.layers) else None
            if head is not None:
                return head
            reached = self._reached_calls()
            if not reached:  # random weights may saturate a cap, such as a clamp, for all images
                self.random_weights = False
                self._run()
                reached = self._reached_calls()
            return self._gradient_head(reached)

    def _probe(self, seed: int) -> Probe:
        x = self.x
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = _weight_dtype(self.model) or dtype
        return Probe(self.model, x.shape[1:], len(x), dtype, x.device, seed, random_weights=self.random_weights)

    def _run(self) -> None:
        """Run the model with gradients, record the calls of all layers, and find the layouts of their outputs."""
        self.probe = self._probe(0)
        modules = [module for module in self.model.modules() if not isinstance(module, torch.jit.ScriptModule)]
        try:
            logits, calls = self._forward(modules, NUM_IMAGES)
        except Exception:
            if len(self.x) == NUM_IMAGES:
                self._check_dtype()
                raise
            self.probe = self._probe(0)
            try:
                logits, calls = self._forward(modules, len(self.x))
            except RuntimeError:
                self._check_dtype()
                raise
        self.calls = calls
        check_logits(self.model, logits)
        check_not_probabilities(self.model, logits)
        self.logits: Tensor = logits
        self.layouts: dict[int, list[FeatureLayout]] = {}
        other_aspect: dict[int, list[FeatureLayout]] = {}  # used if no output has the aspect ratio of the images
        grids: list[tuple[int, int]] = []
        for i, (_, output, _) in enumerate(calls):
            if output.ndim < 3 or len(output) != len(logits) or not output.is_floating_point():
                continue
            layouts = list(candidate_layouts(output, self.image_size, grids))
            matching = [layout for layout in layouts if layout.matches(self.image_size)]
            if matching:
                self.layouts[i] = matching
                if output.ndim == 4:
                    grids.append(matching[0].grid)
            elif layouts and layouts[0].kind == "channels_first" and output.shape[1:3] != (1, 1):
                other_aspect[i] = layouts[:1]  # (N, 1, 1, C) is excluded: one cell with channels last
        self.layouts = self.layouts or other_aspect
        if not self.layouts:
            raise InputError(
                f"{type(self.model).__name__} must have a layer with a spatial output (N, C, h, w) of more than one "
                f"cell for a class activation map, got none at {self.image_size[0]} x {self.image_size[1]} pixels. Use "
                "larger images or a model with convolutions."
            )

    def _forward(self, modules: list[nn.Module], batch_size: int) -> tuple[Any, list[RecordedCall]]:
        self.images = self.probe.noise(batch_size, 0).requires_grad_()
        with record_calls(modules) as calls:
            logits = self.probe.run(self.images.clone())  # a model may change its input in place
        return logits, calls

    def _check_dtype(self) -> None:
        dtype = _weight_dtype(self.model)
        if dtype not in (None, self.probe.dtype):
            name, expected = (str(d).removeprefix("torch.") for d in (self.x.dtype, dtype))
            raise InputError(f"x must have the dtype {expected} of the weights, got {name}. Convert the images.")

    def _is_confirmed(self, i: int, layout: FeatureLayout, use_input: bool = False) -> bool:
        """Return True if the feature map of call ``i`` is spatially aligned with the image."""
        key = (i, layout)
        if key not in self.confirmed:
            call_index = self._call_index(i)
            layer = self.calls[i].layer
            self.confirmed[key] = follows_image_positions(self._probe, layer, call_index, layout, use_input=use_input)
        return self.confirmed[key]

    # --- exact heads

    def _exact_head(self) -> Head | None:
        """Return the head if the logits are a linear layer of the mean features, else None."""
        layer = None if self.layer is None else self.layers[self.layer]
        found: list[tuple[int, FeatureLayout, bool, LinearPath]] = []

        def is_start(tensor: Tensor, path: LinearPath) -> bool:
            pool_first = not any(step.kind == "average" for step in path.after)
            if pool_first:
                is_logits = _is_close(path.linear.output.flatten(1), self.logits)
                candidates = self._calls_with_output(tensor) if is_logits else []
                target = path.linear.source
            else:
                candidates = self._linear_calls(tensor, path)
                target = self.logits
            for i in candidates:
                if layer not in (None, self.calls[i].layer):
                    continue
                features = tensor if pool_first else path.linear.output
                for layout in candidate_layouts(features, self.image_size, self._grids_before(i)):
                    if _is_close(layout.mean(features), target.flatten(1)) and self._is_confirmed(
                        i, layout, use_input=not pool_first
                    ):
                        found.append((i, layout, not pool_first, path))
                        return True
            return False

        path = self.probe.linear_path(self.logits, is_start)
        linear = None if path is None else self._linear_layer(path)
        if path is None or linear is None:
            return None
        i, layout, use_input, path = found[0]
        call = LayerCall(self.calls[i].layer, self._call_index(i), layout, use_input)
        return Head(call, "exact", linear, path.signature(), self._earlier_calls(i, layout))

    def _calls_with_output(self, tensor: Tensor) -> list[int]:
        """Return the calls that returned ``tensor``, the last first."""
        return [i for i in reversed(range(len(self.calls))) if self.calls[i].output is tensor]

    def _linear_calls(self, tensor: Tensor, path: LinearPath) -> list[int]:
        """Return the calls of the linear layer itself, with ``tensor`` as input."""
        return [i for i in self._calls_with_output(path.linear.output) if self.calls[i].first_input is tensor]

    def _linear_layer(self, path: LinearPath) -> nn.Module | None:
        """Return the module with the weight and the bias of the linear layer, or None if its weight is computed."""
        weight, bias = path.linear.operands
        for module in self.model.modules():
            if weight is not None and getattr(module, "weight", None) is weight:
                return module if getattr(module, "bias", None) is bias else None
        return None

    # --- gradient-based heads

    def _gradient_head(self, reached: list[int]) -> Head:
        """Return the head of gradient-based maps at one of the calls ``reached``."""
        if self.layer is None:
            for i, layout, form in self._feature_candidates(reached):
                if self._is_confirmed(i, layout):
                    return self._gradient_head_at(i, layout, form)
        else:
            for i in reversed(reached):
                if self.calls[i].layer is self.layers.get(self.layer):
                    for layout in self.layouts[i]:
                        if self._is_reached(i, layout) and self._is_confirmed(i, layout):
                            return self._gradient_head_at(i, layout, self._form(i, layout))
        raise InputError(self._no_map_message(reached))

    def _gradient_head_at(self, i: int, layout: FeatureLayout, form: Form) -> Head:
        call = LayerCall(self.calls[i].layer, self._call_index(i), layout)
        return Head(call, form, None, (), self._earlier_calls(i, layout))

    def _reached_calls(self) -> list[int]:
        """Return the calls whose spatial output has a gradient of the logits."""
        candidates = [i for i in self.layouts if self.calls[i].output.requires_grad]
        self.gradients: dict[int, Tensor] = {}
        if candidates and self.logits.requires_grad:
            weights = torch.randn(self.logits.shape, generator=torch.Generator().manual_seed(0))
            self.target = (self.logits * weights.to(self.logits)).sum()
            gradients = self._grad([self.calls[i].output for i in candidates])
            self.gradients = {i: g for i, g in zip(candidates, gradients, strict=True) if g is not None}
        return [i for i in self.gradients if any(self._is_reached(i, layout) for layout in self.layouts[i])]

    def _is_reached(self, i: int, layout: FeatureLayout) -> bool:
        return bool(layout.spatial(self.gradients[i]).any())

    def _feature_candidates(self, reached: list[int]) -> Iterator[tuple[int, FeatureLayout, Form]]:
        """Yield the calls that maps may be computed from, the best first.

        The best is the last call through whose cells all image information reaches the logits: with these cells held
        constant, the logits do not depend on the image. Prefix tokens such as a class token may carry image information
        past these cells. If they hold none until late in the network, as with class-attention layers, the best is the
        last such call in the second half of the network. Otherwise it is the last call through which all patch tokens
        of the second-to-last block pass: in a vision transformer, the first normalization of the last block. If no
        single call carries all image information, as in an ensemble, it is the last usable call.
        """
        usable = [
            (i, layout)
            for i in reversed(reached)
            if not self._is_upsampled(i) and not self._is_token_projection(i)
            for layout in self.layouts[i]
            if self._is_reached(i, layout)
        ]
        bypassed: tuple[int, FeatureLayout] | None = None
        for i, layout in usable:
            if self._cuts(i, layout, self.images):
                yield i, layout, "gradient"
            elif layout.prefix and self._cuts(i, None, self.images) and self._is_confirmed(i, layout):
                bypassed = (i, layout)
                break
        if bypassed is not None:
            source, source_layout = bypassed
            informed = self._calls_with_informed_prefix()
            for i, layout in usable:
                if len(self.calls) / 2 < i < source and i not in informed and self._cuts(i, layout, self.images):
                    yield i, layout, "gradient"
                    break
            for i, layout in usable:
                if i > source and self._cuts(i, layout, self.calls[source].output, source_layout):
                    yield i, layout, "partial"
            yield source, source_layout, "partial"
        for i, layout in usable:
            yield i, layout, "partial"

    def _calls_with_informed_prefix(self) -> set[int]:
        """Return the calls whose prefix tokens depend on the image."""
        modules = list(dict.fromkeys(call.layer for call in self.calls))
        with torch.no_grad(), record_calls(modules) as calls:
            self.probe.run(self.probe.noise(len(self.images), 1))
        return {
            i
            for i, (before, after) in enumerate(zip(self.calls, calls, strict=False))
            for layout in self.layouts.get(i, [])
            if layout.prefix and not torch.equal(before.output[:, : layout.prefix], after.output[:, : layout.prefix])
        }

    def _form(self, i: int, layout: FeatureLayout) -> Form:
        return "gradient" if self._cuts(i, layout, self.images) else "partial"

    def _cuts(
        self, i: int, layout: FeatureLayout | None, source: Tensor, source_layout: FeatureLayout | None = None
    ) -> bool:
        """Return True if the logits do not depend on ``source`` when the output of call ``i`` is constant.

        Args:
            i: Index of the call.
            layout: Layout whose cells are constant. None: the whole output is constant.
            source: The images or the output of an earlier call.
            source_layout: Layout whose cells count as the source (default: all values).
        """

        def remove(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            (gradient if layout is None else layout.spatial(gradient)).zero_()
            return gradient

        output = self.calls[i].output
        hook = output.register_hook(remove)
        try:
            (gradient,) = self._grad([source])
        finally:
            hook.remove()
        if gradient is None:
            return True
        return not bool((gradient if source_layout is None else source_layout.spatial(gradient)).any())

    def _grad(self, inputs: list[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradients of a random sum of the logits, None for tensors that the logits do not use."""
        try:
            return torch.autograd.grad(self.target, inputs, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise InputError(
                f"gradient checkpointing must be off for gradient-based maps, got a {type(self.model).__name__} that "
                "uses it. Turn off gradient checkpointing."
            ) from error

    def _is_upsampled(self, i: int) -> bool:
        """Return True for an output of higher resolution than its input, which adds no spatial information."""
        _, output, first_input = self.calls[i]
        return first_input.ndim == 4 == output.ndim and output[0, 0].numel() > first_input[0, 0].numel()

    def _is_token_projection(self, i: int) -> bool:
        """Return True for a linear layer of tokens. Part of the output of a query, key or value layer has no effect."""
        return isinstance(self.calls[i].layer, nn.Linear) and self.calls[i].output.ndim == 3

    # --- calls

    def _call_index(self, i: int) -> int:
        layer = self.calls[i].layer
        return sum(call.layer is layer for call in self.calls[:i])

    def _grids_before(self, i: int) -> list[tuple[int, int]]:
        return [layouts[0].grid for j, layouts in self.layouts.items() if j < i and self.calls[j].output.ndim == 4]

    def _earlier_calls(self, end: int, end_layout: FeatureLayout) -> list[LayerCall]:
        top_level = set(_top_level_layers(unwrap(self.model)))
        last_at_grid = {
            layouts[0].grid: i for i, layouts in self.layouts.items() if i < end and self.calls[i].layer in top_level
        }
        indices = sorted(i for grid, i in last_at_grid.items() if grid != end_layout.grid)
        return [LayerCall(self.calls[i].layer, self._call_index(i), self.layouts[i][0]) for i in indices]

    def _no_map_message(self, reached: list[int]) -> str:
        """Return the error message if there is no map. It lists candidate layers, preferably outer and later layers."""
        layer = self.layer
        candidates = [self.calls[i].layer for i in reached or self.layouts]
        name_of = {module: name for name, module in self.layers.items()}
        names = list(dict.fromkeys(name_of[module] for module in candidates if module in name_of))
        outermost = sorted(names, key=lambda name: (name.count("."), -names.index(name)))[:MAX_LISTED_LAYERS]
        listed = ", ".join(name for name in names if name in outermost)
        model_name = type(unwrap(self.model)).__name__
        if layer is not None and layer not in self.layers:
            return (
                f"layer must be the name of a layer of {model_name}, got {layer!r}. Choose a layer with a spatial "
                f"output that the logits depend on: {listed}."
            )
        if layer is not None and reached:
            return (
                f"layer must have a feature map that is spatially aligned with the image and that the logits of "
                f"{model_name} depend on, got {layer!r}. Choose another layer: {listed}."
            )
        if reached:
            return (
                f"{model_name} must have a feature map that is spatially aligned with the image for a class activation "
                f"map, got none: in the outputs of {listed}, a corner does not depend most on the same corner of the "
                f"image. Use a model with convolutions or patch tokens before its pooling layer."
            )
        return (
            f"the logits of {model_name} must have a gradient with respect to a layer with a spatial output ({listed}) "
            "for a class activation map, got none. Use a model that is differentiable between that layer and the "
            "logits, without quantization."
        )


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


def _weight_dtype(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors with tolerances for the dtype of ``b``. Tensors of different shapes are not close."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(b.dtype).eps
    tolerance = 4 * eps if b.dtype in (torch.half, torch.bfloat16) else 50 * eps
    a = a.detach().double()
    b = b.detach().double()
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def _describe(value: object) -> str:
    """Describe a value for an error message: type, or dtype and shape of a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
