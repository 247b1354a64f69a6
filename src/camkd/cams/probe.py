"""Forward passes of a model on random images with random weights, which leave the model unchanged.

Head detection depends on what a network computes from what, and not on the values of its weights: an untrained, a
trained and a copied network have the same head.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams.hooks import RecordedCall, ThreadHook, is_tensor_call
from camkd.cams.layouts import FeatureLayout
from camkd.cams.tracing import OperationTrace, batch_norm_operands, is_training_batch_norm

NUM_IMAGES = 2
"""Number of images of the forward pass with gradients."""

MAX_KERNEL = 7
"""Maximum side of a kernel with a dominating center."""

MAX_PROBES = 3
"""Maximum number of random weights for the test of a layout."""

MAX_P_VALUE = 0.02
"""A layout is confirmed if as many cells would agree by chance with at most this probability."""

MIN_SHARE = 0.6
"""Minimum share of the cells of each corner that agree."""

SURE_P_VALUE = 1e-4
"""No further random weights are used at this probability."""


class _CallReached(Exception):
    """The call of a layer is recorded, so the rest of the forward pass is not needed."""


class Probe(OperationTrace):
    """Forward passes of a model with random weights.

    Every operation on a parameter gets random values instead, and every operation on a buffer a copy. Batch
    normalization uses the statistics of the first pass as constants. Dropout and stochastic depth are off.

    Args:
        model: The model.
        image_shape: Shape ``(C, H, W)`` of the images.
        batch_size: Batch size of the user's images, for models that accept no other.
        dtype: Dtype of the random images.
        device: Device of the random images.
        seed: Seed of images and weights.
        random_weights: Whether parameters get random values.
    """

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, ...],
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        *,
        random_weights: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.image_shape = tuple(image_shape)
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = device
        self.seed = seed
        parameters = model.parameters() if random_weights else ()
        self._parameter_ids = {id(parameter): i for i, parameter in enumerate(parameters)}
        states = [*model.buffers(), *_plain_tensors(model)]
        self._buffers = {id(state): state.detach().clone() for state in states}
        self._originals = {id(self._buffers[id(state)]): state for state in states}
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._num_batch_norms = 0

    def noise(self, count: int, seed: int) -> Tensor:
        """Return random images in 0..1."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, *self.image_shape, generator=generator).to(self.device, self.dtype)

    def run(self, images: Tensor) -> Any:
        """Return the output of the model. The operations of the last call are in ``self.steps``."""
        self.steps.clear()
        self._num_batch_norms = 0
        with _restored_state(self.model, self.device), self:
            return self.model(images)

    def call(self, images: Tensor, layer: nn.Module, call_index: int) -> RecordedCall | None:
        """Run the model up to a call of a layer, without gradients.

        A model that accepts only the batch size of the user's images gets each image in a batch of copies.

        Returns:
            The call, with one row per image, or None if the layer is called less often.
        """
        try:
            return self._run_to_call(images, layer, call_index)
        except Exception:
            if len(images) == self.batch_size:
                raise
        calls = [
            self._run_to_call(image.expand(self.batch_size, *image.shape).clone(), layer, call_index)
            for image in images
        ]
        first_rows = [(call.output[:1], call.first_input[:1]) for call in calls if call is not None]
        if len(first_rows) < len(images):
            return None
        outputs, inputs = zip(*first_rows, strict=True)
        return RecordedCall(layer, torch.cat(outputs), torch.cat(inputs))

    def _run_to_call(self, images: Tensor, layer: nn.Module, call_index: int) -> RecordedCall | None:
        calls: list[RecordedCall] = []

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if is_tensor_call(inputs, output):
                calls.append(RecordedCall(module, output, inputs[0]))
            if len(calls) > call_index:
                raise _CallReached

        handle = layer.register_forward_hook(ThreadHook(record))
        try:
            with torch.no_grad():
                self.run(images)
        except _CallReached:
            return calls[call_index]
        finally:
            handle.remove()
        return None

    def execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation with random weights. Random choices that keep or drop something keep it."""
        name = getattr(func, "__name__", "")
        if name in ("bernoulli", "bernoulli_"):
            return torch.ones_like(args[0]) if name == "bernoulli" else args[0].fill_(1)
        output = func(*(self._substitute(arg) for arg in args), **{k: self._substitute(v) for k, v in kwargs.items()})
        return self._originals.get(id(output), output)  # an operation in place on a buffer returns the buffer

    def dropout(
        self, func: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the input unchanged."""
        ones = x.new_ones(x.shape)
        return x * ones, ones

    def batch_norm(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Normalize by the batch statistics of the first pass, as constants.

        Running statistics do not fit random weights. They are used with the weights of the model.
        """
        x, weight, bias, eps = batch_norm_operands(args, kwargs)
        if not self._parameter_ids and not is_training_batch_norm(args, kwargs):
            return self.execute(func, args, kwargs)  # type: ignore[no-any-return]
        if self._num_batch_norms == len(self._statistics):
            dims = [0, *range(2, x.ndim)]
            var, mean = torch.var_mean(x.detach(), dims, correction=0)
            has_spread = x.numel() > x.shape[1]
            self._statistics.append((mean, var) if has_spread else (torch.zeros_like(mean), torch.ones_like(var)))
        mean, var = self._statistics[self._num_batch_norms]
        self._num_batch_norms += 1
        weight = None if weight is None else self._substitute(weight)
        bias = None if bias is None else self._substitute(bias)
        return F.batch_norm(x, mean, var, weight, bias, eps=max(eps, 1e-5))

    def _substitute(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self._buffers:
                return self._buffers[id(value)]
            index = self._parameter_ids.get(id(value))
            return value if index is None else self._random_weight(value, index)
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            return type(value)(self._substitute(entry) for entry in value)
        return value

    def _random_weight(self, parameter: Tensor, index: int) -> Tensor:
        """Return the same random values for every use of a parameter."""
        if not parameter.is_floating_point():
            return parameter
        generator = torch.Generator().manual_seed(hash((self.seed, index)) & 0x7FFF_FFFF)
        if parameter.ndim < 2:
            values = torch.rand(parameter.shape, generator=generator) + 0.5
        else:
            fan_in = parameter.numel() / parameter.shape[0]
            values = torch.randn(parameter.shape, generator=generator) / math.sqrt(max(1, fan_in))
            if parameter.ndim == 4:
                values *= _centered_window(parameter.shape[2])[:, None] * _centered_window(parameter.shape[3])
        return values.to(parameter.device, parameter.dtype)


def _centered_window(length: int) -> Tensor:
    """Return factors that make the center of a kernel dominate, so that deep networks keep positions apart.

    Larger kernels are those of patches, which do not overlap.
    """
    positions = torch.arange(length) - (length - 1) / 2
    return torch.exp(-2 * positions**2) if length <= MAX_KERNEL else torch.ones(length)


def _plain_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that are ordinary attributes of modules."""
    return [
        value
        for module in model.modules()
        for value in list(module.__dict__.values())
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    ]


MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)
"""Attributes of every module, such as its hooks, which other threads may change during a probe."""


@contextmanager
def _restored_state(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the buffers, the ordinary attributes and the containers in them, and the random state on exit.

    A layer may cache a value that it computed from its weights, in an attribute or in a dict.
    """
    containers = [container for module in model.modules() for container in _containers(module)]
    before = [container.copy() for container in containers]
    devices = [device] if device.type == "cuda" else []
    fork = torch.random.fork_rng(devices) if device.type in ("cpu", "cuda") else nullcontext()
    with fork:
        try:
            yield
        finally:
            for container, values in zip(containers, before, strict=True):
                _restore(container, values)


def _containers(module: nn.Module) -> list[Any]:
    """Return the buffers and the attributes of a module, and each dict, list and set in its own attributes."""
    found: list[Any] = [module._buffers, module.__dict__]
    nested = [value for name, value in module.__dict__.items() if name not in MODULE_ATTRIBUTES]
    seen: set[int] = set()
    while nested:
        value = nested.pop()
        if isinstance(value, dict | list | set) and id(value) not in seen:
            seen.add(id(value))
            found.append(value)
            nested += [
                item
                for item in (value.values() if isinstance(value, dict) else value)
                if isinstance(item, dict | list | set)
            ]
    return found


def _restore(container: Any, values: Any) -> None:
    """Give a dict, list or set its earlier content. Nothing is written if it is unchanged."""
    if isinstance(container, dict):
        for name in [name for name in container if name not in values]:
            del container[name]
        changed = [name for name in values if name not in container or container[name] is not values[name]]
        container.update((name, values[name]) for name in changed)
    elif len(container) != len(values) or any(map(operator.is_not, container, values)):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(values)


def corner_regions(size: tuple[int, int], split_rows: bool, split_columns: bool) -> list[tuple[slice, slice]]:
    """Return the corners of a grid, each half as high and half as wide, without the middle row and column.

    Args:
        size: Height and width of the grid.
        split_rows: Whether the grid is halved vertically. Otherwise a region has all rows.
        split_columns: Whether the grid is halved horizontally.

    Returns:
        Slices of rows and columns of each corner.

    Example:
        >>> corner_regions((3, 4), split_rows=True, split_columns=False)
        [(slice(0, 1, None), slice(None, None, None)), (slice(2, 3, None), slice(None, None, None))]
    """
    rows, columns = (
        [slice(0, length // 2), slice(length - length // 2, length)] if split else [slice(None)]
        for length, split in zip(size, (split_rows, split_columns), strict=True)
    )
    return [(row, column) for row in rows for column in columns]


def follows_image_positions(
    probe: Callable[[int], Probe], layer: nn.Module, call_index: int, layout: FeatureLayout, *, use_input: bool = False
) -> bool:
    """Test the layout of a layer's output: a corner of the image changes the cells of the same corner most.

    Args:
        probe: ``probe(seed)`` returns a `Probe` of the model.
        layer: The layer.
        call_index: Index of the call among the layer's calls.
        layout: The layout to test.
        use_input: Whether the features are the first input of the layer instead of its output.

    Returns:
        True if most cells of every corner change most with the same corner of the image, and if that cannot be chance.
    """
    matches: list[list[bool]] = []
    corners_match = False
    for seed in range(1, MAX_PROBES + 1):
        corners = _matching_cells(probe(seed), layer, call_index, layout, use_input)
        if not corners:
            return False
        matches = [[*old, *new] for old, new in zip(matches or [[] for _ in corners], corners, strict=True)]
        num_matches = sum(map(sum, matches))
        p_value = _binomial_tail(num_matches, sum(map(len, matches)), 1 / len(corners))
        corners_match = all(sum(corner) >= MIN_SHARE * len(corner) for corner in matches)
        if p_value <= SURE_P_VALUE and corners_match:
            return True
    return p_value <= MAX_P_VALUE and corners_match


def _matching_cells(
    probe: Probe, layer: nn.Module, call_index: int, layout: FeatureLayout, use_input: bool
) -> list[list[bool]]:
    """Return for every corner whether its cells change most with that corner. No corner: the layer was not called."""
    split = (layout.grid[0] > 1, layout.grid[1] > 1)
    image_regions = corner_regions((probe.image_shape[1], probe.image_shape[2]), *split)
    cell_regions = corner_regions(layout.grid, *split)
    images = probe.noise(1, probe.seed).repeat(1 + len(image_regions), 1, 1, 1)
    other = probe.noise(1, probe.seed + MAX_PROBES)[0]
    for image, (rows, columns) in zip(images[1:], image_regions, strict=True):
        image[:, rows, columns] = other[:, rows, columns]
    call = probe.call(images, layer, call_index)
    if call is None:
        return []
    features = layout.spatial(call.first_input if use_input else call.output).float()
    change = (features[1:] - features[:1]).square().sum(1)  # (corners, h, w)
    # strides let some corners change everything more than others do, so each corner counts relative to its total
    change = change / change.sum((1, 2), keepdim=True).clamp_min(torch.finfo(change.dtype).tiny)
    largest = change.argmax(0)
    is_clear = (change.max(0).values > change.min(0).values) & change.isfinite().all(0)
    matches = [(largest == corner) & is_clear for corner in range(len(image_regions))]
    return [match[region].flatten().tolist() for match, region in zip(matches, cell_regions, strict=True)]


def _binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at least ``successes`` successes."""
    return math.fsum(
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(successes, trials + 1)
    )
