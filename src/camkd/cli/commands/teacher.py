"""The command ``teacher``: train a teacher."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import (
    Command,
    add_training_options,
    open_data,
    open_reporter,
    out_folder,
    resume_option,
    run_config,
)


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="wrn-16-4", help="the network, see 'camkd list models'")
    add_training_options(parser)


def _run(options: Namespace) -> dict[str, Any] | None:
    from camkd.experiments import pipeline
    from camkd.utils.distributed import init_distributed

    config = run_config(options, "teacher")
    resume = resume_option(options)
    folder = out_folder(options, "teacher", options.model)
    pipeline.check_config(config)
    with init_distributed(options.device) as group, open_reporter() as reporter:
        data = open_data(config.data, reporter)
        config = pipeline.resolve_auto(config, folder, callbacks=[reporter])
        metrics = pipeline.train_run(folder, config, data, resume=resume, callbacks=[reporter])
        reporter.message(f"{options.model}: test accuracy {metrics['accuracy']:.1%}; run: {folder}")
    return {**metrics, "out": str(folder)} if group.rank == 0 else None


TEACHER = Command("Train a teacher.", _add_options, _run)
