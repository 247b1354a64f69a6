"""Finding a network's head by a dry run on noise: which layer's average is it that the last linear layer sees?

What is found is kept as long as the network stays what it was.
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

MOST_PREFIX_TOKENS = 8
"""A class token, a distillation token and four registers are six."""


@dataclass(frozen=True)
class FeatureLayout:
    """Channels ``first (N, C, h, w)`` or ``last (N, h, w, C)``, or ``tokens (N, prefix + h w, C)``, row after row."""

    kind: Literal["first", "last", "tokens"]
    grid: tuple[int, int]
    prefix: int = 0

    def spatial(self, x: Tensor) -> Tensor:
        """The same as ``(N, C, h, w)``, without a copy."""
        if self.kind == "first":
            return x
        if self.kind == "last":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-any-return]

    def suits(self, picture: tuple[int, int]) -> bool:
        """Tell whether the cells have the picture's proportions, but for rounding."""
        return self.misfit(picture) < math.inf

    def misfit(self, picture: tuple[int, int]) -> float:
        """How far the cells' proportions are from the picture's: nought, or the factor's logarithm; or infinite."""
        (h, w), (height, width) = self.grid, picture
        factor = h * width / (w * height)
        near = abs(h * width - w * height) < max(height, width) or 0.8 < factor < 1.25
        return abs(math.log(factor)) if near else math.inf


def candidate_layouts(
    x: Tensor, picture: tuple[int, int], grids: Iterable[tuple[int, int]] = ()
) -> Iterator[FeatureLayout]:
    """Yield how a layer's output for pictures of ``(H, W)`` pixels can be read, likelier ones first.

    ``grids`` are cells of outputs before it, which tell the tokens of patches from those in front of them. What has one
    cell is not yielded.
    """
    if x.ndim == 4:
        both = FeatureLayout("first", (x.shape[2], x.shape[3])), FeatureLayout("last", (x.shape[1], x.shape[2]))
        found = sorted(both, key=lambda layout: layout.misfit(picture))  # of equal ones the usual one
    elif x.ndim == 3:
        rests = [(x.shape[1] - prefix, prefix) for prefix in range(min(MOST_PREFIX_TOKENS + 1, x.shape[1]))]
        known = {h * w: (h, w) for h, w in grids}
        found = [FeatureLayout("tokens", known[cells], prefix) for cells, prefix in rests if cells in known]
        found += [FeatureLayout("tokens", _rows(cells, picture), prefix) for cells, prefix in rests]
    else:
        found = []
    return (layout for layout in found if math.prod(layout.grid) > 1)


def _rows(cells: int, picture: tuple[int, int]) -> tuple[int, int]:
    """So many cells in the picture's proportions, or nought where they have no such grid."""
    h = max(1, round(math.sqrt(cells * picture[0] / picture[1])))
    grid = h, cells // h
    return grid if math.prod(grid) == cells and FeatureLayout("tokens", grid).suits(picture) else (0, 0)


Form = Literal["exact", "gradient"]


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its output, or what it is given, and how that is laid out."""

    layer: nn.Module
    call: int  # which of the layer's calls in a forward pass: a rectifier may be used in several places
    layout: FeatureLayout
    before: bool = False  # what the layer is given


@dataclass(frozen=True)
class Head:
    """Where the features lie that a map is made of, and the linear layer after their average.

    Where the head is "1x1 convolution, then global average", the place is before that convolution.
    """

    place: LayerCall
    classifier: nn.Linear | nn.Conv2d | None  # None: no linear head, so the map is gradient-based
    stages: list[LayerCall]  # the last place at each other resolution before

    @property
    def form(self) -> Form:
        return "gradient" if self.classifier is None else "exact"


MOST_NAMES = 8


@dataclass(frozen=True)
class _Found:
    """A head, and what it was found from: another picture size or a replaced layer means another search."""

    head: Head
    shape: torch.Size
    modules: list[nn.Module | None]


_found: WeakKeyDictionary[nn.Module, dict[str | None, _Found]] = WeakKeyDictionary()


def detect_head(model: nn.Module, x: Tensor, layer: str | None = None) -> Head:
    """The head of ``model`` for pictures shaped like ``x``; the features are those of ``layer`` where it is given.

    Raises ``InputError`` where there is no such layer, or no layer with a map at all, and for what are no pictures.
    """
    _check_pictures(model, x)
    known, modules = _found.setdefault(model, {}), _modules_below(model)
    found = known.get(layer)
    if found is None or found.shape != x.shape[1:] or found.modules != modules:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            found = known[layer] = _Found(_find(model, x, layer), x.shape[1:], modules)
    return found.head


def _check_pictures(model: nn.Module, x: Tensor) -> None:
    """How many channels a network takes is its own affair, unless it normalises RGB: then one would become three."""
    pictures = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()
    if not pictures or (isinstance(model, ImageClassifier) and x.shape[1] != 3):
        raise InputError(
            f"x is {_shown(x)}, but pictures are a floating tensor (N, 3, H, W), RGB in 0..1: give such a one."
        )


def _modules_below(model: nn.Module) -> list[nn.Module | None]:
    """List what ``model.modules()`` lists, in a seventh of its time: this runs at each prediction.

    The network is not in it, as it shall not keep itself alive.
    """
    found = list(model._modules.values())
    for module in found:
        if module is not None:
            found += module._modules.values()
    return found


def _find(model: nn.Module, x: Tensor, layer: str | None) -> Head:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    probe = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device, dtype)
    names = _names(model)
    with eval_mode(model), record_calls(model.modules()) as seen:
        logits = model(probe)
    trace = _Trace(model, seen, probe)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError(
            f"{type(model).__name__} answers with {_shown(logits)}, but a classifier answers with logits (N, K): wrap "
            "it in a module whose forward() returns them alone."
        )
    if not trace.spatial:
        raise InputError(
            f"{type(model).__name__} has no layer with a spatial (N, C, h, w) output of more than one cell, so it has "
            "no class activation map: use larger pictures or a network with convolutions."
        )
    wanted = names.get(layer) if layer is not None else None
    head = None if layer is not None and wanted is None else trace.linear_head(logits, wanted)
    return head or _reaching(model, probe, layer, names)


def _reaching(model: nn.Module, probe: Tensor, layer: str | None, names: dict[str, nn.Module]) -> Head:
    """The last place from which a gradient leads to the logits, or that of ``layer``."""
    with eval_mode(model), torch.enable_grad(), record_calls(model.modules()) as seen:
        logits = model(probe.requires_grad_())
        trace = _Trace(model, seen, probe)
        goal = trace.before_linear(logits)
        weights = torch.rand(goal.shape, generator=torch.Generator().manual_seed(0)).to(goal)
        calls = [i for i in trace.spatial if seen[i].output.requires_grad]  # what is cut off stays out
        reached = calls and goal.requires_grad
        outputs = [seen[i].output for i in calls]
        slopes = torch.autograd.grad((goal * weights).sum(), outputs, allow_unused=True) if reached else []
    found = [
        i
        for i, slope in zip(calls, slopes, strict=bool(reached))
        if slope is not None and bool(trace.spatial[i].spatial(slope).any())
    ]
    if layer is None and found:
        return trace.gradient_head(trace.last(found))
    asked = [i for i in found if layer is not None and seen[i].module is names.get(layer)]
    if asked:
        return trace.gradient_head(asked[-1])
    raise InputError(_refusal(model, layer, names, [seen[i].module for i in found or trace.spatial], bool(found)))


@dataclass
class _Trace:
    """The calls of a dry run, and which of them have a spatial output."""

    model: nn.Module
    seen: list[RecordedCall]
    probe: Tensor

    def __post_init__(self) -> None:
        self.picture = (int(self.probe.shape[2]), int(self.probe.shape[3]))
        self.spatial: dict[int, FeatureLayout] = {}
        grids: list[tuple[int, int]] = []
        odd: dict[int, FeatureLayout] = {}
        for i, (_, output, _) in enumerate(self.seen):
            layout = next(self.candidate_layouts(output, grids), None)
            if layout is not None and layout.suits(self.picture):
                self.spatial[i] = layout
                if output.ndim == 4:
                    grids.append(layout.grid)
            elif layout is not None and layout.kind == "first" and output.shape[1:3] != (1, 1):
                odd[i] = layout  # but for (N, 1, 1, C), which is one cell with its channels last
        self.grids = grids
        self.spatial = self.spatial or odd

    def candidate_layouts(self, x: Tensor, grids: Sequence[tuple[int, int]]) -> Iterator[FeatureLayout]:
        whole = x.ndim > 2 and len(x) == len(self.probe) and x.is_floating_point()
        return candidate_layouts(x, self.picture, grids) if whole else iter(())

    def linear_head(self, logits: Tensor, wanted: nn.Module | None) -> Head | None:
        """The head whose average, times the weights of a linear layer, is the logits; of the layer ``wanted`` alone."""
        for i in reversed(range(len(self.seen))):
            module, output, inputs = self.seen[i]
            if not _is_linear_head(module):
                continue
            for layout in self.candidate_layouts(output, self.grids):
                average = _average(inputs, layout) if wanted in (None, module) else None
                if average is not None and _same(_average(output, layout), logits) and _gives(module, average, logits):
                    return Head(self._place(i, layout, before=True), module, self._stages(i, layout))
            average = _flat(inputs)
            if _same(_flat(output), logits) and _gives(module, average, logits):
                for j in reversed(range(i)):
                    if wanted not in (None, self.seen[j].module):
                        continue
                    for layout in self.candidate_layouts(self.seen[j].output, self.grids):
                        if _same(_average(self.seen[j].output, layout), average):
                            return Head(self._place(j, layout), module, self._stages(j, layout))
        return None

    def before_linear(self, logits: Tensor) -> Tensor:
        """What the last linear layer is given, whose own weights may still be nought; the logits if there is none."""
        last = (call for call in reversed(self.seen) if _is_linear_head(call.module) and call.output is logits)
        return next((call.inputs for call in last), logits)

    def gradient_head(self, i: int) -> Head:
        return Head(self._place(i, self.spatial[i]), None, self._stages(i, self.spatial[i]))

    def last(self, found: list[int]) -> int:
        """The last of the calls ``found`` that is as wide as the network's last spatial output, if there is one.

        Where a class token decides, the tokens of patches end before the last attention, which is given the layer
        normalisation's output and makes queries, keys and values of it, of another width. What is made larger from
        fewer cells has nothing to say of where.
        """
        own = [i for i in found if not self._grown(i)] or found
        end = next(reversed(self.spatial))
        width = self._channels(end)
        return next((i for i in reversed(own) if self._channels(i) == width), own[-1])

    def _channels(self, i: int) -> int:
        return int(self.spatial[i].spatial(self.seen[i].output).shape[1])

    def _grown(self, i: int) -> bool:
        _, output, inputs = self.seen[i]
        return inputs.ndim == 4 == output.ndim and output[0, 0].numel() > inputs[0, 0].numel()

    def _place(self, i: int, layout: FeatureLayout, before: bool = False) -> LayerCall:
        module = self.seen[i].module
        return LayerCall(module, sum(call.module is module for call in self.seen[:i]), layout, before)

    def _stages(self, end: int, layout: FeatureLayout) -> list[LayerCall]:
        own = set(_own_layers(unwrap(self.model)))
        last = {now.grid: i for i, now in self.spatial.items() if i < end and self.seen[i].module in own}
        calls = sorted(last.items(), key=lambda item: item[1])
        return [self._place(i, self.spatial[i]) for grid, i in calls if grid != layout.grid]


def unwrap(model: nn.Module) -> nn.Module:
    """``model``, or what it wraps: a network's only child alone is the network."""
    while len(children := list(model.children())) == 1:
        model = children[0]
    return model


def _own_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The children of ``module``, an ``nn.Sequential`` among them replaced by its own, and so on."""
    for child in module.children():
        yield from _own_layers(child) if isinstance(child, nn.Sequential) else (child,)


def _names(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer by its dotted name, in ``model`` or in what it wraps."""
    named = {**dict(model.named_modules()), **dict(unwrap(model).named_modules())}
    return {name: module for name, module in named.items() if name}


def _refusal(
    model: nn.Module, layer: str | None, names: dict[str, nn.Module], candidates: list[nn.Module], reached: bool
) -> str:
    """Say why there is no map, and name the layers there are: of many the outermost, later ones first."""
    called = {module: name for name, module in names.items()}
    found = list(dict.fromkeys(called[module] for module in candidates if module in called))
    nearest = sorted(found, key=lambda name: (name.count("."), -found.index(name)))[:MOST_NAMES]
    listed = ", ".join(name for name in found if name in nearest)
    who = type(unwrap(model)).__name__
    if layer is not None and layer not in names:
        return f"{who} has no layer {layer!r}: choose one with a spatial output the logits depend on, like {listed}."
    if reached:
        return (
            f"the layer {layer!r} of {who} has no spatial output that the logits depend on: choose another one, like "
            f"{listed}."
        )
    return (
        f"no gradient leads from the logits of {who} to a layer with a spatial output ({listed}), so it has no class "
        "activation map: use a network that is differentiable from there on."
    )


def _is_linear_head(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )


def _gives(layer: nn.Linear | nn.Conv2d, average: Tensor, logits: Tensor) -> bool:
    """Tell whether the logits are the layer's answer to the features' average, so nothing bent comes between."""
    fits = average.ndim == 2 and average.shape[1] == layer.weight.shape[1]
    return fits and _same(F.linear(average, layer.weight.flatten(1), layer.bias), logits)


def _average(x: Tensor, layout: FeatureLayout) -> Tensor:
    return layout.spatial(x).flatten(2).mean(2)


def _flat(x: Tensor) -> Tensor:
    """``(N, C, 1, 1)`` as ``(N, C)``; of more cells the average."""
    return x.flatten(2).mean(2) if x.ndim == 4 else x


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b, eps = a.float(), b.float(), torch.finfo(b.dtype).eps
    atol = max(1e-5, 2 * eps) * float(b.abs().max()) + 1e-12
    return torch.allclose(a, b, rtol=max(1e-3, 4 * eps), atol=atol)


def _shown(answer: object) -> str:
    if not isinstance(answer, Tensor):
        return f"a {type(answer).__name__}"
    return f"a {str(answer.dtype).removeprefix('torch.')} tensor {tuple(answer.shape)}"
