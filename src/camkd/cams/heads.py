"""What a network's maps come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from camkd.cams.layouts import Layout

Form = Literal["exact", "gradient"]


@dataclass(frozen=True)
class Place:
    """One call of a layer: its output, or what it is given, and how that is laid out."""

    layer: nn.Module
    call: int  # which of the layer's calls in a forward pass: a rectifier may be used in several places
    layout: Layout
    before: bool = False  # what the layer is given


@dataclass(frozen=True)
class Head:
    """Where the features lie that a map is made of, and the linear layer after their average.

    Where the head is "1x1 convolution, then global average", the place is before that convolution.
    """

    place: Place
    classifier: nn.Linear | nn.Conv2d | None  # None: no linear head, so the map is gradient-based
    stages: list[Place]  # the last place at each other resolution before

    @property
    def form(self) -> Form:
        return "gradient" if self.classifier is None else "exact"
