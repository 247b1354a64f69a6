"""Commands about what is trained already: explain, report; and list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, open_reporter, print_plainly


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", type=str, help="a run, one of its checkpoints, a shipped model, or a name like timm:resnet50.a1_in1k"
    )
    parser.add_argument("images", type=str, nargs="+", help="picture files, or folders with pictures at any depth")
    parser.add_argument(
        "--out",
        type=str,
        default="cams.png",
        help="FILE.png: pictures and maps side by side; FILE.npz or FILE.json: the maps as numbers; FOLDER: an overlay "
        "of each picture in its own pixels",
    )
    parser.add_argument("--top", type=int, default=1, help="maps of so many of the likeliest classes")
    parser.add_argument("--method", type=str, default="cam", help="cam, gradcam, hirescam, layercam or gradcam++")
    parser.add_argument("--layer", type=str | None, default=None, help="the layer to look at, by its dotted name")
    parser.add_argument("--teacher", type=str | None, default=None, help="the teacher's run (default: the run's own)")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")


def _explain(options: Namespace) -> dict[str, Any]:
    from camkd.experiments.finished_runs import explain_files

    with open_reporter() as screen:
        answers = explain_files(
            options.run,
            options.images,
            Path(options.out),
            options.teacher,
            screen.progress,
            method=options.method,
            layer=options.layer,
            top=options.top,
            device=options.device,
        )
    for image, answer in answers.items():
        print_plainly(f"{image}: {', '.join(_said(who, what) for who, what in answer.items())}")
    print_plainly(f"written: {options.out}")
    return {"out": options.out, "pictures": answers}


def _said(who: str, what: dict[str, Any]) -> str:
    """``student cat (93%)``, and the other classes that are shown: ``student cat (93%), dog (4%)``."""
    others = [place for place in what["shown"] if place["class"] != what["class"]]
    told = [what, *(others if len(what["shown"]) > 1 else [])]
    return f"{who} " + ", ".join(f"{one['class']} ({one['confidence']:.0%})" for one in told)


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or one folder of 'camkd train'")
    parser.add_argument("--out", type=str | None, default=None, help="the page (default: report.html in the first)")


def _report(options: Namespace) -> dict[str, Any]:
    from camkd.report.report import write_report

    out = Path(options.out or Path(options.runs[0]) / "report.html")
    write_report([Path(run) for run in options.runs], out)
    print_plainly(f"written: {out}")
    return {"out": str(out)}


def _list_options(parser: ArgumentParser) -> None:
    parser.add_argument("what", type=str, metavar="models|methods|recipes|data", help="what to list")
    parser.add_argument("--size", type=int, default=32, help="picture side for the models' costs")
    parser.add_argument("--classes", type=int, default=10, help="number of classes for the models' costs")


def _list(options: Namespace) -> dict[str, Any]:
    from camkd.cli.listing import show
    from camkd.cli.tables import print_table

    found, (columns, rows) = show(options.what, options.size, options.classes)
    if not options.json:
        print_table(options.what, columns, rows)
    return found


EXPLAIN = Command("Show where a model looks in pictures.", _explain_options, _explain)
REPORT = Command("Write the HTML report of run folders.", _report_options, _report)
LIST = Command("List models, methods, recipes or data sets.", _list_options, _list)
