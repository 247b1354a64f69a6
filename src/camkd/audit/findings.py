"""The kinds of faults that an audit finds, in the order of their severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.audit.inventory import Inventory
from camkd.data.dataset import CHUNK_BYTES, SPLITS, Progress, max_rows
from camkd.data.file_names import join_first
from camkd.data.near_duplicates import DuplicateGroup, find_duplicates
from camkd.data.problems import sort_groups, summarize_blank, summarize_duplicates

KINDS = {
    "unreadable": "Unreadable images",
    "leakage": "Duplicates in several splits",
    "conflicts": "Duplicates with different labels",
    "label-errors": "Possible label errors",
    "duplicates": "Duplicates within a split",
    "blank": "Blank images",
    "few-images": "Classes with few images",
    "imbalance": "Unbalanced classes",
    "small": "Images below the input size",
    "proportions": "Long or tall images",
    "gray": "Gray and color images",
}
"""Title of each kind of fault, the most severe first."""

LEADS = {
    "unreadable": "Training stops at these files, or leaves them out with --bad-images skip. Replace or delete them.",
    "leakage": "A network is measured on images that it has seen in training, so its accuracy is too high. Keep all "
    "images of a group in one split.",
    "conflicts": "At most one of the labels is right. Correct the others.",
    "label-errors": "A network that was not trained on the image predicts another class with confidence. Look at "
    "each: many are hard images with the right label.",
    "duplicates": "Each copy counts as an image of its own: in training it has more weight, and in a test the interval "
    "of the accuracy is too narrow.",
    "blank": "These images are nearly one color. Delete them, unless empty images are a class.",
    "few-images": "A class with few images is hardly learned, and its accuracy is not known. Collect more images.",
    "imbalance": "Accuracy is mostly that of the large classes. Look at the balanced accuracy.",
    "small": "The shorter side has fewer pixels than the input of the network, so these images are enlarged.",
    "proportions": "Of these images, --fit crop uses less than a third. Use --fit pad, or crop them to the object.",
    "gray": "Some images are gray and others are in color. If the classes differ in this, a network learns it "
    "instead of the object.",
}
"""Meaning of each kind of fault, and what to do about it."""

MIN_TRAIN_IMAGES = 20
"""Number of training images below which a class is listed as one with few images."""

MAX_IMBALANCE = 10.0
"""Ratio of the training images of the largest and the smallest class above which classes are unbalanced."""

MAX_RATIO = 3.0
"""Ratio of the longer and the shorter side above which an image is listed."""

MAX_CHROMA = 2.0
"""Mean difference of the color channels, of 0 to 255, below which an image is gray."""


@dataclass(frozen=True)
class Entry:
    """Images that a finding shows together: one image, or a group of duplicates.

    Args:
        rows: Rows of the images.
        text: What was found, in a few words.
        facts: The same as values for JSON.
        maps: Pictures that are shown beside the images, with their captions: class activation maps.
    """

    rows: tuple[int, ...]
    text: str
    facts: dict[str, Any]
    maps: tuple[tuple[str, NDArray[np.uint8]], ...] = ()


@dataclass(frozen=True)
class Finding:
    """All faults of one kind.

    Args:
        kind: A key of `KINDS`.
        count: Number that the summary states: of images, or of classes.
        summary: One line for the terminal.
        entries: The images, the clearest fault first. Empty for faults of classes.
    """

    kind: str
    count: int
    summary: str
    entries: tuple[Entry, ...] = ()


def find_faults(inventory: Inventory, progress: Progress) -> tuple[list[Finding], list[DuplicateGroup]]:
    """Find all faults that need no network.

    Args:
        inventory: The images.
        progress: Progress callback.

    Returns:
        A finding for each kind of fault that exists, the most severe first, and all groups of duplicates.
    """
    readable = inventory.is_readable
    groups, is_blank = find_duplicates(*inventory.parts, skip=~readable, progress=progress)
    findings = [
        _unreadable(inventory),
        *_duplicates(inventory, groups),
        _blank(np.flatnonzero(is_blank & readable)),
        _few_images(inventory),
        _imbalance(inventory),
        _small(inventory),
        _proportions(inventory),
        _gray(inventory, readable & ~is_blank),
    ]
    return sort_findings([finding for finding in findings if finding is not None]), groups


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by severity."""
    order = list(KINDS)
    return sorted(findings, key=lambda finding: order.index(finding.kind))


def class_counts(inventory: Inventory) -> dict[str, dict[str, int]]:
    """Count the readable images of each class in each split."""
    readable = inventory.is_readable
    counts = {}
    for label, name in enumerate(inventory.classes):
        of_class = readable & (inventory.labels == label)
        counts[name] = {split: int((of_class & (inventory.splits == split)).sum()) for split in SPLITS}
    return counts


def _blank(rows: NDArray[np.int64]) -> Finding | None:
    if not len(rows):
        return None
    entries = tuple(Entry((row,), "blank", {}) for row in rows.tolist())
    return Finding("blank", len(rows), summarize_blank(len(rows)), entries)


def _unreadable(inventory: Inventory) -> Finding | None:
    if not inventory.errors:
        return None
    entries = tuple(Entry((row,), reason, {"reason": reason}) for row, reason in inventory.errors.items())
    count = len(entries)
    return Finding("unreadable", count, f"{count:,} image{_s(count)} cannot be read", entries)


def _duplicates(inventory: Inventory, groups: Sequence[DuplicateGroup]) -> list[Finding]:
    problems = sort_groups(groups, inventory.splits, inventory.labels)
    by_kind = {"leakage": problems.leakage, "conflicts": problems.conflicts, "duplicates": problems.repeated}
    return [
        Finding(kind, count, summary, _group_entries(inventory, by_kind[kind]))
        for kind, (count, summary) in summarize_duplicates(problems, inventory.splits).items()
    ]


def _group_entries(inventory: Inventory, groups: Sequence[DuplicateGroup]) -> tuple[Entry, ...]:
    """Return the groups, the most similar first."""
    entries = []
    for group in sorted(groups, key=lambda group: (not group.is_exact, -group.similarity, group.rows)):
        text = "identical" if group.is_exact else f"similarity {_floor(group.similarity):.3f}"
        facts = {"exact": group.is_exact, "similarity": round(group.similarity, 4)}
        entries.append(Entry(group.rows, text, facts))
    return tuple(entries)


def _floor(similarity: float) -> float:
    """Round down to three digits, so that only identical images reach 1."""
    return min(int(similarity * 1000) / 1000, 0.999)


def _few_images(inventory: Inventory) -> Finding | None:
    counts = class_counts(inventory)
    if not any(row["train"] for row in counts.values()):
        return None  # a test set without training images
    few = sorted((row["train"], name) for name, row in counts.items() if row["train"] < MIN_TRAIN_IMAGES)
    if not few:
        return None
    named = join_first([f"{name} {count:,}" for count, name in few])
    noun = "class has" if len(few) == 1 else "classes have"
    summary = f"{len(few):,} {noun} fewer than {MIN_TRAIN_IMAGES} training images: {named}"
    return Finding("few-images", len(few), summary)


def _imbalance(inventory: Inventory) -> Finding | None:
    counts = {name: row["train"] for name, row in class_counts(inventory).items() if row["train"]}
    if not counts:
        return None
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    ratio = counts[largest] / counts[smallest]
    if ratio <= MAX_IMBALANCE:
        return None
    summary = f"{largest} has {ratio:.3g} times as many training images as {smallest} ({counts[largest]:,} and "
    summary += f"{counts[smallest]:,})"
    return Finding("imbalance", len(counts), summary)


def _small(inventory: Inventory) -> Finding | None:
    rows = sorted((min(pair), row) for row, pair in inventory.sizes.items() if min(pair) < inventory.size)
    if not rows:
        return None
    count = len(rows)
    summary = (
        f"{count:,} image{_s(count)} {'have' if count > 1 else 'has'} a side below the {inventory.size} pixels of the "
    )
    summary += "input"
    return Finding("small", count, summary, tuple(_size_entry(inventory, row) for _, row in rows))


def _proportions(inventory: Inventory) -> Finding | None:
    ratios = {row: max(pair) / min(pair) for row, pair in inventory.sizes.items()}
    rows = sorted((row for row, ratio in ratios.items() if ratio > MAX_RATIO), key=lambda row: -ratios[row])
    if not rows:
        return None
    count = len(rows)
    summary = f"{count:,} image{_s(count)} {_are(count)} longer than {MAX_RATIO:g} times the shorter side"
    return Finding("proportions", count, summary, tuple(_size_entry(inventory, row) for row in rows))


def _size_entry(inventory: Inventory, row: int) -> Entry:
    width, height = inventory.sizes[row]
    return Entry((row,), f"{width} × {height} pixels", {"width": width, "height": height})


def _gray(inventory: Inventory, candidates: NDArray[np.bool_]) -> Finding | None:
    """Find gray images among color images, or color images among gray images: the rarer kind."""
    is_gray = np.zeros(len(inventory), np.bool_)
    done = 0
    for part in inventory.parts:
        step = max_rows(CHUNK_BYTES, part)
        for start in range(0, len(part), step):
            images = part[start : start + step].astype(np.int16)
            chroma = (images.max(3) - images.min(3)).mean((1, 2))
            is_gray[done : done + len(images)] = chroma < MAX_CHROMA
            done += len(images)
    gray, color = np.flatnonzero(is_gray & candidates), np.flatnonzero(~is_gray & candidates)
    if not len(gray) or not len(color):
        return None
    rows = min(gray, color, key=len)
    noun = "gray" if rows is gray else "color"
    classes, counts = np.unique(inventory.labels[rows], return_counts=True)
    most = inventory.classes[int(classes[counts.argmax()])]
    total = len(gray) + len(color)
    summary = f"{len(rows):,} of {total:,} images {_are(len(rows))} {noun}"
    if 1 < counts.max() > len(rows) / 2:
        summary += f", {int(counts.max()):,} of them in {most}"
    return Finding("gray", len(rows), summary, tuple(Entry((row,), noun, {}) for row in rows.tolist()))


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
