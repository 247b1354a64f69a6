"""Weighted sums of terms, and how to write one: ``ce=0.1,kd=0.9:T=4,cam=1:pool=4:schedule=early``.

A term is ``name=weight``, then its settings, each ``:name=value``; ``+`` separates terms as well as ``,`` does. ``T``
is the temperature; ``schedule``, which every term has, says how its weight changes over the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from camkd.config import POSITIVE, SHARE
from camkd.distill.losses.logits import CrossEntropy
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.distill.methods import resolve_method
from camkd.types import InputError, Prediction

#: A term's weight over the run, as a factor at progress 0..1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "early": lambda progress: 1.0 if progress < 0.3 else 0.0,
    "decay": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "ramp": lambda progress: min(1.0, progress / 0.3),
    "warm": lambda progress: min(1.0, 12 * progress),
}

RANGES = {"temperature": POSITIVE, "label_smoothing": SHARE}
SHORT = {"T": "temperature"}
SEPARATOR = re.compile(r",|\+(?=\s*[a-z])")  # not the plus of 1e+2


@dataclass(frozen=True)
class WeightedTerm:
    """A term, its weight, and how the weight changes over the run."""

    term: Term
    weight: float = 1.0
    schedule: str = "constant"

    def weight_at(self, progress: float) -> float:
        return self.weight * SCHEDULES[self.schedule](progress)


@dataclass(frozen=True)
class Objective:
    """``loss = mean_n sum_i weight_i(progress) term_i[n]``."""

    terms: Mapping[str, WeightedTerm]

    @property
    def needs(self) -> frozenset[str]:
        """Which parts of a ``Prediction`` the terms read."""
        return frozenset().union(*(weighted.term.needs for weighted in self.terms.values()))

    @property
    def needs_teacher(self) -> bool:
        return any(weighted.term.needs_teacher for weighted in self.terms.values())

    @property
    def has_adapters(self) -> bool:
        """Whether a term has weights of its own that are not made yet."""
        return any(isinstance(weighted.term, NeedsAdapter) for weighted in self.terms.values())

    @property
    def shuffles(self) -> bool:
        """Whether a term reads the map of another picture of the batch as a control: alone a picture has its own."""
        return any(getattr(weighted.term, "control", "none") == "shuffled" for weighted in self.terms.values())

    def build_adapters(self, student: Prediction, teacher: Prediction) -> Objective:
        """The same with the weights of its terms made, for two networks that answer with these shapes."""
        terms = {}
        for name, weighted in self.terms.items():
            term = weighted.term
            terms[name] = (
                replace(weighted, term=term.connect(student, teacher)) if isinstance(term, NeedsAdapter) else weighted
            )
        return Objective(terms)

    def modules(self) -> nn.ModuleList:
        """The terms that have weights."""
        return nn.ModuleList(weighted.term for weighted in self.terms.values() if isinstance(weighted.term, nn.Module))

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


def parse_objective(method: str, *, label_smoothing: float = 0.0) -> Objective:
    """The objective that ``method``, a name or a sum of terms, stands for, its cross-entropy smoothed.

    What is said of a term itself, ``ce=1:label_smoothing=0``, holds instead.

    Raises ``InputError`` that says what there is instead for a method, term, setting or value that there is not.

    >>> objective("ce=1,kd=2:T=3").terms["kd"]
    WeightedTerm(term=KD(temperature=3.0), weight=2.0, schedule='constant')
    """
    terms: dict[str, WeightedTerm] = {}
    for text in SEPARATOR.split(resolve_method(method)):
        name, weighted = _read(text.strip(), label_smoothing)
        number = 2
        while name in terms:  # the same term with other settings
            name, number = f"{name.partition(' ')[0]} {number}", number + 1
        terms[name] = weighted
    if not all(any(weighted.weight_at(progress) for weighted in terms.values()) for progress in (0.0, 0.29, 0.3, 0.99)):
        raise InputError(
            f"nothing is learnt in a part of the run from {method!r}: give a term a weight above 0 that is not only "
            "early or a ramp."
        )
    return Objective(terms)


def format_objective(goal: Objective, *, label_smoothing: float = 0.0) -> str:
    """The sum that stands for an objective, without what goes without saying: equal objectives, equal text.

    `objective` reads it so with the same ``label_smoothing``.

    >>> spelled(objective("ce=1, kd=2:T=4:schedule=early"))
    'ce=1+kd=2:schedule=early'
    """
    return "+".join(
        _written(name.partition(" ")[0], weighted, label_smoothing) for name, weighted in goal.terms.items()
    )


def _written(name: str, weighted: WeightedTerm, label_smoothing: float) -> str:
    short = {long: word for word, long in SHORT.items()}
    default, parts = TERMS[name](**_usual(name, label_smoothing)), [f"{name}={_shortly(weighted.weight)}"]
    for key in _settings_of(TERMS[name]):
        value = getattr(weighted.term, key)
        if value != getattr(default, key):
            parts.append(f"{short.get(key, key)}={_shortly(value) if isinstance(value, float) else value}")
    if weighted.schedule != "constant":
        parts.append(f"schedule={weighted.schedule}")
    return ":".join(parts)


def _usual(name: str, label_smoothing: float) -> dict[str, Any]:
    """What a term is made with where nothing is said of it."""
    return {"label_smoothing": label_smoothing} if TERMS[name] is CrossEntropy else {}


def _shortly(value: float) -> str:
    """The shortest text that is read as ``value`` again."""
    return short if float(short := f"{value:g}") == value else repr(value)


def _read(text: str, label_smoothing: float) -> tuple[str, WeightedTerm]:
    """One term: its name, and what was said of it."""
    head, *settings = text.split(":")
    name, is_weighted, weight = (part.strip() for part in head.partition("="))
    if name not in TERMS:
        raise InputError(f"there is no term {name!r} in {text!r}: choose one of {', '.join(TERMS)}.")
    if not is_weighted:
        raise InputError(f"the term {text!r} has no weight: write {name}=1.")
    make, said, schedule = TERMS[name], _usual(name, label_smoothing), "constant"
    choices, given = _settings_of(make), set()
    for setting in settings:
        key, _, value = (part.strip() for part in setting.partition("="))
        key = SHORT.get(key, key)
        if key in given:
            raise InputError(f"{key} is said twice in {text!r}: say it once.")
        given.add(key)
        if key == "schedule":
            schedule = _value(Literal[tuple(SCHEDULES)], value, text)
        elif key in choices:
            said[key] = _value(choices[key], value, text)
            if key in RANGES and not RANGES[key][1](said[key]):
                raise InputError(f"{key} in {text!r} has to be {RANGES[key][0]}: give such a number.")
        else:
            raise InputError(
                f"{name} has no setting {key!r} in {text!r}: choose from {', '.join([*choices, 'schedule'])}."
            )
    return name, WeightedTerm(make(**said), _value(float, weight, text), schedule)


def _settings_of(make: Callable[..., Term]) -> dict[str, Any]:
    hints = get_type_hints(make)
    return {field.name: hints[field.name] for field in fields(make)}  # type: ignore[arg-type]


def _value(kind: Any, text: str, where: str) -> Any:
    """``text`` as a number or as one of the words of a ``Literal``."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise InputError(f"{text!r} in {where!r} is none of {', '.join(get_args(kind))}: choose one of them.")
        return text
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (kind is int and value < 1):
        least = "a whole number of 1 or more" if kind is int else "a number of 0 or more"
        raise InputError(f"{text!r} in {where!r} has to be {least}: give such a number.")
    return value
