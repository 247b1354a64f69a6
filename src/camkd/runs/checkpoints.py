"""Checkpoints: the state of a run on disk, from which it goes on after whatever ended it.

A checkpoint is a file with the state, one with the best weights so far, and, written last, a manifest with the size and
the sha256 of both: what has no whole manifest does not count. The one before is kept beside the newest, and is gone on
from where a file of the newest is not what was written. Nothing is unpickled: ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camkd.types import InputError
from camkd.utils.files import atomic_write, dump_checksummed, load_checksummed, write_text

KEPT = 2
"""How many checkpoints are kept."""

State = dict[str, Any]


class CorruptCheckpointWarning(UserWarning):
    """The newest checkpoint is not what was written; the one before is used."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in ``folder``: ``last-<step>.pt`` and ``best-<epoch>.pt``, each ``last`` with its manifest."""

    folder: Path

    def __bool__(self) -> bool:
        """Whether there is one, whole or not."""
        return bool(self._manifests())

    def save(self, step: int, state: Mapping[str, Any], best: tuple[int, Mapping[str, Any]] | None = None) -> None:
        """Keep the state after ``step``, and ``best``: an epoch and its weights, written where they are new.

        Whatever ends the process meanwhile, and also where the disk is full (``OSError``), what was kept before stays.
        """
        files = {"last": self._write(self.folder / f"last-{step:08d}.pt", state)}
        if best is not None:
            epoch, weights = best
            path = self.folder / f"best-{epoch:05d}.pt"
            files["best"] = self._known().get(path.name) or self._write(path, weights)
        write_text(self.folder / f"last-{step:08d}.json", dump_checksummed(files))
        self._tidy()

    def load(self) -> tuple[State, State | None]:
        """The newest whole state, and the best weights that belong to it.

        Warns (`CorruptCheckpointWarning`) where it is not the newest. Raises ``InputError`` where there is none.
        """
        manifests = self._manifests()
        if not manifests:
            raise InputError(f"there is no checkpoint in {self.folder}: leave out --resume to start the run.")
        damage = []
        for manifest in reversed(manifests):
            try:
                found = self._read(manifest)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                damage.append(f"{manifest.stem} is damaged ({error})")
                continue
            if damage:
                warnings.warn(
                    f"{'; '.join(damage)}; going on from {manifest.stem} in {self.folder}.",
                    CorruptCheckpointWarning,
                    stacklevel=2,
                )
            return found
        raise InputError(
            f"no checkpoint in {self.folder} can be read: {'; '.join(damage)}. Delete that folder to start again."
        )

    def weights(self, name: str | None = None) -> State:
        """The best weights of the newest checkpoint, or those in the file ``name``: of a state the averaged ones.

        Raises ``InputError`` where there is no such checkpoint, or it is not what was written.
        """
        if name is None:
            state, best = self.load()
            return best or state["average"]
        entry = self._known().get(name)
        if entry is None:
            raise InputError(f"{self.folder / name} is no checkpoint: name the run, or one of {self._names()}.")
        try:
            state = self._state(entry)
        except ValueError as error:
            raise InputError(f"{error} in {self.folder}: name another checkpoint, or the run.") from error
        found: State = state.get("average", state)
        return found

    def _names(self) -> str:
        return ", ".join(sorted(self._known())) or "those it will have"

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("last-*.json"))

    def _write(self, path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
        stream = io.BytesIO()
        torch.save(dict(state), stream)  # its own writing turns a full disk into an error of another kind
        content = stream.getbuffer()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def _known(self) -> dict[str, dict[str, Any]]:
        """The files that manifests name, as far as these can be read."""
        known: dict[str, dict[str, Any]] = {}
        for manifest in self._manifests():
            try:
                known |= {entry["name"]: entry for entry in load_checksummed(manifest).values()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return {name: entry for name, entry in known.items() if (self.folder / name).exists()}

    def _read(self, manifest: Path) -> tuple[State, State | None]:
        entries = load_checksummed(manifest)
        return self._state(entries["last"]), self._state(entries["best"]) if "best" in entries else None

    def _state(self, entry: Mapping[str, Any]) -> State:
        path = self.folder / Path(entry["name"]).name
        if not path.exists():
            raise ValueError(f"{path.name} is missing")
        content = path.read_bytes()
        if len(content) != entry["bytes"]:
            raise ValueError(f"{path.name} has {len(content):,} bytes where {entry['bytes']:,} were written")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"the checksum of {path.name} differs")
        try:
            state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path.name} cannot be read: {type(error).__name__}") from error
        return state

    def _tidy(self) -> None:
        """Take away what no kept manifest names."""
        for manifest in self._manifests()[:-KEPT]:
            manifest.unlink()
        wanted = {*(path.name for path in self._manifests()), *self._known()}
        for path in self.folder.iterdir():
            if path.name not in wanted and path.name.startswith(("last-", "best-")):
                path.unlink()
