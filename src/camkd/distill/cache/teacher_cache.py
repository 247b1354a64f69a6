"""A teacher whose outputs are cached per augmented view."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor

from camkd.distill.cache.records import RecordFormat
from camkd.distill.cache.store import CacheFullError, Store
from camkd.types import Prediction


class TeacherCache:
    """Teacher outputs per (epoch, sample): `get` reads them from the cache, `compute` runs the teacher and caches them.

    Outputs are encoded and decoded before their first use, so the first epoch and later ones train on the same bits.

    Args:
        teacher_fn: the frozen teacher, from images ``(N, 3, H, W)`` to a `Prediction`.
        store: the files of the cache. Without a store the teacher runs at every step.
        record_format: the encoding of outputs without a store; the store has its own.

    Attributes:
        num_computed: number of images that the teacher has processed.
    """

    def __init__(
        self,
        teacher_fn: Callable[[Tensor], Prediction],
        store: Store | None = None,
        record_format: RecordFormat | None = None,
    ) -> None:
        self.teacher_fn = teacher_fn
        self.store = store
        self.record_format = record_format if store is None else store.record_format
        self.num_computed = 0
        if store is not None:
            store.mark_used()

    def get(self, epoch: int, samples: Tensor) -> Prediction | None:
        """Return the cached outputs for samples of an epoch, on the CPU, or None if any is missing.

        Args:
            epoch: the augmented epoch.
            samples: indices of training images, ``(N,)`` int64.
        """
        if self.store is None:
            return None
        try:
            return self.store.read(epoch, samples.numpy())
        except CacheFullError:  # a truncated file cannot be extended; `compute` warns
            return None

    def compute(self, epoch: int, samples: Tensor, x: Tensor) -> Prediction:
        """Compute the teacher's outputs for a batch and cache them.

        Args:
            epoch: the augmented epoch.
            samples: indices of training images, ``(N,)`` int64.
            x: the augmented images ``(N, 3, H, W)``.
        """
        self.num_computed += len(x)
        outputs = self.teacher_fn(x)
        if self.record_format is None:
            return outputs
        records = self.record_format.encode(outputs)
        if self.store is not None:
            try:
                self.store.write(epoch, samples.numpy(), records)
            except CacheFullError as error:
                warnings.warn(f"{error} Until then the teacher runs at every step.", stacklevel=2)
        return self.record_format.decode(records).to(x.device)
