"""The command ``calibrate``: confidence that equals accuracy, and a threshold for a requested precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import AS_IN_TRAINING, DEVICE_HELP, Command, add_bad_images_option, open_reporter


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument(
        "--precision",
        type=float,
        default=0.95,
        help="requested accuracy of the answers; answers of lower confidence than the threshold count as unsure",
    )
    parser.add_argument(
        "--data",
        "--dataset",
        type=str | None,
        default=None,
        help="other images, whose validation and test splits are used (default: the images of the run)",
    )
    add_bad_images_option(parser, None, AS_IN_TRAINING)
    parser.add_argument(
        "--out", type=str | None, default=None, help="new folder for a calibrated copy (default: RUN is changed)"
    )
    parser.add_argument("--undo", action="store_true", help="restore the weights of before the first calibration")
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.cli.tables import print_table
    from camkd.experiments.calibrate import calibrate

    with open_reporter() as reporter:
        result = calibrate(
            options.run,
            precision=options.precision,
            data=options.data,
            out=None if options.out is None else Path(options.out),
            undo=options.undo,
            device=options.device,
            bad_images=options.bad_images,
            progress=reporter.progress,
            message=reporter.message,
        )
        for line in _summary(result):
            reporter.message(line)
        if not options.json and not options.undo:
            print_table(*_table(result))
        reporter.message(f"output: {result['run']}; 'camkd report {result['run']}' writes its report again")
    return result


def _summary(result: Mapping[str, Any]) -> list[str]:
    """Describe the temperature and the threshold in sentences."""
    if "temperature" not in result:
        return ["the head is that of before the first calibration"]
    lines = [f"temperature {result['temperature']:.3f}, divided into weight and bias of the last layer"]
    if result["total_temperature"] != result["temperature"]:
        lines[0] += f"; {result['total_temperature']:.3f} with the earlier calibrations"
    validation, test = (result[split]["calibrated"] for split in ("validation", "test"))
    if result["threshold"] is None:
        lines.append(f"no threshold has a precision of {result['precision']:.1%} on the validation images")
        return lines
    if result["threshold"] == 0:
        lines.append(
            f"all validation images together have a precision of {result['precision']:.1%}: no answer is unsure"
        )
        return lines
    lines.append(
        f"threshold {result['threshold']:.3f} for a precision of {result['precision']:.1%}: expected coverage "
        f"{validation['coverage']:.1%} (validation); on the test images {_describe_answers(test)}"
    )
    return lines


def _describe_answers(confidence: Mapping[str, Any]) -> str:
    if confidence["answered_accuracy"] is None:
        return "no answer reaches it"
    return (
        f"{confidence['answered_accuracy']:.1%} of the answers are correct (95 % interval {confidence['low']:.1%} to "
        f"{confidence['high']:.1%}), coverage {confidence['coverage']:.1%}"
    )


def _table(result: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Return calibration error and log-loss before and after."""
    rows = []
    for split in ("validation", "test"):
        before, after = result[split]["uncalibrated"], result[split]["calibrated"]
        numbers = [f"{entry[key]:.4f}" for key in ("ece", "nll") for entry in (before, after)]
        rows.append([split, f"{before['images']:,}", *numbers])
    columns = ["images of", "number", "ECE before", "ECE after", "NLL before", "NLL after"]
    return "calibration error and log-loss", columns, rows


CALIBRATE = Command(
    "Calibrate the confidence of a trained model, and choose a threshold for a precision.", _add_options, _run
)
