"""Class activation maps of any classifier, in the forward pass that makes the prediction.

*Exact form* (Zhou et al. 2016, arXiv 1512.04150). A head "global average, then linear" and a head "1x1 convolution,
then global average" are one thing: with features ``A (C, h, w)`` and weights ``W (K, C)``,

    cam[k] = sum_c W[k, c] A[c]        logit[k] = mean_xy(cam[k]) + bias[k]

*Gradient form*, for every other head: HiResCAM (`methods.py`) times ``h w``, which makes it equal to the exact form
wherever the head happens to be linear. It needs a backward pass a class.

``A`` may lie in memory as ``(C, h, w)``, as ``(h, w, C)`` or as a row of tokens with others before them (`layouts.py`).
"""

from camkd.cams.head_detection import Form
from camkd.cams.maps import MAP_METHODS
from camkd.cams.predict import bias, form, predict
from camkd.cams.resize import centre_prior, resize

__all__ = ["MAP_METHODS", "Form", "bias", "centre_prior", "form", "predict", "resize"]
