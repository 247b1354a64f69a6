"""Run folders: configuration, environment, training history, metrics, checkpoints and weights.

No code in a file is executed: weights are safetensors, and checkpoints are read with ``weights_only=True``. Weights and
checkpoints have checksums, so a changed byte raises an error instead of changing a prediction.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from camkd.data.file_names import dataset_name
from camkd.models.io import INFO_FILE, METRICS_FILE
from camkd.runs.checkpoints import Checkpoints
from camkd.types import InputError
from camkd.utils.files import load_json, write_json, write_text

UNCALIBRATED_FILE = "uncalibrated.safetensors"
"""Name of the file with weight and bias of the last layer before the first calibration."""

RESTORE = "Restore it from a copy, or choose another --out"
"""Advice in the error message for a corrupt file that a resumed run needs."""

RECREATE = "Delete it and resume the run"
"""Advice in the error message for a corrupt file that a resumed run writes again."""


@dataclass(frozen=True)
class Run:
    """Run folder, and the files in the folder.

    Args:
        folder: Path of the run folder. The folder may not exist yet.

    Example:
        >>> run = Run(Path("runs/mine/student"))             # doctest: +SKIP
        >>> run.finished, run.read_metrics()["accuracy"]     # doctest: +SKIP
        (True, 0.913)
    """

    folder: Path

    @property
    def metrics_file(self) -> Path:
        """Path of the final metrics; `read_metrics` reads the file."""
        return self.folder / METRICS_FILE

    @property
    def history_file(self) -> Path:
        """Path of the training history; `read_history` reads the file."""
        return self.folder / "metrics.jsonl"

    @property
    def per_image_file(self) -> Path:
        """Path of the results of each test image."""
        return self.folder / "per_image.npz"

    @property
    def figures_folder(self) -> Path:
        """Path of the folder of figures."""
        return self.folder / "figures"

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the run."""
        return Checkpoints(self.folder / "checkpoints")

    @property
    def gallery_file(self) -> Path:
        """Path of the images and maps that the report shows."""
        return self.folder / "gallery.json"

    @property
    def calibration_file(self) -> Path:
        """Path of the temperature, the threshold and their measurements."""
        return self.folder / "calibration.json"

    def remove_calibration(self) -> None:
        """Remove the files of a calibration, when the head is that of training again."""
        self.calibration_file.unlink(missing_ok=True)
        (self.folder / UNCALIBRATED_FILE).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether training and evaluation are complete: the metrics and the model info exist."""
        return self.metrics_file.exists() and (self.folder / INFO_FILE).exists()

    def start(self, config: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Write the configuration, the provenance and the environment before the first step.

        Args:
            config: Resolved configuration, written to ``config.yaml``.
            provenance: Identity of the inputs that ``config`` only names, such as the fingerprint of the images and the
                checksum of the teacher's weights. It is written to ``environment.json``, together with the environment.
        """
        write_text(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_json(self.folder / "environment.json", {**provenance, **collect_environment()})

    def update_config(self, settings: dict[str, Any]) -> None:
        """Change settings of a started run.

        The old and new values and the number of completed epochs are recorded in ``environment.json``.

        Args:
            settings: New values by name of the setting.
        """
        before = self.config()
        changes = {name: [before.get(name), value] for name, value in settings.items()}
        provenance = self.provenance()
        log = [*provenance.get("changes", []), {"epochs_done": self.completed_epochs(), **changes}]
        write_json(self.folder / "environment.json", {**provenance, "changes": log})
        write_text(
            self.folder / "config.yaml", yaml.safe_dump({**before, **settings}, sort_keys=False, allow_unicode=True)
        )

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration; empty if the run has not started.

        Returns:
            The content of ``config.yaml``.

        Raises:
            InputError: If the file is corrupt.
        """
        return _read_mapping(self.folder / "config.yaml", _parse_yaml, RESTORE)

    def provenance(self) -> dict[str, Any]:
        """Read the provenance, the environment at the start of the run, and the changes of settings.

        Returns:
            The content of ``environment.json``; empty if the run has not started.

        Raises:
            InputError: If the file is corrupt.
        """
        return _read_mapping(self.folder / "environment.json", load_json, RESTORE)

    def read_metrics(self) -> dict[str, Any]:
        """Read the final metrics; empty if the run is unfinished.

        Returns:
            The content of ``metrics.json``.

        Raises:
            InputError: If the file is corrupt.
        """
        return _read_mapping(self.metrics_file, load_json, RECREATE)

    def read_history(self) -> list[dict[str, Any]]:
        """Read the training history: one row per epoch, and no row if the file does not exist.

        The row of epoch 0, if there is one, describes the initial weights.

        Returns:
            The rows of ``metrics.jsonl``.

        Raises:
            InputError: If the file is corrupt.
        """
        if not self.history_file.exists():
            return []
        try:
            rows = [load_json(line) for line in self.history_file.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in rows):
                raise ValueError("every line must be an object with an epoch")
        except ValueError as error:
            raise InputError(
                f"{self.history_file} must be intact, got a corrupt file ({error}). {RECREATE}."
            ) from error
        return rows

    def completed_epochs(self) -> int:
        """Return the number of completed epochs.

        Raises:
            InputError: If the history is corrupt.
        """
        return max((row["epoch"] for row in self.read_history()), default=0)

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Replace the training history."""
        write_text(self.history_file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def default_run_folder(data: str, *names: str) -> Path:
    """Return the default folder of a run.

    Args:
        data: Name of a dataset, a folder or a table.
        names: Parts of the folder's name.

    Returns:
        ``runs/<data>/`` and the names joined by hyphens, without colons.

    Example:
        >>> default_run_folder("cifar10", "teacher", "timm:resnet18").as_posix()
        'runs/cifar10/teacher-timm-resnet18'
        >>> default_run_folder("tables/birds.csv", "teacher", "resnet20").as_posix()
        'runs/birds/teacher-resnet20'
    """
    return Path("runs", dataset_name(data), "-".join(names).replace(":", "-"))


def _read_mapping(path: Path, parse: Callable[[str], Any], advice: str) -> dict[str, Any]:
    """Read a file with one mapping; empty if there is no file. Raise ``InputError`` if the file is corrupt."""
    try:
        values = parse(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(values, dict):
            raise ValueError(f"it must hold an object, got {type(values).__name__}")
    except ValueError as error:
        raise InputError(f"{path} must be intact, got a corrupt file ({error}). {advice}.") from error
    return values


def _parse_yaml(text: str) -> Any:
    """Parse YAML without constructing Python objects. Raise ``ValueError`` if ``text`` is invalid."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def collect_environment() -> dict[str, Any]:
    """Return the command line, and what results may depend on: machine, library versions and number of threads.

    Example:
        >>> sorted(collect_environment())[:4]
        ['accelerator', 'command', 'cores', 'packages']
    """
    packages = ("camkd", "torch", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in packages},
        "command": sys.argv,
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
