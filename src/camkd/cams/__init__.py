"""Class activation maps (CAMs) of any image classifier, computed in the forward pass of the prediction.

*Exact maps* (Zhou et al. 2016, arXiv 1512.04150) exist for the heads "global average pooling, then linear" and "1x1
convolution, then global average pooling", which are equivalent. With features ``A (C, h, w)`` and weights ``W (K, C)``,

    cam[k] = sum_c W[k, c] A[c]        logit[k] = mean_xy(cam[k]) + bias[k]

*Gradient-based maps* exist for every other head: HiResCAM (`hirescam` in ``maps.py``) times ``h w``. The product equals
the exact map wherever the head is linear. It takes one backward pass per class.

The memory layout of ``A`` may be ``(C, h, w)``, ``(h, w, C)`` or a sequence of tokens, with prefix tokens before the
patches. See `FeatureLayout` in ``head_detection.py``.
"""

from camkd.cams.head_detection import Form
from camkd.cams.maps import MAP_METHODS
from camkd.cams.predict import bias, form, predict
from camkd.cams.resize import centre_prior, resize

__all__ = ["MAP_METHODS", "Form", "bias", "centre_prior", "form", "predict", "resize"]
