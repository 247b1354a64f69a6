"""Folding of batch normalization into convolutions, for inference."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batchnorm(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a frozen copy in evaluation mode, with batch normalizations folded into the convolutions before them.

    A convolution with weight ``w`` and bias ``b``, followed by a batch normalization, is one convolution with weight
    ``w * gamma / sqrt(var + eps)`` and bias ``(b - mean) * gamma / sqrt(var + eps) + beta``. A batch normalization is
    folded if it follows an ``nn.Conv2d`` that is called once and has no other consumer.

    Args:
        model: The model; it is left unchanged.
        x: Images ``(N, 3, H, W)`` for the comparison of both outputs.

    Returns:
        The folded copy in channels-last memory format. A frozen copy without folding if ``torch.fx`` cannot trace the
        model, or if an output differs by more than ``0.001 + 0.001 * |output|``.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    try:
        folded = _fold(fx.symbolic_trace(copy.deepcopy(frozen)))
    except Exception:  # tracing runs the model's forward(), which may raise anything
        return frozen
    with torch.no_grad():
        is_equal = torch.allclose(folded(x), frozen(x), rtol=1e-3, atol=1e-3)
    return folded.to(memory_format=torch.channels_last) if is_equal else frozen  # type: ignore[call-overload]


def _fold(traced: fx.GraphModule) -> fx.GraphModule:
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    num_calls = Counter(node.target for node in calls)
    for node in calls:
        previous = node.args[0]
        if previous not in calls or len(previous.users) > 1 or num_calls[previous.target] > 1:
            continue
        conv = traced.get_submodule(previous.target)
        norm = traced.get_submodule(node.target)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            traced.set_submodule(previous.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(previous)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False)
