"""Experiment trackers as callbacks: trackio, MLflow and Weights & Biases. Each needs the extra of its name."""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from torch import nn

from camkd.config import RunConfig
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback, scalars
from camkd.types import InputError
from camkd.utils.files import load_json, write_json

PROJECT = "camkd"
"""Project of the tracked runs, unless the variable of the library names another."""

ID_FILE = "tracking.json"
"""File of a run folder with the id of its tracked run, by tracker."""


class Tracker(Callback, ABC):
    """Send the configuration, the metrics of each epoch, the figures and the final metrics of a run to a library.

    A resumed run continues the tracked run whose id is in ``tracking.json``. After an error of the library, tracking
    ends with a message, and the training continues. A subclass implements the methods `open`, `log`, `log_figure`,
    `log_final` and `close` with its library.

    Args:
        run: The run folder.
        config: Configuration of the run.
        message: Callback ``message(text)`` for the address of the tracked run, and for errors.

    Raises:
        InputError: If the library cannot start the tracked run.

    Example:
        >>> tracker = MlflowTracker(run, config, print)                                 # doctest: +SKIP
        >>> train_run(folder, config, data, callbacks=[tracker])                        # doctest: +SKIP
    """

    library: ClassVar[str]
    """Name of the tracker, of its module and of its extra."""

    def __init__(self, run: Run, config: RunConfig, message: Callable[[str], None]) -> None:
        self.message = message
        self.is_open = True
        self.epoch = 0
        file = run.folder / ID_FILE
        name = "/".join(run.folder.resolve().parts[-3:])
        try:
            ids = load_json(file.read_text(encoding="utf-8")) if file.exists() else {}
            run_id, address = self.open(name, ids.get(self.library), {"role": config.role, **config.options()})
        except Exception as error:  # the libraries have no common base class
            raise InputError(
                f"--track {self.library} must start a tracked run, got: {_line(error)}. Check the settings of "
                f"{self.library}, or leave --track out."
            ) from error
        write_json(file, {**ids, self.library: run_id})
        message(f"tracked by {self.library}: {address}")

    @abstractmethod
    def open(self, name: str, run_id: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        """Start a tracked run, or continue it.

        Args:
            name: Name of the run.
            run_id: Id of the tracked run to continue. None for a new run.
            config: Settings of the run by name.

        Returns:
            The id of the tracked run, and how to view it.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the metrics of an epoch."""

    @abstractmethod
    def log_figure(self, path: Path, epoch: int) -> None:
        """Log a figure, a PNG file."""

    @abstractmethod
    def log_final(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the final metrics, whose names start with ``final/``."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """End the tracked run, which may be continued if it is not finished."""

    def on_epoch_end(self, row: dict[str, Any], model: nn.Module) -> None:
        self.epoch = row["epoch"]
        self._call(lambda: self.log(dict(scalars(row)), self.epoch))

    def on_figure(self, epoch: int, path: Path) -> None:
        self._call(lambda: self.log_figure(path, epoch))

    def on_run_end(self, metrics: dict[str, Any] | None) -> None:
        if metrics is not None:
            flat = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
            self._call(lambda: self.log_final({f"final/{name}": value for name, value in scalars(flat)}, self.epoch))
        self._call(lambda: self.close(metrics is not None))
        self.is_open = False

    def _call(self, action: Callable[[], None]) -> None:
        """Call the library, unless it has failed before."""
        if not self.is_open:
            return
        try:
            action()
        except Exception as error:
            self.is_open = False
            self.message(f"tracking by {self.library} ends, the training continues: {_line(error)}")


class TrackioTracker(Tracker):
    """Track a run with trackio: a local database, or the Space that ``TRACKIO_SPACE_ID`` names.

    A tracked run is continued by its name, which contains a random id. The project is ``TRACKIO_PROJECT`` or camkd.
    """

    library = "trackio"

    def open(self, name: str, run_id: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        run_id = run_id or f"{name}-{uuid4().hex[:8]}"
        self.module = trackio
        with redirect_stdout(StringIO()):  # trackio prints; stdout is for --json
            self.run = trackio.init(project=project, name=run_id, resume="allow", config=dict(config), embed=False)
        return run_id, f"trackio show --project {project}"

    def log(self, values: Mapping[str, Any], epoch: int) -> None:
        with redirect_stdout(sys.stderr):
            self.run.log(dict(values), step=epoch)

    def log_figure(self, path: Path, epoch: int) -> None:
        self.log({"maps": self.module.Image(path)}, epoch)

    def log_final(self, values: Mapping[str, float], epoch: int) -> None:
        self.log(values, epoch)

    def close(self, finished: bool) -> None:
        with redirect_stdout(StringIO()):
            self.module.finish()


class MlflowTracker(Tracker):
    """Track a run with MLflow: the store of ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the current folder.

    The experiment is ``MLFLOW_EXPERIMENT_NAME`` or camkd. An interrupted run has the status KILLED until it is resumed.
    """

    library = "mlflow"

    def open(self, name: str, run_id: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
        else:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(title)
            experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(title)
            run_id = str(self.client.create_run(experiment_id, run_name=name).info.run_id)
            params = [Param(key, str(value)) for key, value in config.items()]
            self.client.log_batch(run_id, params=params)
        self.run_id = run_id
        return run_id, f"run {run_id} in {self.client.tracking_uri}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(re.sub(r"[^\w./ -]", "_", name), value, 0, epoch) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_figure(self, path: Path, epoch: int) -> None:
        self.client.log_artifact(self.run_id, str(path), "figures")

    def log_final(self, values: Mapping[str, float], epoch: int) -> None:
        self.log(values, epoch)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class WandbTracker(Tracker):
    """Track a run with Weights & Biases, also with ``WANDB_MODE=offline``.

    A tracked run is continued by its id. Offline, each part of an interrupted run is a folder of its own, and
    ``wandb sync`` joins them. The project is ``WANDB_PROJECT`` or camkd.
    """

    library = "wandb"

    def open(self, name: str, run_id: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        import wandb

        run_id = run_id or uuid4().hex[:8]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=name,
            resume="allow",
            config=dict(config),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.image = wandb.Image
        return run_id, f"wandb sync {Path(self.run.dir).parent}" if self.run.offline else f"{self.run.url}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values), step=epoch)

    def log_figure(self, path: Path, epoch: int) -> None:
        self.run.log({"maps": self.image(str(path))}, step=epoch)

    def log_final(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.summary.update(dict(values))

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, type[Tracker]] = {
    tracker.library: tracker for tracker in (TrackioTracker, MlflowTracker, WandbTracker)
}
"""Trackers by the value of ``--track``."""


def check_tracker(name: str) -> None:
    """Raise ``InputError`` if the library of a tracker is not installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # without a file: the library's folder of runs, in the current folder
        raise InputError(
            f"--track {name} needs a package that is not installed. Run pip install 'camkd[{name}]', or leave the "
            "option out."
        )


def _line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
