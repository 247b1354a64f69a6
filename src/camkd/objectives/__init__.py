"""What a student learns from: weighted sums of named terms.

A term is ``term(student, teacher, labels) -> (N,)``, unreduced, with ``needs`` (which of logits, cams and features it
reads) and ``asks_teacher``. Adding one: a function and a small dataclass in ``logits.py`` or ``maps.py``, a line in
``TERMS``, a test. A method is a named sum of terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from camkd.objectives.logits import DKD, KD, CrossEntropy, StandardisedKD
from camkd.objectives.maps import CAM, Attention
from camkd.types import InputError, Prediction

__all__ = ["METHODS", "SCHEDULES", "TERMS", "Method", "Objective", "Term", "Weighted", "objective"]


class Term(Protocol):
    """A distance between student and teacher, or student and labels, one value a picture."""

    needs: ClassVar[frozenset[str]]
    asks_teacher: ClassVar[bool]

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor: ...


TERMS: dict[str, Callable[..., Term]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "lskd": StandardisedKD,
    "dkd": DKD,
    "cam": CAM,
    "at": Attention,
}

#: A term's weight over the run, as a factor at progress 0..1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "early": lambda progress: 1.0 if progress < 0.3 else 0.0,
    "decay": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class Weighted:
    """A term, its weight, and how the weight changes over the run."""

    term: Term
    weight: float = 1.0
    schedule: str = "constant"

    def weight_at(self, progress: float) -> float:
        return self.weight * SCHEDULES[self.schedule](progress)


@dataclass(frozen=True)
class Objective:
    """``loss = mean_n sum_i weight_i(progress) term_i[n]``."""

    terms: Mapping[str, Weighted]

    @property
    def needs(self) -> frozenset[str]:
        """Which parts of a ``Prediction`` the terms read."""
        return frozenset().union(*(weighted.term.needs for weighted in self.terms.values()))

    @property
    def asks_teacher(self) -> bool:
        return any(weighted.term.asks_teacher for weighted in self.terms.values())

    def __call__(
        self, student: Prediction, teacher: Prediction | None, labels: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise (a scalar) and each active term's mean, unweighted and detached."""
        loss = torch.zeros((), device=student.logits.device)
        means = {}
        for name, weighted in self.terms.items():
            weight = weighted.weight_at(progress)
            if weight > 0:
                mean = weighted.term(student, teacher, labels).mean()
                loss = loss + weight * mean
                means[name] = mean.detach()
        return loss, means


@dataclass(frozen=True)
class Method:
    """A named sum of terms, its source, and one line for the list."""

    terms: Mapping[str, Weighted]
    summary: str
    source: str


METHODS: dict[str, Method] = {
    "plain": Method({"ce": Weighted(CrossEntropy())}, "labels alone: no teacher", "-"),
    "kd": Method(
        {"ce": Weighted(CrossEntropy(), 0.1), "kd": Weighted(KD(), 0.9)},
        "the teacher's softened prediction, T = 4",
        "Hinton et al. 2015, arXiv 1503.02531",
    ),
    "lskd": Method(
        {"ce": Weighted(CrossEntropy(), 0.1), "lskd": Weighted(StandardisedKD(), 9.0)},
        "the same between standardised logits, T = 2",
        "Sun et al. 2024, arXiv 2403.01427",
    ),
    "dkd": Method(
        {"ce": Weighted(CrossEntropy()), "dkd": Weighted(DKD())},
        "label and other classes decoupled, alpha = 1, beta = 8, T = 4; no warm-up",
        "Zhao et al. 2022, arXiv 2203.08679",
    ),
    "at": Method(
        {"ce": Weighted(CrossEntropy()), "at": Weighted(Attention(), 1000.0)},
        "attention transfer on the last spatial layer",
        "Zagoruyko and Komodakis 2016, arXiv 1612.03928",
    ),
    "cat-kd": Method(
        {"ce": Weighted(CrossEntropy()), "cam": Weighted(CAM(pool=2), 5.0)},
        "all classes' maps, pooled to 2x2 and normalised",
        "Guo et al. 2023, arXiv 2304.12777",
    ),
    "cam-kd": Method(
        {"ce": Weighted(CrossEntropy(), 0.1), "kd": Weighted(KD(), 0.9), "cam": Weighted(CAM())},
        "ours: prediction and all classes' maps, pooled to 4x4 and normalised",
        "this project",
    ),
}


def objective(method: str, *, smoothing: float = 0.0, cam_schedule: str | None = None) -> Objective:
    """The objective of ``method``, with label smoothing, and with ``cam_schedule`` on its CAM term.

    Raises ``InputError`` for a method or schedule that is not in ``METHODS`` or ``SCHEDULES``, and for a schedule
    where there is no CAM term to apply it to.
    """
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}: choose one of {', '.join(METHODS)}.")
    terms = dict(METHODS[method].terms)
    terms["ce"] = Weighted(CrossEntropy(smoothing), terms["ce"].weight, terms["ce"].schedule)
    if cam_schedule is not None:
        if cam_schedule not in SCHEDULES:
            raise InputError(f"there is no schedule {cam_schedule!r}: choose one of {', '.join(SCHEDULES)}.")
        if "cam" not in terms:
            raise InputError(f"method {method!r} has no CAM term: --cam-schedule goes with cam-kd or cat-kd.")
        terms["cam"] = Weighted(terms["cam"].term, terms["cam"].weight, cam_schedule)
    return Objective(terms)
