"""The command ``teacher``: train a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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
from camkd.cli.flags import add_flags
from camkd.config import AUTO, UNLABELED_OPTIONS, TeacherConfig
from camkd.types import Interpolation


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=str,
        default=AUTO,
        help="the network, see 'camkd list models'; auto: wrn-16-4, on a CPU resnet20 for more than 32 pixels",
    )
    add_flags(parser, TeacherConfig)
    add_training_options(parser, exclude=["interpolation", *UNLABELED_OPTIONS])
    parser.add_argument(
        "--interpolation",
        type=Interpolation | None,
        default=None,
        help="filter that resizes images, with antialiasing (default: that of pretrained weights, else bicubic)",
    )


def _run(options: Namespace) -> dict[str, Any] | None:
    from camkd.experiments import pipeline, planning, start_network
    from camkd.runs.folder import Run
    from camkd.utils.distributed import init_distributed, run_on_rank0

    if options.interpolation is None:
        options.interpolation = start_network.default_interpolation(options.model, options.data)
    config = run_config(options, "teacher")
    resume = resume_option(options)
    pipeline.check_config(replace(config, model=planning.DEFAULT_TEACHERS[0]) if config.model == AUTO else config)
    with init_distributed(options.device) as group, open_reporter() as reporter:
        run_on_rank0(lambda: pipeline.check_outputs(config, Path(options.out or "runs")))
        config = start_network.resolve_size(config)
        data = open_data(config.data, reporter)
        stored_folder = Path(options.out) if options.out else None
        model = planning.resolve_network(config.model, data, options.device, stored_folder)
        folder = out_folder(options, "teacher", model)
        config = start_network.resolve_start(replace(config, model=model), data, reporter.message)
        config = pipeline.resolve_settings(config, data, folder, callbacks=[reporter])
        if not Run(folder).config():
            reporter.message(planning.describe_times({"teacher": planning.estimate_run(config, data)}))
        metrics = pipeline.train_run(folder, config, data, resume=resume, callbacks=[reporter])
        reporter.message(f"{model}: test accuracy {metrics['accuracy']:.1%}; run: {folder}")
    return {**metrics, "out": str(folder)} if group.rank == 0 else None


TEACHER = Command("Train a teacher, or use trained weights as a teacher.", _add_options, _run)
