"""The audit of a dataset: all findings, as text lines and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from camkd.audit.findings import KINDS, Entry, Finding, class_counts, find_faults, sort_findings
from camkd.audit.inventory import Inventory, open_inventory
from camkd.audit.label_errors import check_cleanlab, find_label_errors
from camkd.audit.page import write_page
from camkd.config import DataConfig
from camkd.data.dataset import SPLITS, Progress, no_progress
from camkd.types import InputError
from camkd.utils.files import check_writable
from camkd.utils.text import shorten_middle

NUM_EXAMPLES = 3
"""Number of images or groups of each kind in the summary for a terminal."""

MAX_NAME_WIDTH = 48
"""Largest number of columns of the name of an image in the summary. Longer names are cut in the middle."""


def audit(
    config: DataConfig,
    *,
    teacher: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], list[str]]:
    """Look for faults of a dataset.

    Args:
        config: The dataset, the size, fit and interpolation of its images, and its groups.
        teacher: A run or a pretrained network whose features show label errors, see `camkd.audit.label_errors`. None:
            label errors are not looked for.
        out: Folder for the page ``audit.html``. None: no page.
        device: Device of the network.
        progress: Progress callback.

    Returns:
        The result, see `to_json`, and the lines of `describe`.

    Raises:
        InputError: If the dataset cannot be listed, the network cannot be used, or the cache or ``out`` cannot be
            written.

    Example:
        >>> result, lines = audit(DataConfig("pets"))                                         # doctest: +SKIP
    """
    if out is not None:
        check_writable(out, "Choose another folder for --out.")
    if teacher is not None:
        check_cleanlab()
    with open_inventory(config, progress) as inventory:
        findings, duplicates = find_faults(inventory, progress)
        if teacher is not None:
            finding, note = find_label_errors(
                inventory, duplicates, config, teacher, device=device, with_maps=out is not None, progress=progress
            )
            inventory = replace(inventory, notes=(*inventory.notes, note))
            findings = sort_findings([*findings, *([finding] if finding else [])])
        if out is not None:
            write_page(out, inventory, findings, progress)
        return to_json(config.data, inventory, findings), describe(inventory, findings)


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse the value of ``--fail-on``.

    Args:
        text: Kinds of faults, separated by commas.

    Returns:
        The kinds.

    Raises:
        InputError: If a kind does not exist.

    Example:
        >>> parse_kinds("leakage, unreadable")
        ('leakage', 'unreadable')
    """
    kinds = tuple(part.strip() for part in text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--fail-on must be kinds of {', '.join(KINDS)}, got {kind!r}. Choose some of them.")
    return kinds


def failure(result: dict[str, Any], kinds: Collection[str]) -> str | None:
    """Describe the faults of some kinds in one sentence, or return None if there are none.

    Args:
        result: Result of `audit`.
        kinds: Kinds of faults.
    """
    found = [f"{kind}: {finding['summary']}" for kind, finding in result["findings"].items() if kind in kinds]
    return f"{'; '.join(found)}." if found else None


def to_json(data: str, inventory: Inventory, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the result of an audit as JSON values.

    Args:
        data: The dataset as the user gave it.
        inventory: The images.
        findings: The findings.

    Returns:
        ``data``, ``images`` (number by split), ``unreadable``, ``classes`` (readable images by class and split),
        ``sizes`` (quantiles of width and height), ``notes`` and ``findings`` by kind: ``count``, ``summary`` and
        ``groups``, each with its ``images``.
    """
    return {
        "data": data,
        "images": {split: int((inventory.splits == split).sum()) for split in SPLITS},
        "classes": class_counts(inventory),
        "sizes": _size_quantiles(inventory),
        "notes": list(inventory.notes),
        "findings": {
            finding.kind: {
                "count": finding.count,
                "summary": finding.summary,
                "groups": [
                    {**entry.facts, "images": [_image(inventory, row) for row in entry.rows]}
                    for entry in finding.entries
                ],
            }
            for finding in findings
        },
    }


def describe(inventory: Inventory, findings: Sequence[Finding]) -> list[str]:
    """Return the summary for a terminal: a line per kind of fault with a few examples, the most severe first."""
    counts = ", ".join(f"{int((inventory.splits == split).sum()):,} {split}" for split in SPLITS)
    sizes = _size_quantiles(inventory)
    size = f", median {sizes['width'][1]:,} × {sizes['height'][1]:,} pixels" if sizes else ""
    lines = [f"{inventory.name}: {len(inventory):,} images ({counts}) in {len(inventory.classes):,} classes{size}"]
    width = max((len(finding.kind) for finding in findings), default=0)
    for finding in findings:
        lines.append(f"  {finding.kind:{width}}  {finding.summary}")
        indent = " " * (width + 4)
        for entry in finding.entries[:NUM_EXAMPLES]:
            lines += [f"{indent}{line}" for line in _describe_entry(inventory, entry)]
        if len(finding.entries) > NUM_EXAMPLES:
            lines.append(f"{indent}and {len(finding.entries) - NUM_EXAMPLES:,} more")
    if not findings:
        lines.append("  no faults found")
    return lines


def _describe_entry(inventory: Inventory, entry: Entry) -> list[str]:
    """Return a line for each of the first two images, like ``train/cat/1.jpg`` and ``= test/cat/9.jpg (identical)``."""
    names = [shorten_middle(image_title(inventory, row), MAX_NAME_WIDTH) for row in entry.rows[:2]]
    more = f" and {len(entry.rows) - 2:,} more" if len(entry.rows) > 2 else ""
    lines = [names[0], *(f"= {name}" for name in names[1:])]
    lines[-1] += f"{more}: {entry.text}"
    return lines


def image_title(inventory: Inventory, row: int) -> str:
    """Return the name of an image, with its split and class unless the name shows them."""
    name = inventory.names[row]
    label = inventory.classes[inventory.labels[row]]
    folders = name.split("/")[:-1]
    split = str(inventory.splits[row])
    shown = [] if folders and folders[0].lower().startswith(split) else [split]
    return f"{name} ({', '.join(shown + ([] if label in folders else [label]))})".replace(" ()", "")


def _image(inventory: Inventory, row: int) -> dict[str, Any]:
    return {
        "name": inventory.names[row],
        "split": str(inventory.splits[row]),
        "label": inventory.classes[inventory.labels[row]],
    }


def _size_quantiles(inventory: Inventory) -> dict[str, list[int]]:
    """Return smallest, median and largest width and height; empty for a built-in dataset."""
    if not inventory.sizes:
        return {}
    pairs = np.array(list(inventory.sizes.values()))
    quantiles = np.quantile(pairs, (0, 0.5, 1), axis=0, method="nearest").astype(int)
    return {"width": quantiles[:, 0].tolist(), "height": quantiles[:, 1].tolist()}
