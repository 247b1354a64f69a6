"""Registry of distillation methods by name, as accepted by ``--method`` and ``--terms``. Imports no torch.

To add a method, add a line to ``METHODS``. ``camkd.distill.objective`` describes the syntax of a sum of terms.
"""

from __future__ import annotations

from dataclasses import dataclass

from camkd.types import InputError


@dataclass(frozen=True)
class Method:
    """A named weighted sum of loss terms.

    Args:
        terms: The sum, such as ``ce=0.1,kd=0.9:T=4``.
        summary: One line for ``camkd list methods``.
        source: Authors, year and arXiv number of the paper, or another origin.
    """

    terms: str
    summary: str
    source: str


METHODS: dict[str, Method] = {
    "plain": Method("ce=1", "labels only, no teacher", "-"),
    "kd": Method(
        "ce=0.1,kd=0.9:T=4",
        "softened logits of the teacher",
        "Hinton et al. 2015, arXiv 1503.02531",
    ),
    "lskd": Method(
        "ce=0.1,lskd=9:T=2",
        "kd between standardized logits",
        "Sun et al. 2024, arXiv 2403.01427",
    ),
    "dkd": Method(
        "ce=1,dkd=1:alpha=1:beta=8:T=4:schedule=warm",
        "kd decoupled into target class and other classes",
        "Zhao et al. 2022, arXiv 2203.08679",
    ),
    "sdd": Method(
        "ce=0.1,sdd=0.9:T=4:beta=2:pool=4",
        "kd in each region of 1x1, 2x2 and 4x4 grids",
        "Wei et al. 2024, arXiv 2403.13512",
    ),
    "fitnet": Method(
        "ce=1,hint=100",
        "regression of the middle stage, trained in one phase",
        "Romero et al. 2014, arXiv 1412.6550",
    ),
    "at": Method(
        "ce=1,at=1000",
        "attention transfer, summed over the stages",
        "Zagoruyko and Komodakis 2016, arXiv 1612.03928",
    ),
    "sp": Method(
        "ce=1,sp=3000",
        "similarities between the images of a batch",
        "Tung and Mori 2019, arXiv 1907.09682",
    ),
    "rkd": Method(
        "ce=1,rkd-d=25,rkd-a=50",
        "distances and angles between the images of a batch",
        "Park et al. 2019, arXiv 1904.05068",
    ),
    "reviewkd": Method(
        "ce=1,review=1:schedule=warm",
        "all stages, each fused with the deeper ones",
        "Chen et al. 2021, arXiv 2104.09044",
    ),
    # Converted to these units, the authors' code weights normalized 2x2 maps by 2.5 to 10 and 4x4 maps by 5 to 37.5,
    # tuned for each pair of networks. For pairs of one family on CIFAR (ResNet from ResNet), maps are not normalized.
    "cat-kd": Method(
        "ce=1,cam=5:pool=2",
        "maps of all classes, pooled to 2x2 and normalized",
        "Guo et al. 2023, arXiv 2304.12777",
    ),
    "cat+kd": Method(
        "ce=0.1,kd=0.9:T=4,cam=5:pool=2",
        "maps of cat-kd and logits of kd",
        "the sum of the two",
    ),
    "e2kd": Method(
        "kd=1:T=1,cam=0.5:classes=top-1:pool=8",
        "logits and 1 - cosine of the signed maps of the teacher's class, no labels",
        "Parchami-Araghi et al. 2024, arXiv 2402.03119",
    ),
    "cam-kd": Method(
        "ce=0.1,kd=0.9:T=4,cam=1:pool=4",
        "logits and maps of all classes, pooled to 4x4 and normalized",
        "this project",
    ),
}
"""Distillation methods by name.

Example:
    >>> METHODS["kd"].terms
    'ce=0.1,kd=0.9:T=4'
"""


def resolve_method(method: str) -> str:
    """Return the loss terms of a method as a sum.

    Args:
        method: Name in ``METHODS``, or a sum of terms, which contains a ``=``.

    Returns:
        The terms of the named method, or the sum itself.

    Raises:
        InputError: If ``method`` is neither a name nor a sum.

    Example:
        >>> resolve_method("plain"), resolve_method("ce=1,at=500")
        ('ce=1', 'ce=1,at=500')
    """
    if method in METHODS:
        return METHODS[method].terms
    if "=" in method:
        return method
    raise InputError(
        f"method must be one of {', '.join(METHODS)}, or a sum of terms like {METHODS['cam-kd'].terms}, "
        f"got {method!r}. See 'camkd list methods'."
    )
