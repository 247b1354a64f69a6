"""Parse and format quantities with units."""

from __future__ import annotations

import re
from decimal import Decimal

from camkd.types import InputError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_quantity(text: str, name: str, unit: str = "") -> int:
    """``1.28M`` or ``4GB`` as a number: decimal factors k, M, G and T, then ``unit``, in any case.

    Raises ``InputError`` where ``text`` is no such quantity.

    >>> quantity("1.28M", "pictures"), quantity("4GB", "cache_budget", "B")
    (1280000, 4000000000)
    """
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*([kmgt]?){unit.lower()}?\s*", str(text).lower())
    if found is None:
        example = f"500M{unit}, 4G{unit}" if unit else "500k, 1.28M"
        raise InputError(f"{name} is {text!r}, but has to be a quantity like {example}: give such a one.")
    return round(Decimal(found[1]) * UNITS[found[2]])


def format_quantity(quantity: float, unit: str = "B") -> str:
    """A quantity for people: ``1.3 GB``."""
    for factor, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if quantity >= 0.99995 * factor:  # 999,999 is 1.0 M, not 1,000.0 k
            return f"{quantity / factor:,.1f} {prefix}{unit}"
    return f"{quantity:,.0f} {unit}"


def percent(share: float) -> str:
    """``0.8914`` as ``89.1 %``."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """``-0.032`` as ``−3.2 points``."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def count(number: float) -> str:
    """``25557032`` as ``25.6 M``."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}\N{NO-BREAK SPACE}{letter}"
    return f"{number:g}"


def seconds(number: float) -> str:
    """``3725`` as ``1 h 2 min``."""
    if number < 10:
        return f"{number:.1f}\N{NO-BREAK SPACE}s"
    hours, rest = divmod(round(number), 3600)
    parts = [(hours, "h"), (rest // 60, "min"), (0 if hours else rest % 60, "s")]
    return " ".join(f"{n}\N{NO-BREAK SPACE}{unit}" for n, unit in parts if n)
