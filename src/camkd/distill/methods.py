"""The methods by name: each a sum of terms, as ``--method`` and ``--terms`` take it. Imports no torch.

Adding one: a line in ``METHODS``. What a sum may hold: ``camkd.distill.objective``.
"""

from __future__ import annotations

from dataclasses import dataclass

from camkd.types import InputError


@dataclass(frozen=True)
class Method:
    """A named sum of terms, one line for the list, and its source."""

    terms: str
    summary: str
    source: str


METHODS: dict[str, Method] = {
    "plain": Method("ce=1", "labels alone: no teacher", "-"),
    "kd": Method(
        "ce=0.1,kd=0.9:T=4",
        "the teacher's softened prediction",
        "Hinton et al. 2015, arXiv 1503.02531",
    ),
    "lskd": Method(
        "ce=0.1,lskd=9:T=2",
        "the same between standardised logits",
        "Sun et al. 2024, arXiv 2403.01427",
    ),
    "dkd": Method(
        "ce=1,dkd=1:alpha=1:beta=8:T=4:schedule=warm",
        "label and other classes decoupled",
        "Zhao et al. 2022, arXiv 2203.08679",
    ),
    "sdd": Method(
        "ce=0.1,sdd=0.9:T=4:beta=2:pool=4",
        "kd in each region of 1x1, 2x2 and 4x4 grids",
        "Wei et al. 2024, arXiv 2403.13512",
    ),
    "fitnet": Method(
        "ce=1,hint=100",
        "the middle stage, regressed; learnt in one go",
        "Romero et al. 2014, arXiv 1412.6550",
    ),
    "at": Method(
        "ce=1,at=1000",
        "attention transfer, summed over the stages",
        "Zagoruyko and Komodakis 2016, arXiv 1612.03928",
    ),
    "sp": Method(
        "ce=1,sp=3000",
        "which pictures of a batch resemble each other",
        "Tung and Mori 2019, arXiv 1907.09682",
    ),
    "rkd": Method(
        "ce=1,rkd-d=25,rkd-a=50",
        "distances and angles between the pictures of a batch",
        "Park et al. 2019, arXiv 1904.05068",
    ),
    "reviewkd": Method(
        "ce=1,review=1:schedule=warm",
        "all stages, each fused with the deeper ones",
        "Chen et al. 2021, arXiv 2104.09044",
    ),
    # In these units the authors' programs weigh normalised 2x2 maps by 2.5 to 10 and 4x4 ones by 5 to 37.5, tuned for
    # each pair of networks; for pairs of one family (ResNet from ResNet) on CIFAR they leave out the normalisation.
    "cat-kd": Method(
        "ce=1,cam=5:pool=2",
        "all classes' maps, pooled to 2x2 and normalised",
        "Guo et al. 2023, arXiv 2304.12777",
    ),
    "cat+kd": Method(
        "ce=0.1,kd=0.9:T=4,cam=5:pool=2",
        "cat-kd's maps beside kd's prediction",
        "the sum of the two",
    ),
    "e2kd": Method(
        "kd=1:T=1,cam=0.5:classes=top-1:pool=8",
        "prediction and the (signed) map of the teacher's class, 1 - cosine; no labels",
        "Parchami-Araghi et al. 2024, arXiv 2402.03119",
    ),
    "cam-kd": Method(
        "ce=0.1,kd=0.9:T=4,cam=1:pool=4",
        "ours: prediction and all classes' maps, pooled to 4x4 and normalised",
        "this project",
    ),
}


def resolve_method(method: str) -> str:
    """The sum of terms that ``method`` stands for: a name's own, or a sum written out (it has a ``=``) as it is.

    Raises ``InputError`` that lists the names where there is none.

    >>> resolve_method("plain"), resolve_method("ce=1,at=500")
    ('ce=1', 'ce=1,at=500')
    """
    if method in METHODS:
        return METHODS[method].terms
    if "=" in method:
        return method
    raise InputError(
        f"there is no method {method!r}: choose one of {', '.join(METHODS)}, or write a sum of terms like "
        f"{METHODS['cam-kd'].terms}."
    )
