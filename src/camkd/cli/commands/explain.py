"""The command ``explain``: heatmaps of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import DEVICE_HELP, TEACHER_RUN_HELP, Command, add_bad_images_option, open_reporter
from camkd.cli.streams import print_message
from camkd.utils.text import shorten_middle

MAX_NAME_WIDTH = 72
"""Largest number of columns of a path in the list of predictions. Longer paths are cut in the middle."""


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", type=str, help="a run, one of its checkpoints, a shipped model, or a name like timm:resnet50.a1_in1k"
    )
    parser.add_argument(
        "images",
        type=str,
        nargs="+",
        help="image files, folders of images, or tables (.csv, .tsv)",
    )
    parser.add_argument(
        "--out",
        type=str,
        default="cams.png",
        help="FILE.png: images and maps side by side; FILE.npz or FILE.json: predictions and maps as numbers; FOLDER: "
        "an overlay of the model's map on each image at the resolution of the image, without the teacher's map",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=1,
        help="number of classes per image: the most probable classes of the teacher if it is shown, else of the model",
    )
    parser.add_argument(
        "--against",
        type=str,
        nargs="+",
        default=[],
        metavar="CLASS",
        help="classes to contrast with: each map shows the evidence for its class minus the mean evidence for these "
        "classes. They get no maps of their own (default: no contrast)",
    )
    parser.add_argument("--method", type=str, default="cam", help="cam, gradcam, hirescam, layercam or gradcam++")
    parser.add_argument(
        "--layer",
        type=str | None,
        default=None,
        help="dotted name of the model's layer that the maps are computed from (default: found automatically)",
    )
    add_bad_images_option(parser, "skip", "")
    parser.add_argument("--teacher", type=str | None, default=None, help=TEACHER_RUN_HELP)
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.data.file_names import count_suffixes, escape_name, join_first
    from camkd.data.walker import IMAGE_TYPES
    from camkd.experiments.finished_runs import explain_files
    from camkd.explain.class_names import describe_classes, describe_contrast

    with open_reporter() as reporter:
        result = explain_files(
            options.run,
            options.images,
            Path(options.out),
            options.teacher,
            reporter.progress,
            reporter.message,
            method=options.method,
            layer=options.layer,
            top=options.top,
            against=options.against,
            bad_images=options.bad_images or "skip",
            device=options.device,
        )
    for path, records in result["images"].items():
        name = shorten_middle(path, MAX_NAME_WIDTH)
        predictions = ", ".join(_format_prediction(title, record) for title, record in records.items())
        print_message(f"{name}: {predictions}{_format_contrast(records, result['against'])}")
    if result["against"]:
        print_message(describe_contrast(result["against"]))
    print_message(describe_classes(result["classes"]))
    if skipped := result["skipped"]:
        counts = count_suffixes(map(Path, skipped))
        print_message(f"skipped files that are not images ({IMAGE_TYPES}): {len(skipped):,} ({counts})")
    if unreadable := result["unreadable"]:
        reasons = join_first([f"{escape_name(path)}: {reason}" for path, reason in unreadable.items()], "; ")
        print_message(f"{len(unreadable):,} unreadable images were skipped: {reasons}")
    print_message(f"output: {options.out}")
    return {"out": options.out, **result}


def _format_prediction(title: str, record: dict[str, Any]) -> str:
    """Format ``student cat (93%)``, or with several classes ``student cat (93%), dog (4%)``.

    Below the threshold of the model: ``student unsure: cat (41%)``.
    """
    # With --top 1, classes_shown has one class: the one that the first model predicts. A model that predicts another
    # class is listed with its own prediction only, because the class of the map is already named for the first model.
    other_classes = [entry for entry in record["classes_shown"] if entry["class"] != record["class"]]
    entries = [record, *(other_classes if len(record["classes_shown"]) > 1 else [])]
    answer = f"{title} unsure: " if record.get("unsure") else f"{title} "
    return answer + ", ".join(f"{entry['class']} ({entry['confidence']:.0%})" for entry in entries)


def _format_contrast(records: dict[str, Any], against: list[str]) -> str:
    """Format ``; map of bird vs. cat``, or nothing without a contrast.

    The records of all models of an image have the same ``classes_shown``.
    """
    from camkd.explain.class_names import describe_map

    if not against:
        return ""
    explained = next(iter(records.values()))["classes_shown"]
    return f"; map of {describe_map(', '.join(entry['class'] for entry in explained), against)}"


EXPLAIN = Command("Draw the heatmaps of a model for images.", _add_options, _run)
