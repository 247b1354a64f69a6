"""The command ``export``: ONNX files of a model, or a page that runs the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import AS_IN_TRAINING, Command, add_bad_images_option, open_reporter
from camkd.config import AUTO

RUN_HELP = "a run folder or a shipped model"
DATA_HELP = "images of the model's dataset (default: the images of its run)"


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help=RUN_HELP)
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder of the ONNX files (default: RUN/export; with --web: no ONNX files)",
    )
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help=DATA_HELP)
    add_bad_images_option(parser, None, AS_IN_TRAINING)
    parser.add_argument("--int8", action="store_true", help="also write an 8-bit model, and measure its accuracy")
    parser.add_argument(
        "--max-drop", type=float, default=0.5, help="largest allowed loss of accuracy by int8, in percentage points"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write the int8 model at any loss of accuracy and any similarity of the maps",
    )
    parser.add_argument(
        "--teacher",
        nargs="?",
        type=str | None,
        default=None,
        const=AUTO,
        help="also write the teacher; give its run folder if it is not the teacher of RUN. The page shows its maps "
        "(without this option: the maps of the teacher of RUN, if it exists)",
    )
    parser.add_argument("--any-size", action="store_true", help="export for images of any size")
    parser.add_argument("--web", type=str | None, default=None, help="folder of a page that runs the model")
    parser.add_argument(
        "--runtime", type=str | None, default=None, help="folder of onnxruntime-web (default: from npm)"
    )


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.cli.flags import from_namespace
    from camkd.export.export import ExportOptions, default_export_folder, export

    web = None if options.web is None else Path(options.web)
    out = Path(options.out) if options.out else None if web else default_export_folder(options.run)
    runtime = None if options.runtime is None else Path(options.runtime)
    with open_reporter() as reporter:
        result = export(options.run, out, web, from_namespace(ExportOptions, options), runtime, reporter)
        if out:
            reporter.message(f"output: {out}")
        if web:
            reporter.message(f"output: {web}; open it with: camkd web {web}")
    return {**result, "out": None if out is None else str(out), "web": options.web}


EXPORT = Command(
    "Export a model with its maps as checked ONNX files, or as a page that runs the model.", _add_options, _run
)
