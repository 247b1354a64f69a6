"""The map methods, as formulas.

Each makes a class's map ``(N, h, w)`` of the features ``A (N, C, h, w)`` and the slopes ``G = d logit / d A`` of that
class. ``z`` is the number of cells, ``h w``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Formula = Callable[[Tensor, Tensor], Tensor]


def cam(features: Tensor, slopes: Tensor) -> Tensor:
    """``z sum_c A[c] G[c]``: what CAM (Zhou et al. 2016, arXiv 1512.04150) is where the head is linear."""
    return hirescam(features, slopes) * features.shape[2] * features.shape[3]


def hirescam(features: Tensor, slopes: Tensor) -> Tensor:
    """``sum_c A[c] G[c]``: HiResCAM (Draelos and Carin 2020, arXiv 2011.08891), with its sign."""
    return (features * slopes).sum(1)


def gradcam(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c mean_xy(G[c]) A[c])``: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391)."""
    return _weighted(features, slopes.mean((2, 3)))


def layercam(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c relu(G[c]) A[c])``: LayerCAM (Jiang et al. 2021, IEEE TIP 30, eq. 6 to 8; no tanh)."""
    return (features * slopes.relu()).sum(1).relu()


def gradcam_plus_plus(features: Tensor, slopes: Tensor) -> Tensor:
    """``relu(sum_c w[c] A[c])``: Grad-CAM++ (Chattopadhyay et al. 2018, arXiv 1710.11063, eq. 5, 7 and 19).

    ``w[c] = sum_xy a[c] relu(G[c])`` with ``a[c] = G[c]^2 / (2 G[c]^2 + G[c]^3 sum_xy(A[c]))``, and nought where ``G``
    is. The score is the exponential of the logit; its factor ``exp(logit)``, the same for a whole map, is left out.
    """
    flat = slopes == 0
    ratio = 2 + slopes * features.sum((2, 3), keepdim=True)  # a = 1 / ratio: the square is in every summand
    share = torch.where(flat, 0, 1 / torch.where(flat, 1, ratio))
    return _weighted(features, (share * slopes.relu()).sum((2, 3)))


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """``relu(sum_c w[c] A[c])`` for ``w (N, C)``."""
    return torch.einsum("nchw,nc->nhw", features, weights.to(features.dtype)).relu()


METHODS: dict[str, Formula] = {
    "cam": cam,
    "gradcam": gradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "gradcam++": gradcam_plus_plus,
}
"""By name. ``cam`` is taken from the weights, without a gradient, where the head is linear."""
