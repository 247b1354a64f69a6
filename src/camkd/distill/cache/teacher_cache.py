"""Compute the outputs of a teacher, or read them from the cache, per augmented view."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from camkd.distill.cache.records import RecordFormat
from camkd.distill.cache.store import CacheFullError, Store
from camkd.types import Prediction


class TeacherCache:
    """Teacher outputs per epoch and sample: `get` reads them, `compute` runs the teacher and caches its outputs.

    With a record format, computed outputs are encoded and decoded before use. Computed and cached outputs are then
    equal in every bit.

    Args:
        teacher_fn: Inference function of the frozen teacher, from images ``(N, 3, H, W)`` to a `Prediction`.
        store: Cached outputs on disk. None: nothing is cached, so the teacher runs at every step.
        record_format: Encoding of the outputs if ``store`` is None; a store has its own. None: outputs are not encoded.
        render: Function ``render(epoch, indices)`` that returns the augmented views at the teacher's image size,
            ``(N, 3, H, W)``, for one epoch or the epoch of each sample. None: the student's images have the teacher's
            size.

    Attributes:
        num_computed: Number of images that `compute` has processed.
    """

    def __init__(
        self,
        teacher_fn: Callable[[Tensor], Prediction],
        store: Store | None = None,
        record_format: RecordFormat | None = None,
        render: Callable[[int | Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.teacher_fn = teacher_fn
        self.render = render
        self.store = store
        self.record_format = record_format if store is None else store.record_format
        self.num_computed = 0
        if store is not None:
            store.mark_used()

    def get(self, epoch: int, indices: Tensor) -> Prediction | None:
        """Return the cached outputs for samples of an epoch.

        Args:
            epoch: The augmented epoch.
            indices: Indices of training images, ``(N,)`` int64.

        Returns:
            The outputs on the CPU, or None if an output is missing or corrupt.
        """
        if self.store is None:
            return None
        try:
            return self.store.read(epoch, indices.numpy())
        except CacheFullError:  # no space to extend a truncated file; `compute` warns
            return None

    def outputs(self, epochs: int | Tensor, indices: Tensor, x: Tensor) -> Prediction:
        """Return the outputs of a batch, from the cache or computed.

        If the samples are of one epoch, a batch with a missing output is computed as a whole. If they are of several
        epochs, the missing outputs are computed, each (epoch, sample) once. Cached outputs are never replaced.

        Args:
            epochs: The augmented epoch, or the augmented epoch of each sample, ``(N,)`` int64.
            indices: Indices of training images, ``(N,)`` int64.
            x: The augmented images at the student's size, ``(N, 3, H, W)``.

        Returns:
            The outputs, on the device of ``x`` if they are encoded.
        """
        if isinstance(epochs, int):
            cached = self.get(epochs, indices)
            return self.compute(epochs, indices, x) if cached is None else cached.to(x.device)
        if self.store is None:
            return self.compute(epochs, indices, x)
        records = self.store.read_samples(epochs.numpy(), indices.numpy())
        missing = np.flatnonzero(records["checksum"] == 0)
        if len(missing):
            pairs = torch.stack([epochs[missing], indices[missing]])
            _, first, inverse = np.unique(pairs.numpy(), axis=1, return_index=True, return_inverse=True)
            rows = torch.from_numpy(missing[first])
            self.num_computed += len(rows)
            computed = self.store.record_format.encode(self.predict(epochs[rows], indices[rows], x[rows.to(x.device)]))
            try:
                self.store.write_samples(epochs[rows].numpy(), indices[rows].numpy(), computed)
            except CacheFullError as error:
                warnings.warn(f"{error} Until then the teacher runs at every step.", stacklevel=2)
            records[missing] = computed[inverse.reshape(-1)]
        return self.store.record_format.decode(records).to(x.device)

    def predict(self, epoch: int | Tensor, indices: Tensor, x: Tensor) -> Prediction:
        """Compute the teacher's outputs for a batch, without encoding and caching them.

        Args:
            epoch: The augmented epoch, or the augmented epoch of each sample, ``(N,)`` int64.
            indices: Indices of training images, ``(N,)`` int64.
            x: The augmented images at the student's size, ``(N, 3, H, W)``.

        Returns:
            The outputs.
        """
        return self.teacher_fn(x if self.render is None else self.render(epoch, indices))

    def compute(self, epoch: int | Tensor, indices: Tensor, x: Tensor) -> Prediction:
        """Compute the teacher's outputs for a batch and cache them.

        Args:
            epoch: The augmented epoch. Without a store, also the augmented epoch of each sample, ``(N,)`` int64.
            indices: Indices of training images, ``(N,)`` int64.
            x: The augmented images at the student's size, ``(N, 3, H, W)``.

        Returns:
            The outputs, on the device of ``x`` if they are encoded.

        Warns:
            UserWarning: If the disk has no space for the outputs.
        """
        self.num_computed += len(x)
        outputs = self.predict(epoch, indices, x)
        if self.record_format is None:
            return outputs
        records = self.record_format.encode(outputs)
        if self.store is not None:
            assert isinstance(epoch, int)
            try:
                self.store.write(epoch, indices.numpy(), records)
            except CacheFullError as error:
                warnings.warn(f"{error} Until then the teacher runs at every step.", stacklevel=2)
        return self.record_format.decode(records).to(x.device)
