"""What the teacher knows, asked once for each (epoch, sample) view and read from then on.

A store is a folder under the cache named by a hash of everything the answers depend on: the teacher's weights and
architecture, the pictures, the views and their seed, the map's size and the number format. Anything that differs is
another store. An epoch is one file of records of fixed size, memory-mapped, its space reserved before the first write.

A record is a checksum, bound to its epoch and sample, and an answer. All zeros is "not asked yet"; a checksum that does
not fit is an answer that was half written when the machine stopped, or a flipped bit. Both are asked again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from camkd.distill.cache.records import VERSION, RecordFormat
from camkd.distill.cache.store import CacheFullError, CorruptCacheWarning, Manifest, Store, list_stores, store_folder
from camkd.types import Prediction

__all__ = [
    "CacheFullError",
    "CorruptCacheWarning",
    "Knowledge",
    "Manifest",
    "RecordFormat",
    "Store",
    "key_of",
    "list_stores",
    "store_folder",
]


def key_of(teacher: nn.Module, parts: Mapping[str, Any]) -> str:
    """A hash of the teacher's architecture, weights and buffers, and of ``parts``."""
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    digest.update(repr((VERSION, sorted(parts.items()))).encode())
    return digest.hexdigest()[:24]


class TeacherCache:
    """A teacher whose answers are kept: ``recall`` what is known, ``ask`` for what is not.

    ``teacher`` answers a batch of pictures. Without a ``store`` it is asked every time; with a ``layout`` its answers
    are then what a store would give. ``asked`` counts the pictures it was asked about.
    """

    def __init__(
        self, teacher: Callable[[Tensor], Prediction], store: Store | None = None, layout: RecordFormat | None = None
    ) -> None:
        self.teacher, self.store = teacher, store
        self.layout = layout if store is None else store.layout
        self.asked = 0
        if store is not None:
            store.touch()

    def get(self, epoch: int, samples: Tensor) -> Prediction | None:
        """The answers for the views of ``samples`` in ``epoch``, on the host, or None where one is missing."""
        try:
            return None if self.store is None else self.store.read(epoch, samples.numpy())
        except CacheFullError:  # a file that was cut off cannot be made whole again; asking says so
            return None

    def compute(self, epoch: int, samples: Tensor, x: Tensor) -> Prediction:
        """The teacher's answers to the views ``x`` of ``samples``, from now on known."""
        self.asked += len(x)
        answer = self.teacher(x)
        if self.layout is None:
            return answer
        records = self.layout.encode(answer)
        try:
            if self.store is not None:
                self.store.write(epoch, samples.numpy(), records)
        except CacheFullError as full:
            warnings.warn(f"{full} Until then the teacher is asked at every step.", stacklevel=2)
        return self.layout.decode(records).to(x.device)
