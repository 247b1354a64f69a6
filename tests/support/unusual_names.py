"""Names that a figure must draw as they are."""

from __future__ import annotations

UNUSUAL_NAMES = [
    "$x_1$",
    "_hidden",
    "a\\b^{c",
    "très long " * 9,
    "日本の猫",
    "<script>&\"'",
    "tab\tand\nline",
    "100%",
    "🦉",
]
"""Class names with markup, control characters, other scripts and great length."""
