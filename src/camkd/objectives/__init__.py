"""What a student learns from: weighted sums of named terms.

A term is ``term(student, teacher, labels) -> (N,)``, unreduced, with ``needs`` (which of logits, cams and features it
reads) and ``asks_teacher``; one with weights of its own is made by ``Objective.connected``. The methods that are named
sums of them: ``camkd.methods``.
"""

from camkd.objectives.sums import SCHEDULES, Objective, Weighted, objective, spelled
from camkd.objectives.terms import TERMS, Term

__all__ = ["SCHEDULES", "TERMS", "Objective", "Term", "Weighted", "objective", "spelled"]
