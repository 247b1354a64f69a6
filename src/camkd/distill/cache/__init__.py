"""Cache of teacher outputs per augmented view.

A store is a folder named by a hash of everything the outputs depend on: the teacher's weights and architecture, the
images, the augmentation and its seed, the map size, the number format and the library versions. Each augmented epoch is
one memory-mapped file of fixed-size records, with its disk space reserved before the first write.

A record is a checksum, bound to epoch and sample, and the encoded outputs. A record of zeros is not computed yet. A
wrong checksum means a write that a crash cut short, or a flipped bit. In both cases the outputs are computed again.
"""

from camkd.distill.cache.keys import cache_key
from camkd.distill.cache.records import RecordFormat
from camkd.distill.cache.store import CacheFullError, CorruptCacheWarning, Manifest, Store, list_stores, store_folder
from camkd.distill.cache.teacher_cache import TeacherCache

__all__ = [
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
