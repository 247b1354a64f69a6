"""Commands about what is trained already: explain, report; and list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.commands.common import Command, print_plainly


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help="a run folder or a shipped model")
    parser.add_argument("images", type=str, nargs="+", help="picture files")
    parser.add_argument("--out", type=str, default="cams.png", help="where the figure goes")
    parser.add_argument("--method", type=str, default="cam", help="cam, gradcam, hirescam, layercam or gradcam++")
    parser.add_argument("--layer", type=str | None, default=None, help="the layer to look at, by its dotted name")
    parser.add_argument("--teacher", type=str | None, default=None, help="the teacher's run (default: the run's own)")


def _explain(options: Namespace) -> dict[str, Any]:
    from camkd.trained import explain_files

    out = Path(options.out)
    answers = explain_files(options.run, options.images, out, options.teacher, options.method, options.layer)
    for image, answer in zip(options.images, answers, strict=True):
        said = ", ".join(f"{who} {what['class']} ({what['confidence']:.0%})" for who, what in answer.items())
        print_plainly(f"{image}: {said}")
    print_plainly(f"written: {options.out}")
    return {"out": options.out, "pictures": dict(zip(options.images, answers, strict=True))}


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or one folder of 'camkd train'")
    parser.add_argument("--out", type=str | None, default=None, help="(default: report.html in the first)")


def _report(options: Namespace) -> dict[str, Any]:
    from camkd.report import write_report

    out = Path(options.out or Path(options.runs[0]) / "report.html")
    write_report([Path(run) for run in options.runs], out)
    print_plainly(f"written: {out}")
    return {"out": str(out)}


def _list_options(parser: ArgumentParser) -> None:
    parser.add_argument("what", type=str, help="models (also timm:NAME, torchvision:NAME), methods, recipes or data")
    parser.add_argument("--size", type=int, default=32, help="picture side for the models' costs")
    parser.add_argument("--classes", type=int, default=10, help="number of classes for the models' costs")


def _list(options: Namespace) -> dict[str, Any]:
    from camkd.catalogue import show
    from camkd.tables import print_table

    found, (columns, rows) = show(options.what, options.size, options.classes)
    if not options.json:
        print_table(options.what, columns, rows)
    return found


EXPLAIN = Command("Show where a model looks in pictures.", _explain_options, _explain)
REPORT = Command("Write the HTML report of run folders.", _report_options, _report)
LIST = Command("List models, methods, recipes or data sets.", _list_options, _list)
