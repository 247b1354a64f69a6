"""Trace of the tensor operations between the features and the logits.

A linear head is recognized by its operations in the current forward pass: a mean over locations and a linear layer, in
either order, and no other operations than reshapes and dropout. A map is therefore called exact only if
``logits = mean_xy(cams) + bias`` holds for these images and these weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

RESHAPES = frozenset(
    {"view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "view_as", "reshape_as", "contiguous", "clone"}
    | {"transpose", "permute", "swapaxes", "swapdims", "movedim", "t", "T", "mT", "select", "narrow", "__getitem__"}
    | {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
)
"""Operations that move or convert values."""

AVERAGES = frozenset(
    {"mean", "sum", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
    | {"avg_pool1d", "avg_pool2d", "avg_pool3d"}
    | {"mul", "__mul__", "__rmul__", "multiply", "div", "__truediv__", "true_divide", "divide"}
)
"""Operations with constant coefficients that a mean over locations may consist of. A factor must be a number."""

DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"})

BATCH_REDUCTIONS = frozenset(
    {"mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "amax", "amin", "logsumexp"}
)
"""Operations that compute batch statistics if they reduce dimension 0."""

WITHOUT_ARGUMENTS = frozenset({"view", "reshape", "flatten", "view_as", "reshape_as"})
"""Operations that the shape of their output describes completely, apart from the batch size."""


class Step(NamedTuple):
    """One operation with one tensor as input.

    Attributes:
        output: The output.
        source: The input.
        kind: ``linear``, ``dropout``, ``average`` or ``reshape``.
        signature: Name, arguments and output shape of the operation. Two steps with equal signatures compute the same
            function of an image.
        source_edits: `_num_edits` of the input before the operation.
        edits: `_num_edits` of the output after the operation.
        operands: Weight and bias of ``linear``, the scale ``(N, C)`` of ``dropout``.
    """

    output: Tensor
    source: Tensor
    kind: str
    signature: tuple[object, ...]
    source_edits: int
    edits: int
    operands: tuple[Tensor | None, ...] = ()


class LinearPath(NamedTuple):
    """The operations from a tensor to the logits, if they are a linear head.

    Attributes:
        linear: The step of the linear layer.
        before: Steps from the features to the input of the linear layer, from the last to the first.
        after: Steps from the output of the linear layer to the logits, from the last to the first.
    """

    linear: Step
    before: tuple[Step, ...]
    after: tuple[Step, ...]

    def signature(self) -> tuple[object, ...]:
        """Return the signatures of all steps except dropout."""
        return tuple(s.signature for s in (*self.after, self.linear, *self.before) if s.kind != "dropout")

    def scale(self) -> Tensor | None:
        """Return the factor ``(N, C)`` of each channel by active dropout layers, or None without such a layer."""
        scale = None
        for step in self.before:
            for factor in step.operands:
                assert factor is not None
                scale = factor.flatten(1) if scale is None else scale * factor.flatten(1)
        return scale


class Gate:
    """Switch of the gradient through batch statistics."""

    closed = False


class _GateFunction(torch.autograd.Function):
    """Identity. The gradient is zero while the gate is closed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Gate) -> Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return None if ctx.gate.closed else gradients[0], None


def _hold(x: Tensor, gate: Gate | None) -> Tensor:
    """Return ``x`` behind a gate."""
    return _GateFunction.apply(x, gate)  # type: ignore[no-any-return, no-untyped-call]


class OperationTrace(TorchFunctionMode):
    """Record the operations that a linear head may consist of, and hold batch statistics behind a gate.

    The mode is active in the current thread only.

    Args:
        gate: Gate of the gradient through batch statistics: those of batch normalization in training mode, and every
            mean, variance, norm or maximum over dimension 0. None: batch statistics are not changed.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate
        self.steps: dict[int, Step] = {}
        self._inference_edits: dict[int, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _operation_name(func)
        source = args[0] if args and isinstance(args[0], Tensor) else kwargs.get("input")
        edits = self._num_edits(source) if isinstance(source, Tensor) else 0
        scale = None
        if name in DROPOUTS and isinstance(source, Tensor) and _is_active_dropout(args, kwargs):
            output, scale = self.dropout(func, source, args, kwargs)
            if scale is None:
                return output
        elif name == "batch_norm":
            output = self.batch_norm(func, args, kwargs)
        else:
            output = self.execute(func, args, kwargs)
        if self.gate is not None and name in BATCH_REDUCTIONS and _reduces_batch(name, args, kwargs):
            output = _map_tensors(output, lambda x: _hold(x, self.gate))
        if isinstance(output, Tensor) and isinstance(source, Tensor):
            self._record(name, source, edits, output, scale, args, kwargs)
        return output

    def execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation."""
        return func(*args, **kwargs)

    def batch_norm(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Compute batch normalization. Batch statistics are behind the gate, if there is one."""
        output: Tensor = self.execute(func, args, kwargs)
        if self.gate is None or not output.requires_grad or not is_training_batch_norm(args, kwargs):
            return output
        x, weight, bias, eps = batch_norm_operands(args, kwargs)
        dims = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(x.float() if x.dtype in (torch.half, torch.bfloat16) else x, dims, correction=0)
        mean, var = (_hold(value, self.gate) for value in (mean, var))
        return normalize_channels(x, mean, var, weight, bias, eps).to(output.dtype)

    def dropout(
        self, func: Callable[..., Any], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Apply dropout.

        Returns:
            The output. For an input with one value per channel also the factors of the channels, which are drawn as
            PyTorch draws them; else None.
        """
        if x.ndim < 2 or x[0].numel() != x.shape[1]:
            return self.execute(func, args, kwargs), None
        ones = torch.ones_like(x, requires_grad=False)
        scale: Tensor = self.execute(func, (ones, *args[1:]), {k: v for k, v in kwargs.items() if k != "input"})
        return x * scale, scale

    def linear_path(self, logits: Tensor, is_start: Callable[[Tensor, LinearPath], bool]) -> LinearPath | None:
        """Follow the operations back from the logits.

        Args:
            logits: Output of the model.
            is_start: ``is_start(tensor, path)`` returns True if ``path`` starts at the tensor ``A``.

        Returns:
            The path, or None if the logits are not the output of a linear head.
        """
        after: list[Step] = []
        tensor = logits
        step = self._intact_step(tensor)
        while step is not None and step.kind in ("reshape", "average"):
            after.append(step)
            step = self._intact_step(step.source)
        if step is None or step.kind != "linear":
            return None
        linear = step
        before: list[Step] = []
        edits = linear.source_edits
        tensor = linear.source
        while True:
            path = LinearPath(linear, tuple(before), tuple(after))
            # maps are computed from the tensor after the forward pass, so it must not have changed since the step
            if edits == self._num_edits(tensor) and is_start(tensor, path):
                return path
            step = self._intact_step(tensor)
            if step is None or step.kind == "linear":
                return None
            before.append(step)
            edits = step.source_edits
            tensor = step.source

    def _intact_step(self, output: Tensor) -> Step | None:
        """Return the step that computed a tensor, or None if the tensor has been changed in place since."""
        step = self.steps.get(id(output))
        return None if step is None or step.edits != self._num_edits(output) else step

    def _record(
        self,
        name: str,
        source: Tensor,
        source_edits: int,
        output: Tensor,
        scale: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if output is source:
            if name not in RESHAPES and name not in DROPOUTS and output.is_inference():
                self._inference_edits[id(output)] = self._inference_edits.get(id(output), 0) + 1
            return
        kind = _kind(name, args, kwargs)
        if kind is None:
            return
        operands: tuple[Tensor | None, ...] = () if scale is None else (scale,)
        if kind == "linear":
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            operands = (weight, args[2] if len(args) > 2 else kwargs.get("bias"))
        constants = () if name in WITHOUT_ARGUMENTS or kind == "dropout" else (_constants(args), _constants(kwargs))
        signature = (name, *constants, tuple(output.shape[1:]))
        step = Step(output, source, kind, signature, source_edits, self._num_edits(output), operands)
        self.steps[id(output)] = step

    def _num_edits(self, x: Tensor) -> int:
        """Return a number that changes when ``x`` is changed in place."""
        return self._inference_edits.get(id(x), 0) if x.is_inference() else x._version


def batch_norm_operands(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None, float]:
    """Return input, weight, bias and epsilon of ``torch.nn.functional.batch_norm`` or ``torch.batch_norm``."""
    x = _argument(args, kwargs, 0, "input", None)
    if len(args) < 9:  # torch.nn.functional.batch_norm
        weight = _argument(args, kwargs, 3, "weight", None)
        bias = _argument(args, kwargs, 4, "bias", None)
        return x, weight, bias, _argument(args, kwargs, 7, "eps", 1e-5)
    return x, args[1], args[2], args[7]


def is_training_batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True for a call of ``batch_norm`` that computes batch statistics."""
    return bool(_argument(args, kwargs, 5, "training", False))


def normalize_channels(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize the channels of ``x (N, C, ...)`` by given statistics ``(C,)``."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    output = (x - mean.view(shape)) * scale.view(shape)
    return output if bias is None else output + bias.view(shape)


def _is_active_dropout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(_argument(args, kwargs, 2, "training", True)) and _argument(args, kwargs, 1, "p", 0.5) > 0


def _operation_name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _kind(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the kind of an operation of a linear head, or None for another operation."""
    if name == "linear":
        return "linear"
    if name == "conv2d":
        weight = _argument(args, kwargs, 1, "weight", None)
        stride, padding = (_argument(args, kwargs, i, n, d) for i, n, d in ((3, "stride", 1), (4, "padding", 0)))
        is_pointwise = weight.shape[2:] == (1, 1) and _argument(args, kwargs, 6, "groups", 1) == 1
        return "linear" if is_pointwise and stride in (1, (1, 1)) and padding in (0, (0, 0), "valid") else None
    others = [*args[1:], *kwargs.values()]
    if _contains_tensor(others) and name not in ("view_as", "reshape_as", "type_as"):
        return None
    if name in DROPOUTS:
        return "dropout"
    return "average" if name in AVERAGES else "reshape" if name in RESHAPES else None


def _contains_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_contains_tensor(entry) for entry in value)
    return isinstance(value, Tensor)


def _constants(value: Any) -> object:
    """Return the arguments of an operation without its tensors, in a form that can be compared."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        return tuple((key, _constants(entry)) for key, entry in value.items())
    return tuple(_constants(entry) for entry in value) if isinstance(value, tuple | list) else value


def _reduces_batch(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True for a reduction over images.

    A mean or a sum over dimension 0 alone, of 3 or more, may be one over a stack of branches instead.
    """
    x = _argument(args, kwargs, 0, "input", kwargs.get("x"))
    if not isinstance(x, Tensor) or x.ndim < 2:
        return False
    dim = _argument(args, kwargs, 2 if name in ("norm", "vector_norm") else 1, "dim", kwargs.get("axis"))
    if dim is None or isinstance(dim, bool) or dim == ():
        return True
    dims = {d % x.ndim for d in (dim if isinstance(dim, tuple | list) else (dim,)) if isinstance(d, int)}
    may_be_stack = name in ("mean", "sum") and not kwargs.get("keepdim", False)
    return 0 in dims and (x.ndim == 2 or len(dims) > 1 or not may_be_stack)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value) if value.requires_grad else value
    return tuple(function(entry) if entry.requires_grad else entry for entry in value)
