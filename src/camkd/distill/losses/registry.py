"""The terms by name. Adding one: a function and a small dataclass beside its like, a line here, a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from camkd.distill.losses.features import Attention, Hint, RelationalAngle, RelationalDistance, Review, Similarity
from camkd.distill.losses.logits import DKD, KD, CrossEntropy, StandardisedKD
from camkd.distill.losses.maps import CAM, SDD
from camkd.types import Prediction


class Term(Protocol):
    """A distance between student and teacher, or student and labels, one value a picture.

    ``needs`` says which parts of a ``Prediction`` it reads. A value may depend on the other pictures of the batch; the
    mean over the batch is what a paper states.
    """

    needs: ClassVar[frozenset[str]]
    needs_teacher: ClassVar[bool]

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor: ...


@runtime_checkable
class NeedsAdapter(Protocol):
    """A term with weights of its own, which are learnt beside the student's and thrown away at the end."""

    def connect(self, student: Prediction, teacher: Prediction) -> Term:
        """The term, a fresh ``nn.Module``, for two networks that answer with the shapes of ``student`` and ``teacher``.

        Its weights are drawn from the global random state.
        """
        ...


TERMS: dict[str, Callable[..., Term]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "lskd": StandardisedKD,
    "dkd": DKD,
    "cam": CAM,
    "sdd": SDD,
    "at": Attention,
    "hint": Hint,
    "sp": Similarity,
    "rkd-d": RelationalDistance,
    "rkd-a": RelationalAngle,
    "review": Review,
}
