"""Weighted sum of loss terms, and its text form ``ce=0.1,kd=0.9:T=4,cam=1:pool=4:schedule=early``.

Terms are separated by ``,`` or ``+``. A term is ``name=weight``, followed by its settings, each ``:setting=value``.
``T`` is short for ``temperature``. Every term has the setting ``schedule``, which scales its weight over the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.config import FRACTION, POSITIVE
from camkd.data.dataset import UNLABELED
from camkd.distill.losses.logits import AdjustedCrossEntropy, CrossEntropy
from camkd.distill.losses.registry import TERMS, NeedsAdapter, Term
from camkd.distill.methods import resolve_method
from camkd.types import InputError, Prediction

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "early": lambda progress: 1.0 if progress < 0.3 else 0.0,
    "decay": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "ramp": lambda progress: min(1.0, progress / 0.3),
    "warm": lambda progress: min(1.0, 12 * progress),
}
"""Factor of a term's weight by the completed fraction of the run in 0..1.

``constant``: 1. ``early``: 1 for the first 30 % of the run, then 0. ``decay``: half a cosine from 1 to 0.
``ramp``: linear from 0 to 1 over the first 30 %. ``warm``: linear from 0 to 1 over the first twelfth.
"""

RANGES = {"temperature": POSITIVE, "label_smoothing": FRACTION}
"""Valid ranges of settings. Every other number must be 0 or more, and every whole number 1 or more."""

ALIASES = {"T": "temperature"}
"""Full names of abbreviated settings."""

ROUNDING = 1e-5
"""Difference from 1 of a sum of class probabilities that is due to rounding."""

TERM_SEPARATOR = re.compile(r",|\+(?=\s*[a-z])")  # the + of 1e+2 is not a separator


@dataclass(frozen=True)
class WeightedTerm:
    """A loss term with its weight.

    Args:
        term: The loss term.
        weight: Weight of the term, 0 or more.
        schedule: Name in ``SCHEDULES``.
    """

    term: Term
    weight: float = 1.0
    schedule: str = "constant"

    def weight_at(self, progress: float) -> float:
        """Return the weight of the term at a step of the training.

        Args:
            progress: Completed fraction of the training steps, in 0..1.

        Returns:
            The weight.

        Example:
            >>> WeightedTerm(CrossEntropy(), weight=2.0, schedule="ramp").weight_at(0.15)
            1.0
        """
        return self.weight * SCHEDULES[self.schedule](progress)


@dataclass(frozen=True)
class Objective:
    """Training objective: the weighted sum of loss terms, averaged over the batch.

        loss = mean_n sum_i weight[i](progress) * term[i][n]

    With weights of the images, the mean of the cross-entropy is weighted, and that of all other terms is not. The
    cross-entropy leaves out images without a label, whose weight is 0. For the other terms, the label of such an image
    is the class that the teacher predicts.

    Args:
        terms: Weighted terms by name, in which a second ``cam`` term is ``cam 2``.

    Example:
        >>> objective = parse_objective("ce=0.1,kd=0.9:T=4")
        >>> student, teacher = Prediction(torch.zeros(1, 2)), Prediction(torch.zeros(1, 2))
        >>> loss, means = objective(student, teacher, torch.tensor([0]), progress=0.5)
        >>> loss, means
        (tensor(0.0693), {'ce': tensor(0.6931), 'kd': tensor(0.)})
    """

    terms: Mapping[str, WeightedTerm]

    @property
    def needs(self) -> frozenset[str]:
        """Fields of a `Prediction` that the terms read: ``logits``, ``cams``, ``features``."""
        return frozenset().union(*(weighted.term.needs for weighted in self.terms.values()))

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the teacher's prediction."""
        return any(weighted.term.needs_teacher for weighted in self.terms.values())

    @property
    def needs_adapters(self) -> bool:
        """Whether a term has trainable weights that are not built yet. See `build_adapters`."""
        return any(isinstance(weighted.term, NeedsAdapter) for weighted in self.terms.values())

    @property
    def needs_other_images(self) -> bool:
        """Whether a term has ``control=shuffled``, which needs a batch of 2 images or more."""
        return any(getattr(weighted.term, "control", "none") == "shuffled" for weighted in self.terms.values())

    def build_adapters(self, student: Prediction, teacher: Prediction) -> Objective:
        """Build the trainable weights of the terms, drawn from the global random generator.

        Args:
            student: Prediction of the student for any images. Only its shapes are used.
            teacher: Prediction of the teacher for the same images. Only its shapes are used.

        Returns:
            A copy of the objective in which every term can be computed.
        """
        terms = {}
        for name, weighted in self.terms.items():
            if isinstance(weighted.term, NeedsAdapter):
                weighted = replace(weighted, term=weighted.term.build_adapter(student, teacher))
            terms[name] = weighted
        return Objective(terms)

    @property
    def has_cross_entropy(self) -> bool:
        """Whether a term is the cross-entropy with the labels."""
        return any(isinstance(weighted.term, CrossEntropy) for weighted in self.terms.values())

    def adjust_logits(self, log_prior: Tensor) -> Objective:
        """Return a copy in which the cross-entropy has logit adjustment; distillation terms are unchanged.

        Args:
            log_prior: Result of `camkd.distill.losses.logits.log_prior`, ``(K,)``.
        """
        terms = {}
        for name, weighted in self.terms.items():
            if isinstance(weighted.term, CrossEntropy):
                term = AdjustedCrossEntropy(weighted.term.label_smoothing, log_prior=log_prior)
                weighted = replace(weighted, term=term)
            terms[name] = weighted
        return Objective(terms)

    def modules(self) -> nn.ModuleList:
        """Return the built terms with trainable weights."""
        return nn.ModuleList(weighted.term for weighted in self.terms.values() if isinstance(weighted.term, nn.Module))

    def __call__(
        self,
        student: Prediction,
        teacher: Prediction | None,
        labels: Tensor,
        progress: float,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            student: Prediction of the student for ``N`` images.
            teacher: Prediction of the teacher for the same images, or None if ``needs_teacher`` is False.
            labels: Class indices ``(N,)``, or class probabilities ``(N, K)`` of mixed images, as in
                `camkd.data.views.Batch.labels`. Images without a label must have weights and a teacher.
            progress: Completed fraction of the run in 0..1, for the schedules.
            weights: Weights of the images in the cross-entropy, `camkd.data.views.Batch.weights`. None: all count
                equally.

        Returns:
            The loss to minimize, a scalar, and the mean of each term, unweighted and detached. A term whose weight is
            0 at this progress is not computed and has no mean.

        Raises:
            InputError: If the numbers of images or classes of student, teacher and labels differ.
        """
        _check_shapes(student, teacher, labels)
        if weights is not None and teacher is not None:
            labels = _complete_labels(labels, teacher)
        loss = torch.zeros((), device=student.logits.device)
        means = {}
        for name, weighted in self.terms.items():
            weight = weighted.weight_at(progress)
            if weight > 0:
                if weights is not None and isinstance(weighted.term, CrossEntropy):
                    mean = _weighted_mean(weighted.term, student, labels, weights)
                else:
                    mean = weighted.term(student, teacher, labels).mean()
                loss = loss + weight * mean
                means[name] = mean.detach()
        return loss, means


def _complete_labels(labels: Tensor, teacher: Prediction) -> Tensor:
    """Replace the label of an unlabeled image, or its part of a mixed label, by the class that the teacher predicts."""
    predicted = teacher.logits.argmax(1)
    if labels.ndim == 1:
        return torch.where(labels == UNLABELED, predicted, labels)
    missing = 1 - labels.sum(1, keepdim=True)
    missing = torch.where(missing > ROUNDING, missing, 0.0)
    return labels + missing * F.one_hot(predicted, labels.shape[1])


def _weighted_mean(term: CrossEntropy, student: Prediction, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute ``sum_n w[n] ce[n] / sum_n w[n]``, 0 if all weights are 0."""
    if weights.ndim == 2:  # parts of mixed images, each with its own weight
        total = weights.sum(1)
        labels = weights / total.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        weights = total
    losses = term(student, None, labels)
    return (weights * losses).sum() / weights.sum().clamp_min(torch.finfo(torch.float32).tiny)


def _check_shapes(student: Prediction, teacher: Prediction | None, labels: Tensor) -> None:
    """Check that student, teacher and labels have the same numbers of images and classes. Only shapes are read."""
    shape = tuple(student.logits.shape)
    if teacher is not None and tuple(teacher.logits.shape) != shape:
        raise InputError(
            f"student and teacher must have logits of the same images and classes, got {shape} and "
            f"{tuple(teacher.logits.shape)}. Build the student with the classes of the teacher."
        )
    if tuple(labels.shape) not in (shape[:1], shape):
        raise InputError(
            f"labels must be class indices {shape[:1]} or probabilities {shape}, as the logits of the student have "
            f"this shape, got {tuple(labels.shape)}. Build the student with the classes of the data."
        )


def parse_objective(method: str, *, label_smoothing: float = 0.0) -> Objective:
    """Parse the name of a method or a sum of terms.

    Args:
        method: Name in ``METHODS``, or a sum of terms such as ``ce=1,kd=2:T=3``.
        label_smoothing: Label smoothing of ``ce`` terms without the setting ``label_smoothing``.

    Returns:
        The objective.

    Raises:
        InputError: If a method, term, setting or value is invalid, or all weights are 0 in a part of the run. The
            message names the value and the valid choices.

    Example:
        >>> parse_objective("ce=1,kd=2:T=3").terms["kd"]
        WeightedTerm(term=KD(temperature=3.0), weight=2.0, schedule='constant')
    """
    terms: dict[str, WeightedTerm] = {}
    for text in TERM_SEPARATOR.split(resolve_method(method)):
        kind, weighted = _parse_term(text.strip(), label_smoothing)
        name = kind
        number = 2
        while name in terms:
            name = f"{kind} {number}"
            number += 1
        terms[name] = weighted
    for progress in (0.0, 0.29, 0.3, 0.99):
        if not any(weighted.weight_at(progress) for weighted in terms.values()):
            raise InputError(
                f"objective must have a weight above 0 in every part of the run, got {method!r}. Add a term with a "
                "constant or decay schedule, or combine early and ramp."
            )
    return Objective(terms)


def format_objective(objective: Objective, *, label_smoothing: float = 0.0) -> str:
    """Format an objective as a sum of terms that `parse_objective` parses to an equal objective.

    Settings with their default value are left out. The order of the terms is kept.

    Args:
        objective: The objective, before `Objective.build_adapters`.
        label_smoothing: The ``label_smoothing`` of the call of `parse_objective`.

    Returns:
        The sum of terms, separated by ``+``.

    Example:
        >>> format_objective(parse_objective("ce=1, kd=2:T=4:schedule=early"))
        'ce=1+kd=2:schedule=early'
    """
    return "+".join(
        _format_term(name.partition(" ")[0], weighted, label_smoothing) for name, weighted in objective.terms.items()
    )


def _format_term(kind: str, weighted: WeightedTerm, label_smoothing: float) -> str:
    short_names = {name: alias for alias, name in ALIASES.items()}
    default = TERMS[kind](**_default_settings(kind, label_smoothing))
    parts = [f"{kind}={_format_number(weighted.weight)}"]
    for setting in _setting_types(TERMS[kind]):
        value = getattr(weighted.term, setting)
        if value != getattr(default, setting):
            text = _format_number(value) if isinstance(value, float) else str(value)
            parts.append(f"{short_names.get(setting, setting)}={text}")
    if weighted.schedule != "constant":
        parts.append(f"schedule={weighted.schedule}")
    return ":".join(parts)


def _default_settings(kind: str, label_smoothing: float) -> dict[str, Any]:
    """Return default settings that depend on the run: the label smoothing of ``ce``, and nothing for other terms."""
    return {"label_smoothing": label_smoothing} if TERMS[kind] is CrossEntropy else {}


def _format_number(value: float) -> str:
    """Format a number as the shorter of ``%g`` and ``repr`` that parses to the same value."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _parse_term(text: str, label_smoothing: float) -> tuple[str, WeightedTerm]:
    """Parse ``name=weight:setting=value:...``; return the name and the term."""
    head, *assignments = text.split(":")
    kind, equals, weight = (part.strip() for part in head.partition("="))
    if kind not in TERMS:
        raise InputError(f"term must be one of {', '.join(TERMS)}, got {kind!r} in {text!r}. Choose one of them.")
    if not equals:
        raise InputError(f"term must have a weight, got {text!r}. Write {kind}=1.")
    types = _setting_types(TERMS[kind])
    settings = _default_settings(kind, label_smoothing)
    schedule = "constant"
    assigned = set()
    for assignment in assignments:
        setting, _, value = (part.strip() for part in assignment.partition("="))
        setting = ALIASES.get(setting, setting)
        if setting in assigned:
            raise InputError(f"{setting} must be set once, got several values in {text!r}. Keep one.")
        assigned.add(setting)
        if setting == "schedule":
            schedule = _parse_value(setting, Literal[tuple(SCHEDULES)], value, text)
        elif setting in types:
            settings[setting] = _parse_value(setting, types[setting], value, text)
        else:
            choices = ", ".join([*types, "schedule"])
            raise InputError(
                f"setting of {kind} must be one of {choices}, got {setting!r} in {text!r}. Choose one of them."
            )
    term = TERMS[kind](**settings)
    return kind, WeightedTerm(term, _parse_value("weight", float, weight, text), schedule)


def _setting_types(factory: Callable[..., Term]) -> dict[str, Any]:
    """Return the settings of a term, the fields of its dataclass, with their types."""
    hints = get_type_hints(factory)
    return {field.name: hints[field.name] for field in fields(factory)}  # type: ignore[arg-type]


def _parse_value(setting: str, value_type: Any, value: str, text: str) -> Any:
    """Parse the value of a setting: an int, a float or a choice of a ``Literal``. ``text`` is the term, for errors."""
    if get_origin(value_type) is Literal:
        if value not in get_args(value_type):
            choices = ", ".join(get_args(value_type))
            raise InputError(f"{setting} must be one of {choices}, got {value!r} in {text!r}. Choose one of them.")
        return value
    try:
        number = value_type(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (value_type is int and number < 1):
        rule = "a whole number of 1 or more" if value_type is int else "a number of 0 or more"
        raise InputError(f"{setting} must be {rule}, got {value!r} in {text!r}. Choose another value.")
    if setting in RANGES:
        rule, is_valid = RANGES[setting]
        if not is_valid(number):
            raise InputError(f"{setting} must be {rule}, got {value!r} in {text!r}. Choose another value.")
    return number
