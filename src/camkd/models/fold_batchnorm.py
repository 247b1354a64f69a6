"""A network made ready to answer and nothing else."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batchnorm(model: nn.Module, x: Tensor) -> nn.Module:
    """A frozen copy of ``model`` in evaluation mode, its batch normalisation folded into the convolutions before it.

    ``gamma (w * x + b - mean) / sqrt(var + eps) + beta`` is one convolution. Where the network cannot be traced, or the
    folded one does not give the same answers to the pictures ``x``, it is a plain copy.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    try:
        quick = _fold(fx.symbolic_trace(copy.deepcopy(plain)))
    except Exception:  # whatever a stranger's forward() raises when it is traced
        return plain
    with torch.no_grad():
        same = torch.allclose(quick(x), plain(x), rtol=1e-3, atol=1e-3)
    return quick.to(memory_format=torch.channels_last) if same else plain  # type: ignore[call-overload]


def _fold(traced: fx.GraphModule) -> fx.GraphModule:
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    uses = Counter(node.target for node in calls)
    for node in calls:
        before = node.args[0]
        if before not in calls or len(before.users) > 1 or uses[before.target] > 1:
            continue
        conv, norm = traced.get_submodule(before.target), traced.get_submodule(node.target)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            traced.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False)
