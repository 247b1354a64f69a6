"""Parse and format numbers with units."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from typing import Any

from camkd.types import InputError

PREFIX_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
"""Factor of each prefix that `parse_quantity` accepts, in lower case."""


def parse_quantity(text: str, name: str, unit: str = "") -> int:
    """Parse a quantity such as ``1.28M`` or ``4GB``.

    Args:
        text: A decimal number, an optional prefix k, M, G or T (powers of 1000), and the optional ``unit``.
            Case-insensitive.
        name: Name of the setting, for the error message.
        unit: Unit that may follow the prefix, for example ``"B"``.

    Returns:
        The quantity, rounded to an integer.

    Raises:
        InputError: If ``text`` is not a quantity.

    Example:
        >>> parse_quantity("1.28M", "images"), parse_quantity("4GB", "cache_budget", "B")
        (1280000, 4000000000)
    """
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*([kmgt]?){unit.lower()}?\s*", str(text).lower())
    if match is None:
        examples = f"500M{unit} or 4G{unit}" if unit else "500k or 1.28M"
        raise InputError(f"{name} must be a quantity, got {text!r}. Write it like {examples}.")
    return round(Decimal(match[1]) * PREFIX_FACTORS[match[2]])


def finite_number(value: Any) -> float | None:
    """Return a finite int or float as a float, and None for any other value.

    Example:
        >>> finite_number(3), finite_number(float("nan")), finite_number("3"), finite_number(True)
        (3.0, None, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def format_quantity(quantity: float, unit: str = "B") -> str:
    """Format a quantity with its unit.

    Args:
        quantity: The quantity.
        unit: The unit.

    Returns:
        The text, with a decimal prefix and one decimal from 1000 on.

    Example:
        >>> format_quantity(1_300_000_000), format_quantity(999)
        ('1.3 GB', '999 B')
    """
    for factor, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if quantity >= 0.99995 * factor:  # 999,999 is 1.0 M, not 1,000.0 k
            return f"{quantity / factor:,.1f} {prefix}{unit}"
    return f"{quantity:,.0f} {unit}"


def format_count(number: float) -> str:
    r"""Format a count.

    Args:
        number: The count.

    Returns:
        The text, with a decimal prefix and three significant digits from 1000 on.

    Example:
        >>> format_count(25_557_032), format_count(640)
        ('25.6\xa0M', '640')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:.3g}\N{NO-BREAK SPACE}{prefix}"
    return f"{number:g}"


def format_percent(fraction: float) -> str:
    """Format a fraction in percent: ``0.8914`` as ``89.1 %``."""
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def format_points(difference: float, digits: int = 1) -> str:
    """Format a difference of fractions in percentage points, with its sign: ``-0.032`` as ``−3.2``."""
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


def format_duration(seconds: float) -> str:
    """Format a duration: ``9.5`` as ``9.5 s``, ``75`` as ``1 min 15 s``, and ``3725`` as ``1 h 2 min``."""
    if seconds < 10:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    hours, remainder = divmod(round(seconds), 3600)
    parts = [(hours, "h"), (remainder // 60, "min"), (0 if hours else remainder % 60, "s")]
    return " ".join(f"{number}\N{NO-BREAK SPACE}{unit}" for number, unit in parts if number)
