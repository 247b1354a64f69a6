"""Class activation maps (CAMs) of any image classifier.

*Exact maps* (Zhou et al. 2016, arXiv 1512.04150) are computed in the forward pass of the prediction. They exist for two
equivalent linear heads: "global average pooling, then linear" and "1x1 convolution, then global average pooling". With
features ``A (C, h, w)``, weights ``W (K, C)`` and the mean over all locations ``mean_xy``,

    cam[k] = sum_c(W[k, c] * A[c])
    logit[k] = mean_xy(cam[k]) + bias[k]

*Gradient-based maps* exist for every other differentiable head: HiResCAM (`hirescam` in ``maps.py``) multiplied by
``h * w``. They equal the exact maps if the head is linear. They take one backward pass per class.

The memory layout of ``A`` may be ``(C, h, w)``, ``(h, w, C)`` or a sequence of tokens, with prefix tokens before the
patches. See `FeatureLayout` in ``layouts.py``.
"""

from camkd.cams.head_detection import Form
from camkd.cams.maps import MAP_METHODS
from camkd.cams.predict import bias, form, predict
from camkd.cams.resize import center_prior, resize

__all__ = ["MAP_METHODS", "Form", "bias", "center_prior", "form", "predict", "resize"]
