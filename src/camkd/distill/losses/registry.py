"""Registry of loss terms by name.

To add a term, write a frozen dataclass in a module of this package, and add a line to ``TERMS`` and a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from camkd.distill.losses.features import Attention, Hint, RelationalAngle, RelationalDistance, Review, Similarity
from camkd.distill.losses.logits import DKD, KD, CrossEntropy, StandardizedKD
from camkd.distill.losses.maps import CAM, SDD
from camkd.types import Prediction


class Term(Protocol):
    """Loss term: a distance between student and teacher, or between student and labels.

    Attributes:
        needs: Fields of a `Prediction` that the term reads: ``logits``, ``cams``, ``features``.
        needs_teacher: Whether the term reads the teacher's prediction.
    """

    needs: ClassVar[frozenset[str]]
    needs_teacher: ClassVar[bool]

    def __call__(self, student: Prediction, teacher: Prediction | None, labels: Tensor) -> Tensor:
        """Compute the loss per image.

        Args:
            student: Prediction of the student for ``N`` images.
            teacher: Prediction of the teacher for the same images, or None if ``needs_teacher`` is False. It receives
                no gradient.
            labels: Class indices ``(N,)``, or class probabilities ``(N, K)`` of mixed images.

        Returns:
            Unreduced loss ``(N,)``. The mean over the batch is the loss of the paper. A value may depend on the other
            images of the batch.
        """
        ...


@runtime_checkable
class NeedsAdapter(Protocol):
    """Loss term whose trainable weights are not built yet.

    The weights of the built term are trained together with the student and discarded at the end.

    Example:
        >>> import torch
        >>> student = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 16, 8, 8),))
        >>> teacher = Prediction(torch.zeros(2, 10), features=(torch.randn(2, 64, 4, 4),))
        >>> isinstance(Hint(), NeedsAdapter), isinstance(KD(), NeedsAdapter)
        (True, False)
        >>> Hint().build_adapter(student, teacher)
        Regressor(
          (regressor): Conv2d(16, 64, kernel_size=(1, 1), stride=(1, 1))
        )
    """

    def build_adapter(self, student: Prediction, teacher: Prediction) -> Term:
        """Create the term as a new ``nn.Module``, with weights drawn from the global random generator.

        Args:
            student: Prediction of the student for any images. Only its shapes are used.
            teacher: Prediction of the teacher for the same images. Only its shapes are used.

        Returns:
            The term with trainable weights.
        """
        ...


TERMS: dict[str, Callable[..., Term]] = {
    "ce": CrossEntropy,
    "kd": KD,
    "lskd": StandardizedKD,
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
"""Loss terms by the name in ``--method`` and ``--terms``, as frozen dataclasses whose fields are the settings.

Example:
    >>> TERMS["kd"](temperature=2.0)
    KD(temperature=2.0)
"""
