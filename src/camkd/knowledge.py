"""What the teacher knows, asked once for each (epoch, sample) view and read from then on.

A store is a folder under the cache named by a hash of everything the answers depend on: the teacher's weights and
architecture, the pictures, the views and their seed, and the number format. Anything that differs is another store.
An epoch is one file of records; a record is the maps as float16, the logits as float32 and a mark that is written
last, so that an interrupted write is seen as not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from camkd.files import replacing
from camkd.types import Prediction

GIGABYTE = 1 << 30


def key_of(teacher: nn.Module, parts: Mapping[str, str | int | float]) -> str:
    """A hash of the teacher's architecture, weights and buffers, and of ``parts``."""
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    digest.update(repr(sorted(parts.items())).encode())
    return digest.hexdigest()[:24]


class Knowledge:
    """``knowledge(epoch, samples, x)``: the teacher's ``Prediction`` for these views of these samples.

    ``ask`` is the teacher. ``folder`` is the store, ``count`` the number of samples; epochs from ``epochs_kept`` on no
    longer fit the budget and are asked each time. Only logits and maps are kept.
    """

    def __init__(self, ask: Callable[[Tensor], Prediction], folder: Path, count: int, epochs_kept: int) -> None:
        self.ask, self.folder, self.count, self.epochs_kept = ask, folder, count, epochs_kept
        self.asked = 0
        self._open: tuple[int, np.ndarray] | None = None

    def __call__(self, epoch: int, samples: Tensor, x: Tensor) -> Prediction:
        if epoch >= self.epochs_kept:
            return self._fresh(x)
        rows = samples.numpy()
        records = self._records(epoch)
        if records is None or not (known := records["known"][rows] == 1).all():
            fresh = self._fresh(x)
            self._write(epoch, rows, fresh)
            return _rounded(fresh)
        assert known.all() and records is not None
        found = records[rows]
        logits, cams = found["logits"].copy(), found["cams"].copy()  # inside a record they are not aligned
        return Prediction(torch.from_numpy(logits).to(x.device), torch.from_numpy(cams).to(x.device).float())

    def _fresh(self, x: Tensor) -> Prediction:
        self.asked += len(x)
        return self.ask(x)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.npy"

    def _records(self, epoch: int) -> np.ndarray | None:
        if self._open is None or self._open[0] != epoch:
            path = self._path(epoch)
            if not path.exists():
                return None
            self._open = (epoch, np.load(path, mmap_mode="r+"))
        return self._open[1]

    def _write(self, epoch: int, rows: np.ndarray, fresh: Prediction) -> None:
        records = self._records(epoch)
        assert fresh.cams is not None
        if records is None:
            _, classes, height, width = fresh.cams.shape
            layout = record(classes, height, width)
            with replacing(self._path(epoch)) as temporary:  # never seen half made, never cut under a reader
                np.lib.format.open_memmap(temporary, "w+", dtype=layout, shape=(self.count,))
            records = self._records(epoch)
        assert records is not None
        records["logits"][rows] = fresh.logits.float().cpu().numpy()
        records["cams"][rows] = fresh.cams.half().cpu().numpy()
        records["known"][rows] = 1


def record(classes: int, height: int, width: int) -> np.dtype[np.void]:
    """The layout of one sample's record."""
    return np.dtype([("known", "u1"), ("logits", "<f4", (classes,)), ("cams", "<f2", (classes, height, width))])


def epochs_within(budget: float, count: int, bytes_each: int) -> int:
    """How many epochs of ``count`` records fit into ``budget`` gigabytes."""
    return int(budget * GIGABYTE // (count * bytes_each))


def _rounded(fresh: Prediction) -> Prediction:
    """As it will be read back, so that a run that fills the store ends bit for bit as one that reads it.

    The layout in memory too: sums over other strides have other last bits.
    """
    assert fresh.cams is not None
    return Prediction(fresh.logits.float().contiguous(), fresh.cams.half().float().contiguous())
