"""The command that measures: evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, ThresholdFailed, open_reporter
from camkd.cli.thresholds import parse_thresholds, violations
from camkd.types import InputError

if TYPE_CHECKING:
    from camkd.evaluate import Evaluation

CHANCES = {"_shuffled": "other picture", "_centre": "centre", "_chance": "anywhere"}
"""The chance levels of a figure: the end of its name, and the title of its column."""

DATA = "other pictures than the run's own: the test folder, or all of a folder that has no splits"

Table = tuple[str, list[str], list[list[str]]]


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help=DATA)
    parser.add_argument("--teacher", type=str | None, default=None, help="the teacher's run (default: the run's own)")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--list-disagreements",
        type=int,
        default=0,
        help="list so many pictures with the teacher's answer but not its map",
    )
    for flag, word in (("--fail-under", "less"), ("--fail-over", "more")):
        parser.add_argument(
            flag, type=str | None, default=None, help=f"FIGURE=NUMBER,...: exit with status 1 where one is {word}"
        )


def _evaluate(options: Namespace) -> dict[str, Any]:
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

    with open_reporter() as screen:
        measured = reevaluate(options.run, options.data, options.teacher, options.device, screen.progress, screen.note)
    result, failure = dict(measured.metrics), violations(measured.metrics, under, over)
    if options.list_disagreements:
        result["alarm"] = _alarm(measured, options)
    if not options.json:
        for title, columns, rows in [*tables(options.run, measured.metrics), *_alarms(result.get("alarm"))]:
            print_table(title, columns, rows)
    if failure:
        raise ThresholdFailed(failure, result)
    return result


def tables(title: str, figures: Mapping[str, Any]) -> list[Table]:
    """The figures with their chance levels beside them, and by who is right where there is a teacher."""
    shown = {name: value for name, value in figures.items() if isinstance(value, int | float | str)}
    levels = {name for name in shown if any(name.removesuffix(end) in shown for end in CHANCES if name.endswith(end))}
    ends = [end for end in CHANCES if any(name.endswith(end) for name in levels)]
    rows = [
        [name, _short(value), *(_short(shown.get(name + end, "")) for end in ends)]
        for name, value in shown.items()
        if name not in levels
    ]
    found: list[Table] = [(title, ["figure", "value", *(CHANCES[end] for end in ends)], rows)]
    if "by_outcome" in figures:
        found.append(_by_outcome(figures["by_outcome"]))
    return found


def _by_outcome(groups: Mapping[str, Mapping[str, float]]) -> Table:
    given = [name for means in groups.values() for name in means if not name.endswith(tuple(CHANCES))]
    names = list(dict.fromkeys(given))
    columns = ["who is right", *(name.removeprefix("cam_").replace("_", " ") for name in names)]
    rows = [[who.replace("_", " "), *(_short(means.get(name, "")) for name in names)] for who, means in groups.items()]
    return "map likeness by outcome", columns, rows


def _alarm(measured: Evaluation, options: Namespace) -> dict[str, Any]:
    """What ``--json`` says of the pictures with the teacher's answer and a map no more like its map than chance."""
    from camkd.evaluate import chance_level, disagreeing_maps

    figures, pictures, _ = measured
    if "cam_cosine" not in pictures:
        raise InputError(
            f"{options.run!r} has no teacher to be compared with: give --teacher its run, or no --list-disagreements."
        )
    level, classes = chance_level(figures), list(figures["per_class"])
    rows = disagreeing_maps(pictures, level)
    return {
        "level": level,
        "same_answer": int((pictures["predicted"] == pictures["teacher_predicted"]).sum()),
        "pictures": len(rows),
        "listed": [_picture(pictures, row, classes) for row in rows[: options.list_disagreements].tolist()],
    }


def _picture(pictures: Mapping[str, Any], row: int, classes: list[str]) -> dict[str, Any]:
    numbers = ("confidence", "teacher_confidence", "cam_cosine", "cam_iou")
    return {
        "index": row,
        **({"name": str(pictures["name"][row])} if "name" in pictures else {}),
        **{name: classes[pictures[name][row]] for name in ("label", "predicted")},
        **{name: float(pictures[name][row]) for name in numbers},
    }


def _alarms(alarm: Mapping[str, Any] | None) -> list[Table]:
    if alarm is None:
        return []
    title = (
        f"alarm: {alarm['pictures']:,} of {alarm['same_answer']:,} pictures with the teacher's answer have a map no "
        f"more like the teacher's than chance ({alarm['level']:.4f}); least alike first"
    )
    columns = ["picture", "label", "answer", "cosine", "IoU", "sure", "teacher"]
    numbers = ("cam_cosine", "cam_iou", "confidence", "teacher_confidence")
    rows = [
        [str(row.get("name", row["index"])), row["label"], row["predicted"], *(f"{row[name]:.2f}" for name in numbers)]
        for row in alarm["listed"]
    ]
    return [(title, columns, rows)]


def _short(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value


EVALUATE = Command("Measure a trained model on test pictures.", _options, _evaluate)
