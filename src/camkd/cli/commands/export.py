"""Commands that bring a model to a device: export, bench-device, web."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, open_reporter, print_plainly

RUN = "a run folder or a shipped model"
DATA = "the pictures it was made for (default: where its run found them)"


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help=RUN)
    out = "the files' folder (default: RUN/export; beside --web none, unless it is given)"
    parser.add_argument("--out", type=str | None, default=None, help=out)
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help=DATA)
    parser.add_argument("--int8", action="store_true", help="also write it in 8-bit integers, and say what that costs")
    parser.add_argument("--max-drop", type=float, default=0.5, help="points of accuracy that int8 may cost")
    parser.add_argument("--force", action="store_true", help="write int8 whatever it costs")
    teacher = (
        "also write its teacher (give its run where it is not the student's own); with --web the page shows its maps"
    )
    parser.add_argument("--teacher", nargs="?", type=str | None, default=None, const="", help=teacher)
    parser.add_argument("--any-size", action="store_true", help="leave the size of the pictures open")
    parser.add_argument("--web", type=str | None, default=None, help="make a page that runs the model, in this folder")
    parser.add_argument("--runtime", type=str | None, default=None, help="where onnxruntime-web is (default: by npm)")


def _export(options: Namespace) -> dict[str, Any]:
    from camkd.cli.flags import from_namespace
    from camkd.export.export import ExportOptions, default_export_folder, export

    web = None if options.web is None else Path(options.web)
    out = Path(options.out) if options.out else None if web else default_export_folder(options.run)
    runtime = None if options.runtime is None else Path(options.runtime)
    with open_reporter() as screen:
        found = export(options.run, out, web, from_namespace(ExportOptions, options), runtime, screen)
        if out:
            screen.message(f"written: {out}")
        if web:
            screen.message(f"written: {web}; open it with: camkd web {web}")
    return {**found, "out": None if out is None else str(out), "web": options.web}


def _bench_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help=RUN)
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help=DATA)
    parser.add_argument("--rounds", type=int, default=60, help="turns of ten calls that each variant gets")


def _bench(options: Namespace) -> dict[str, Any]:
    from camkd.cli.tables import print_table
    from camkd.export.benchmark import benchmark_device
    from camkd.utils.units import format_quantity

    with open_reporter() as screen:
        found = benchmark_device(options.run, options.data, options.rounds, screen.progress)
    if not options.json:
        rows = [
            [
                row["program"],
                "+ cam" if row["cam"] else "logits",
                f"{row['median_ms']:.3f}",
                f"{row['p95_ms']:.3f}",
                f"{row['pictures_per_second']:,.0f}",
                format_quantity(row["peak_bytes"]) if row["peak_bytes"] else "",
                format_quantity(row["file_bytes"]),
            ]
            for row in found["rows"]
        ]
        columns = ["", "returns", "median ms", "p95 ms", "pictures/s", "peak memory", "file"]
        print_table("one thread; latency of one picture, pictures/s in batches of 64", columns, rows)
        for name, cost in found["cam_over_logits_percent"].items():
            quartiles = f"quartiles {cost['low']:+.1f} to {cost['high']:+.1f}"
            print_plainly(f"{name}: the map costs {cost['median']:+.1f} % of latency ({quartiles})")
    return found


def _web_options(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="a page of 'camkd export RUN --web FOLDER'")
    parser.add_argument("--port", type=int, default=8765, help="where to listen on 127.0.0.1 (0: any free port)")


def _web(options: Namespace) -> dict[str, Any]:
    from camkd.export.web.server import page_server

    with page_server(Path(options.folder), options.port) as server:
        address = f"http://{server.server_address[0]!s}:{server.server_address[1]}/"
        print_plainly(f"{address} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return {"address": address}
    return {"address": address}


EXPORT = Command("Write a model and its map as ONNX, checked; or a page that runs it.", _export_options, _export)
BENCH_DEVICE = Command("Measure latency, memory and size, in PyTorch and exported.", _bench_options, _bench)
WEB = Command("Serve an exported page on this machine.", _web_options, _web)
