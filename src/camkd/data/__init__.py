"""Datasets as memory-mapped arrays of images and labels."""

from camkd.data.dataset import Dataset, Split, hold_out
from camkd.data.sources import SOURCES, Source, open_data

__all__ = ["SOURCES", "Dataset", "Source", "Split", "hold_out", "open_data"]
