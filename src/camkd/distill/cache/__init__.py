"""Cache of teacher outputs per augmented view.

An augmented view is a training image with the augmentation of one epoch. The cached outputs are logits and class
activation maps; features are not cached.

A store is a folder. Its name is a hash of everything that the outputs depend on: the teacher's weights and
architecture, the images, the augmentation and its seed, the format of the records, the device type, the number format
and the library versions. Each augmented epoch is one memory-mapped file of fixed-size records, whose disk space is
reserved before the first write.

A record is the cached output of one sample: a checksum, bound to epoch and sample, and the encoded outputs. A record of
zeros has not been written. A wrong checksum means that a crash interrupted the write, or that a bit flipped. In both
cases the outputs are computed again.
"""

from camkd.distill.cache.records import RecordFormat
from camkd.distill.cache.store import (
    MANIFEST,
    CacheFullError,
    CorruptCacheWarning,
    Manifest,
    Store,
    list_stores,
    store_folder,
)
from camkd.distill.cache.teacher_cache import TeacherCache
from camkd.distill.keys import cache_key

__all__ = [
    "MANIFEST",
    "CacheFullError",
    "CorruptCacheWarning",
    "Manifest",
    "RecordFormat",
    "Store",
    "TeacherCache",
    "cache_key",
    "list_stores",
    "store_folder",
]
