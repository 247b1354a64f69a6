"""Checkpoints: atomic, checksummed training states on disk.

A checkpoint consists of a file with the training state, optionally a file with the best weights so far, and a manifest
with the size and the SHA-256 of each file. The manifest is written last, and files without a readable manifest are
ignored. The previous checkpoint is kept; it is used if a file of the newest checkpoint is corrupt. Files are read with
``torch.load(weights_only=True)``, so no code in them is executed.
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

MAX_KEPT = 2
"""Number of checkpoints that are kept."""

State = dict[str, Any]
"""Training state, or the state dict of a model."""

_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class CorruptCheckpointWarning(UserWarning):
    """The newest checkpoint is corrupt, and an older checkpoint is used."""


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints in a folder.

    ``last-<step>.pt`` is a training state and ``last-<step>.json`` its manifest. ``best-<epoch>.pt`` holds the best
    weights so far.

    Args:
        folder: The folder ``checkpoints`` of a run.

    Example:
        >>> checkpoints = Checkpoints(Path("runs/mine/checkpoints"))                      # doctest: +SKIP
        >>> checkpoints.save(100, {"model": model.state_dict()})                          # doctest: +SKIP
        >>> state, best = checkpoints.load()                                              # doctest: +SKIP
    """

    folder: Path

    def __bool__(self) -> bool:
        """Return True if the folder holds at least one manifest, even a corrupt manifest."""
        return bool(self._manifests())

    def save(self, step: int, state: Mapping[str, Any], best: tuple[int, Mapping[str, Any]] | None = None) -> None:
        """Write a checkpoint and remove checkpoints beyond `MAX_KEPT`.

        An interruption or an error at any time, for example a full disk, leaves the previous checkpoint intact.

        Args:
            step: Number of optimizer steps so far.
            state: Training state after ``step`` steps.
            best: Epoch and weights of the best validation so far, or None. The weights of an epoch are written once.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        entries = {"last": self._write(self.folder / f"last-{step:08d}.pt", state)}
        if best is not None:
            epoch, weights = best
            path = self.folder / f"best-{epoch:05d}.pt"
            entries["best"] = self._existing_entries().get(path.name) or self._write(path, weights)
        write_text(self.folder / f"last-{step:08d}.json", dump_checksummed(entries))
        self._remove_old()

    def load(self) -> tuple[State, State | None]:
        """Load the newest intact checkpoint.

        Returns:
            The training state, and the best weights at that step or None.

        Raises:
            InputError: If there is no checkpoint, or all checkpoints are corrupt.

        Warns:
            CorruptCheckpointWarning: If the newest checkpoint is corrupt and an older checkpoint is used.
        """
        manifests = self._manifests()
        if not manifests:
            raise InputError(f"{self.folder} must hold a checkpoint, got none. Leave out --resume to start the run.")
        damage = []
        for manifest in reversed(manifests):
            try:
                states = self._load_states(manifest)
            except _READ_ERRORS as error:
                damage.append(f"{manifest.stem} is corrupt ({error})")
                continue
            if damage:
                warnings.warn(
                    f"{'; '.join(damage)}; resuming from {manifest.stem} in {self.folder}.",
                    CorruptCheckpointWarning,
                    stacklevel=2,
                )
            return states
        raise InputError(
            f"{self.folder} must hold an intact checkpoint, got: {'; '.join(damage)}. Delete the folder to start again."
        )

    def load_weights(self, name: str | None = None) -> State:
        """Load the weights of a checkpoint.

        Args:
            name: Name of a file in the folder, ``best-<epoch>.pt`` or ``last-<step>.pt``. None selects the newest
                checkpoint: its best weights, or its averaged weights if there are no best weights.

        Returns:
            The state dict of the model. For a training state ``last-<step>.pt``, it holds the averaged weights.

        Raises:
            InputError: If there is no such checkpoint, or if the file is corrupt.
        """
        if name is None:
            state, best = self.load()
            return best or state["average"]
        entries = self._existing_entries()
        if name not in entries:
            names = ", ".join(sorted(entries)) or "none yet"
            raise InputError(
                f"the checkpoint must be a file in {self.folder} ({names}), got {name!r}. Give one of these, or "
                "the run."
            )
        try:
            state = self._load_file(entries[name])
        except ValueError as error:
            raise InputError(f"{error} in {self.folder}. Give another checkpoint, or the run.") from error
        weights: State = state.get("average", state)
        return weights

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("last-*.json"))

    def _write(self, path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
        """Write a file and return its manifest entry."""
        stream = io.BytesIO()
        torch.save(dict(state), stream)  # on a full disk torch.save to a file raises RuntimeError instead of OSError
        content = stream.getbuffer()
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def _existing_entries(self) -> dict[str, dict[str, Any]]:
        """Return the entries of all readable manifests whose files exist, by file name."""
        entries: dict[str, dict[str, Any]] = {}
        for manifest in self._manifests():
            try:
                entries |= {entry["name"]: entry for entry in load_checksummed(manifest).values()}
            except _READ_ERRORS:
                continue
        return {name: entry for name, entry in entries.items() if (self.folder / name).exists()}

    def _load_states(self, manifest: Path) -> tuple[State, State | None]:
        entries = load_checksummed(manifest)
        state = self._load_file(entries["last"])
        best = self._load_file(entries["best"]) if "best" in entries else None
        return state, best

    def _load_file(self, entry: Mapping[str, Any]) -> State:
        """Load the file of a manifest entry. Raise ``ValueError`` if it is missing, changed or unreadable."""
        path = self.folder / Path(entry["name"]).name
        if not path.exists():
            raise ValueError(f"{path.name} is missing")
        content = path.read_bytes()
        if len(content) != entry["bytes"]:
            raise ValueError(f"{path.name} must have {entry['bytes']:,} bytes, got {len(content):,}")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ValueError(f"the checksum of {path.name} differs")
        try:
            state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path.name} cannot be read: {type(error).__name__}") from error
        return state

    def _remove_old(self) -> None:
        """Remove the oldest manifests, and the files that no remaining manifest names."""
        for manifest in self._manifests()[:-MAX_KEPT]:
            manifest.unlink()
        kept = {*(path.name for path in self._manifests()), *self._existing_entries()}
        for path in self.folder.iterdir():
            if path.name not in kept and path.name.startswith(("last-", "best-")):
                path.unlink()
