"""The command ``bench-device``: latency, memory and size of a model."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import AS_IN_TRAINING, Command, add_bad_images_option, open_reporter
from camkd.cli.commands.export import DATA_HELP, RUN_HELP
from camkd.cli.streams import print_message


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, help=RUN_HELP)
    parser.add_argument("--data", "--dataset", type=str | None, default=None, help=DATA_HELP)
    add_bad_images_option(parser, None, AS_IN_TRAINING)
    parser.add_argument("--rounds", type=int, default=60, help="rounds of ten calls per variant")


def _run(options: Namespace) -> dict[str, Any]:
    from camkd.cli.tables import print_table
    from camkd.export.benchmark import benchmark_device
    from camkd.utils.units import format_quantity

    with open_reporter() as reporter:
        result = benchmark_device(options.run, options.data, options.rounds, reporter.progress, options.bad_images)
    if not options.json:
        rows = [
            [
                row["program"],
                "+ cam" if row["cam"] else "logits",
                f"{row['median_ms']:.3f}",
                f"{row['p95_ms']:.3f}",
                f"{row['images_per_second']:,.0f}",
                format_quantity(row["peak_bytes"]) if row["peak_bytes"] else "",
                format_quantity(row["file_bytes"]),
            ]
            for row in result["rows"]
        ]
        columns = ["", "output", "median ms", "p95 ms", "images/s", "peak memory", "file"]
        print_table("one thread; latency of one image, images/s in batches of 64", columns, rows)
        for name, cost in result["cam_over_logits_percent"].items():
            quartiles = f"quartiles {cost['low']:+.1f} to {cost['high']:+.1f}"
            print_message(f"{name}: the map costs {cost['median']:+.1f} % of latency ({quartiles})")
    return result


BENCH_DEVICE = Command("Measure latency, memory and size, in PyTorch and exported.", _add_options, _run)
