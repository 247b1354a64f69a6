"""Every data set by name: the built-in ones, and any folder of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from camkd.config import DataConfig
from camkd.data.cifar import CIFAR10, CIFAR100, open_cifar
from camkd.data.dataset import Dataset, Progress, cache_folder, no_progress
from camkd.data.folder import BadImages, open_folder
from camkd.data.shapes import COUNTS, SHAPES, open_shapes
from camkd.types import InputError


@dataclass(frozen=True)
class Source:
    """A built-in data set: what to know before opening it, and ``open(size, cache, progress)``.

    ``pictures`` counts train, val and test. ``summary`` is one line for people.
    """

    classes: int
    pictures: tuple[int, int, int]
    summary: str
    open: Callable[[int | None, Path, Progress], Dataset]


SOURCES: dict[str, Source] = {
    "shapes": Source(
        classes=len(SHAPES),
        pictures=(COUNTS["train"], COUNTS["val"], COUNTS["test"]),
        summary="drawn shapes among clutter, 32x32, with object masks; made here in seconds, no download",
        open=open_shapes,
    ),
    "shapes-cue": Source(
        classes=len(SHAPES),
        pictures=(COUNTS["train"], COUNTS["val"], COUNTS["test"]),
        summary="the same with a coloured square that gives the class away, but not in the test: who is misled?",
        open=partial(open_shapes, cue=True),
    ),
    "cifar10": Source(
        classes=10,
        pictures=(45_000, 5_000, 10_000),
        summary="photographs of animals and vehicles, 32x32; downloads 170 MB the first time",
        open=partial(open_cifar, CIFAR10),
    ),
    "cifar100": Source(
        classes=100,
        pictures=(45_000, 5_000, 10_000),
        summary="photographs of animals, plants and things, 32x32; downloads 169 MB the first time",
        open=partial(open_cifar, CIFAR100),
    ),
}
"""The built-in data sets by name; any other name is a folder of pictures."""


def open_data(
    name: str | Path,
    *,
    size: int | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    unseen: bool = False,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Open the built-in data set or the folder of pictures called ``name``; the first time, build its store.

    ``size`` is the side of the square pictures in pixels (None: the source's own), ``limit`` keeps the first
    pictures of each split, ``train_limit`` the first training pictures and all others. ``workers`` processes decode
    a folder; pictures of it that cannot be read are an error, or left out with ``bad_images="skip"``. All pictures of
    a folder without a train folder are for the test where they are ``unseen``. The store lies
    under ``cache`` (None: ``$CAMKD_CACHE``, or else ``~/.cache/camkd``). Raises `InputError` where something about
    the input has to change.

    >>> data = open_data("shapes", limit=100)      # doctest: +SKIP
    >>> data.train.images.shape                    # doctest: +SKIP
    (100, 32, 32, 3)
    """
    for option, value in (("size", size), ("limit", limit), ("train_limit", train_limit), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}, but has to be 1 or more: give such a number or none.")
    if bad_images not in ("fail", "skip"):
        raise InputError(f"bad_images is '{bad_images}', but 'fail' or 'skip' is needed: choose one of them.")
    return _open(name, size, (limit, train_limit), workers, bad_images, unseen, cache_folder(cache), progress)


def open_dataset(config: DataConfig, progress: Progress = no_progress) -> Dataset:
    """Open the pictures a run is configured with."""
    return open_data(
        config.data,
        size=config.size,
        limit=config.limit,
        train_limit=config.train_limit,
        workers=config.workers,
        bad_images=config.bad_images,
        progress=progress,
    )


def _open(
    name: str | Path,
    size: int | None,
    limits: tuple[int | None, int | None],
    workers: int | None,
    bad_images: BadImages,
    unseen: bool,
    cache: Path,
    progress: Progress,
) -> Dataset:
    limit, train_limit = limits
    if name in SOURCES:
        data = SOURCES[str(name)].open(size, cache, progress)
        data = data if limit is None else data.limited(limit)
        return data if train_limit is None else data.limited(train_limit, ("train",))
    root = Path(name).expanduser()
    if not root.exists():
        raise InputError(
            f"there is no folder and no built-in data set called '{name}': the built-in ones are "
            f"{', '.join(SOURCES)}, and anything else has to be a folder with one folder of pictures a class."
        )
    return open_folder(
        root,
        size=size,
        limit=limit,
        train_limit=train_limit,
        workers=workers,
        bad_images=bad_images,
        unseen=unseen,
        cache=cache,
        progress=progress,
    )
