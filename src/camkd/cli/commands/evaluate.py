"""The command ``evaluate``: metrics of a trained model on test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import (
    AS_IN_TRAINING,
    DEVICE_HELP,
    TEACHER_RUN_HELP,
    Command,
    CommandFailed,
    add_bad_images_option,
    open_reporter,
)
from camkd.cli.thresholds import parse_thresholds, violations
from camkd.types import CHANCE_LEVELS, InputError
from camkd.utils.text import shorten_middle
from camkd.utils.units import format_count

if TYPE_CHECKING:
    from camkd.evaluate import Evaluation

Table = tuple[str, list[str], list[list[str]]]
"""Title, column headers and rows."""

MAX_NAME_WIDTH = 48
"""Largest number of columns of the path of an image in a table. Longer paths are cut in the middle."""

MAX_CLASSES = 20
"""Largest number of classes in the table of recalls."""

COST_KEYS = ("params", "macs")
"""Numbers that are shown with three digits, so that the table fits a terminal of 80 columns."""

CHANCE_SUFFIXES = tuple(f"_{level.suffix}" for level in CHANCE_LEVELS)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument(
        "--data",
        "--dataset",
        type=str | None,
        default=None,
        help="another dataset than that of RUN: its test split, or all images of a folder or table without splits",
    )
    add_bad_images_option(parser, None, AS_IN_TRAINING)
    parser.add_argument("--teacher", type=str | None, default=None, help=TEACHER_RUN_HELP)
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    parser.add_argument(
        "--list-disagreements",
        type=int,
        default=0,
        help="number of images to list that have the teacher's prediction, but a map no more similar to the teacher's "
        "than chance",
    )
    for flag, comparison in (("--fail-under", "below"), ("--fail-over", "above")):
        parser.add_argument(
            flag,
            type=str | None,
            default=None,
            help=f"METRIC=NUMBER,...: exit with status 1 if a metric is {comparison} its number",
        )


def _run(options: Namespace) -> dict[str, Any]:
    under, over = (
        parse_thresholds(text, flag) if text is not None else {}
        for flag, text in (("--fail-under", options.fail_under), ("--fail-over", options.fail_over))
    )
    if options.list_disagreements < 0:
        raise InputError(
            f"--list-disagreements must be 1 or more, got {options.list_disagreements}. Leave it out to list none."
        )
    from camkd.cli.tables import print_table
    from camkd.experiments.finished_runs import reevaluate

    with open_reporter() as reporter:
        evaluation = reevaluate(
            options.run,
            options.data,
            options.teacher,
            options.device,
            reporter.progress,
            reporter.message,
            options.bad_images,
        )
    result = dict(evaluation.metrics)
    failure = violations(evaluation.metrics, under, over)
    if options.list_disagreements:
        result["disagreements"] = _disagreements(evaluation, options)
    if not options.json:
        for title, columns, rows in metric_tables(options.run, evaluation.metrics):
            print_table(title, columns, rows)
        if "disagreements" in result:
            print_table(*_disagreement_table(result["disagreements"]))
    if failure:
        raise CommandFailed(failure, result)
    return result


def metric_tables(title: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Build tables of metrics with their chance levels, of recall by class, and of map similarity by outcome.

    Args:
        title: Title of the first table.
        metrics: The content of ``metrics.json``.

    Returns:
        The tables.
    """
    scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    chance_keys = {level.key(name) for level in CHANCE_LEVELS for name in scalars} & scalars.keys()
    levels = [level for level in CHANCE_LEVELS if any(level.key(name) in chance_keys for name in scalars)]
    rows = [
        [
            name,
            format_count(float(value)) if name in COST_KEYS else _format_value(value),
            *(_format_value(scalars.get(level.key(name), "")) for level in levels),
        ]
        for name, value in scalars.items()
        if name not in chance_keys
    ]
    result: list[Table] = [(title, ["metric", "value", *(level.label for level in levels)], rows)]
    if metrics.get("per_class"):
        result.append(_class_table(metrics["per_class"]))
    if "by_outcome" in metrics:
        result.append(_outcome_table(metrics["by_outcome"]))
    return result


def _class_table(per_class: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the recall of each class with its interval, lowest first. Of many classes, the lowest are shown."""
    lowest = sorted(per_class, key=lambda name: per_class[name]["recall"])[:MAX_CLASSES]
    title = "recall by class, 95 % interval (Wilson)"
    if len(per_class) > MAX_CLASSES:
        title += f", the {MAX_CLASSES} lowest of {len(per_class):,} classes"
    rows = []
    for name in lowest:
        entry = per_class[name]
        row = [name, f"{int(entry['images']):,}", *(f"{entry[key]:.3f}" for key in ("recall", "low", "high"))]
        rows.append([shorten_middle(row[0], MAX_NAME_WIDTH), *row[1:]])
    return title, ["class", "images", "recall", "from", "to"], rows


def _outcome_table(groups: Mapping[str, Mapping[str, float]]) -> Table:
    """Return map similarity for each outcome, such as images that both get right, above its highest chance level."""
    keys = [key for means in groups.values() for key in means if not key.endswith(CHANCE_SUFFIXES)]
    names = list(dict.fromkeys(keys))
    columns = ["correct", *(name.removeprefix("cam_").replace("_", " ") for name in names)]
    rows = []
    for outcome, means in groups.items():
        rows.append([outcome.replace("_", " "), *(_format_value(means.get(name, "")) for name in names)])
        levels = [[means[level.key(name)] for level in CHANCE_LEVELS if level.key(name) in means] for name in names]
        if any(levels):
            rows.append(["  by chance", *(_format_value(max(values)) if values else "" for values in levels)])
    return "map similarity by outcome", columns, rows


def _disagreements(evaluation: Evaluation, options: Namespace) -> dict[str, Any]:
    """Return the images with the teacher's prediction and a map no more similar to the teacher's than chance."""
    from camkd.evaluate import chance_level, disagreeing_maps
    from camkd.runs.loading import read_model_info

    records = evaluation.per_image
    if "cam_cosine" not in records:
        raise InputError(
            f"--list-disagreements must have a teacher, got {options.run!r} without one. Give --teacher its run, or "
            "leave the option out."
        )
    level = chance_level(evaluation.metrics)
    classes = read_model_info(options.run).classes
    rows = disagreeing_maps(records, level)
    return {
        "chance_level": level,
        "same_prediction": int((records["predicted"] == records["teacher_predicted"]).sum()),
        "count": len(rows),
        "chance_shares": _disagreement_by_chance(evaluation.metrics),
        "images": [_image_record(records, row, classes) for row in rows[: options.list_disagreements].tolist()],
    }


def _disagreement_by_chance(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the chance levels of ``cam_disagreement`` by suffix."""
    keys = {level.suffix: level.key("cam_disagreement") for level in CHANCE_LEVELS}
    return {suffix: metrics[key] for suffix, key in keys.items() if key in metrics}


def _image_record(records: Mapping[str, Any], row: int, classes: Sequence[str]) -> dict[str, Any]:
    numbers = ("confidence", "teacher_confidence", "cam_cosine", "cam_iou")
    return {
        "index": row,
        **({"name": str(records["name"][row])} if "name" in records else {}),
        **{name: classes[records[name][row]] for name in ("label", "predicted")},
        **{name: float(records[name][row]) for name in numbers},
    }


def _disagreement_table(disagreements: Mapping[str, Any]) -> Table:
    labels = {level.suffix: level.label for level in CHANCE_LEVELS}
    shares = [f"{labels[suffix]} {share:.1%}" for suffix, share in disagreements["chance_shares"].items()]
    title = (
        f"CAM disagreement: {disagreements['count']:,} of {disagreements['same_prediction']:,} images with the "
        f"teacher's prediction have a map no more similar to the teacher's than chance "
        f"({disagreements['chance_level']:.4f}); least similar first"
    )
    if shares:
        title += f". Share of such images by chance: {', '.join(shares)}"
    columns = ["image", "label", "prediction", "cosine", "IoU", "confidence", "teacher"]
    numbers = ("cam_cosine", "cam_iou", "confidence", "teacher_confidence")
    rows = [
        [
            shorten_middle(str(image.get("name", image["index"])), MAX_NAME_WIDTH),
            image["label"],
            image["predicted"],
            *(f"{image[name]:.2f}" for name in numbers),
        ]
        for image in disagreements["images"]
    ]
    return title, columns, rows


def _format_value(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value


EVALUATE = Command("Evaluate a trained model on test images.", _add_options, _run)
