"""Pictures to arrays: every data set, whatever its source, as memory-mapped pictures and labels."""

from camkd.data.sources import SOURCES, Source, open_data
from camkd.data.store import Dataset, Split, hold_out

__all__ = ["SOURCES", "Dataset", "Source", "Split", "hold_out", "open_data"]
