"""Run folders: weights with their description, checkpoints, metrics and configuration.

Nothing here unpickles: weights are safetensors. A model's description holds the checksum of its weights, so that a
flipped byte is an error and not a worse model.
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

KEPT = "bring it back from a copy, or give another --out"
"""What to do about a damaged file that decides the rest of a run."""


@dataclass(frozen=True)
class Run:
    """A run folder and the names inside it."""

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
        """Whether training and evaluation came to their end."""
        return self.metrics.exists() and (self.folder / INFO_FILE).exists()

    def start(self, config: dict[str, Any], origin: dict[str, Any]) -> None:
        """Write what is known before the first step: the resolved configuration, and beside the environment its origin.

        ``origin`` is what names in the configuration stand for: the pictures' fingerprint, the teacher's weights.
        """
        write_text(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        write_json(self.folder / "environment.json", {**origin, **collect_environment()})

    def update_config(self, settings: dict[str, Any]) -> None:
        """Write down that the run goes on with other settings, and what they were."""
        before = self.config()
        changes = {name: [before.get(name), value] for name, value in settings.items()}
        origin = self.provenance()
        noted = [*origin.get("changes", []), {"epochs_done": len(self.read_history()), **changes}]
        write_json(self.folder / "environment.json", {**origin, "changes": noted})
        write_text(
            self.folder / "config.yaml", yaml.safe_dump({**before, **settings}, sort_keys=False, allow_unicode=True)
        )

    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was started with; empty where there is none."""
        return _read(self.folder / "config.yaml", _yaml, KEPT)

    def provenance(self) -> dict[str, Any]:
        """What the run was started from, and the environment of that time."""
        return _read(self.folder / "environment.json", load_json, KEPT)

    def read_metrics(self) -> dict[str, Any]:
        """The final figures; empty where there are none yet."""
        return _read(self.metrics, load_json)

    def read_history(self) -> list[dict[str, Any]]:
        """One entry an epoch."""
        if not self.history.exists():
            return []
        try:
            rows = [load_json(line) for line in self.history.read_text(encoding="utf-8").splitlines()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("not every line is an object")
        except ValueError as error:
            raise InputError(f"{self.history} is damaged ({error}): delete it and resume the run.") from error
        return rows

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.history, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def default_run_folder(data: str, *names: str) -> Path:
    """Where a run goes that is given no place: ``runs/<data>/<names>``."""
    return Path("runs", Path(data).expanduser().resolve().name, "-".join(names).replace(":", "-"))


def _read(path: Path, parse: Callable[[str], Any], advice: str = "delete it and resume the run") -> dict[str, Any]:
    """The object in a file of ours, empty where there is none. Raises ``InputError`` where it is damaged."""
    try:
        found = parse(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} and no object")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {advice}.") from error
    return found


def _yaml(text: str) -> Any:
    """What ``text`` says in YAML; no tag makes an object of Python's. Raises ``ValueError`` where it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def collect_environment() -> dict[str, Any]:
    """Machine, versions and threads: what a number of this run depends on."""
    packages = ("camkd", "torch", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in packages},
        "command": sys.argv,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
