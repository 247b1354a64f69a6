"""Run folders: configuration, environment, training history, metrics, checkpoints and weights.

No file is unpickled: weights are safetensors, and ``model.json`` holds their checksum. A flipped byte therefore raises
an error instead of changing a prediction.
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

from camkd.models.io import INFO_FILE
from camkd.runs.checkpoints import Checkpoints
from camkd.types import InputError
from camkd.utils.files import load_json, write_json, write_text

RESTORE = "Restore it from a copy, or choose another --out"
"""Advice for a damaged file that determines the rest of a run."""

RECREATE = "Delete it and resume the run"
"""Advice for a damaged file that a resumed run writes again."""


@dataclass(frozen=True)
class Run:
    """Run folder and the paths inside it.

    Args:
        folder: the run folder, which need not exist yet.

    Example:
        >>> run = Run(Path("runs/mine/student"))             # doctest: +SKIP
        >>> run.finished, run.read_metrics()["accuracy"]     # doctest: +SKIP
        (True, 0.913)
    """

    folder: Path

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def history(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def per_image(self) -> Path:
        return self.folder / "per_image.npz"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    @property
    def gallery(self) -> Path:
        return self.folder / "gallery.json"

    @property
    def finished(self) -> bool:
        """True once training and evaluation are complete."""
        return self.metrics.exists() and (self.folder / INFO_FILE).exists()

    def start(self, config: dict[str, Any], origin: dict[str, Any]) -> None:
        """Write the configuration, the provenance and the environment before the first step.

        Args:
            config: resolved configuration, written to ``config.yaml``.
            origin: provenance, written to ``environment.json``: the content that names in the configuration stand for,
                such as the fingerprint of the images and the checksum of the teacher's weights.
        """
        write_text(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_json(self.folder / "environment.json", {**origin, **collect_environment()})

    def update_config(self, settings: dict[str, Any]) -> None:
        """Change settings of a started run, and record the old and new values and the epoch in ``environment.json``."""
        before = self.config()
        changes = {name: [before.get(name), value] for name, value in settings.items()}
        provenance = self.provenance()
        log = [*provenance.get("changes", []), {"epochs_done": len(self.read_history()), **changes}]
        write_json(self.folder / "environment.json", {**provenance, "changes": log})
        write_text(
            self.folder / "config.yaml", yaml.safe_dump({**before, **settings}, sort_keys=False, allow_unicode=True)
        )

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration; empty if the run has not started."""
        return _read_mapping(self.folder / "config.yaml", _parse_yaml, RESTORE)

    def provenance(self) -> dict[str, Any]:
        """Read the provenance and the environment at the start of the run; empty if the run has not started."""
        return _read_mapping(self.folder / "environment.json", load_json, RESTORE)

    def read_metrics(self) -> dict[str, Any]:
        """Read the final metrics; empty if the run is unfinished."""
        return _read_mapping(self.metrics, load_json, RECREATE)

    def read_history(self) -> list[dict[str, Any]]:
        """Read the training history: one row per epoch.

        Raises:
            InputError: if the file is damaged.
        """
        if not self.history.exists():
            return []
        try:
            rows = [load_json(line) for line in self.history.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("every line must be an object")
        except ValueError as error:
            raise InputError(f"{self.history} is damaged ({error}). {RECREATE}.") from error
        return rows

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.history, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def default_run_folder(data: str, *names: str) -> Path:
    """Return the default folder of a run, ``runs/<data>/<names>``.

    >>> default_run_folder("cifar10", "teacher", "timm:resnet18").as_posix()
    'runs/cifar10/teacher-timm-resnet18'
    """
    return Path("runs", Path(data).expanduser().resolve().name, "-".join(names).replace(":", "-"))


def _read_mapping(path: Path, parse: Callable[[str], Any], advice: str) -> dict[str, Any]:
    """Read a file with one mapping; empty if there is no file. Raises ``InputError`` if it is damaged."""
    try:
        values = parse(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(values, dict):
            raise ValueError(f"it must hold an object, got {type(values).__name__}")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}). {advice}.") from error
    return values


def _parse_yaml(text: str) -> Any:
    """Parse YAML without constructing Python objects. Raises ``ValueError`` if ``text`` is invalid."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def collect_environment() -> dict[str, Any]:
    """Return the machine, the versions and the number of threads that results depend on.

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
