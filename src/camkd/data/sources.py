"""Registry of the built-in datasets, and functions that open a dataset by name, folder or table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from camkd.config import DataConfig
from camkd.data.cifar import CIFAR10, CIFAR100, open_cifar
from camkd.data.dataset import Dataset, Progress, cache_folder, no_progress
from camkd.data.file_names import HUGGING_FACE, is_table_name
from camkd.data.files import BadImages, open_listing
from camkd.data.hugging_face import extract
from camkd.data.listing import Listing
from camkd.data.scan import scan
from camkd.data.shapes import COUNTS, SHAPES, open_shapes
from camkd.data.table import read_table
from camkd.data.unlabeled import add_unlabeled
from camkd.data.value_range import ValueRange
from camkd.data.walker import holds_images
from camkd.types import Fit, InputError, Interpolation


@dataclass(frozen=True)
class Source:
    """Built-in dataset.

    Args:
        classes: Number of classes.
        images: Number of images in train, val and test.
        summary: Description in one line.
        open: Function ``open(size, cache, progress) -> Dataset``. Its arguments are the side of the images in pixels or
            None for the default of the dataset, the root of the cache, and a progress callback.
    """

    classes: int
    images: tuple[int, int, int]
    summary: str
    open: Callable[[int | None, Path, Progress], Dataset]


SOURCES: dict[str, Source] = {
    "shapes": Source(
        classes=len(SHAPES),
        images=(COUNTS["train"], COUNTS["val"], COUNTS["test"]),
        summary="synthetic shapes on a cluttered background, 32x32, with object masks; generated in seconds",
        open=open_shapes,
    ),
    "shapes-cue": Source(
        classes=len(SHAPES),
        images=(COUNTS["train"], COUNTS["val"], COUNTS["test"]),
        summary="shapes with a spurious cue: a colored square reveals the class in train and val, but not in test",
        open=partial(open_shapes, cue=True),
    ),
    "cifar10": Source(
        classes=10,
        images=(45_000, 5_000, 10_000),
        summary="photographs of animals and vehicles, 32x32; downloads 170 MB the first time",
        open=partial(open_cifar, CIFAR10),
    ),
    "cifar100": Source(
        classes=100,
        images=(45_000, 5_000, 10_000),
        summary="photographs of animals, plants and things, 32x32; downloads 169 MB the first time",
        open=partial(open_cifar, CIFAR100),
    ),
}
"""Built-in datasets by name. Any other name, also ``./shapes`` or ``shapes/``, is the path of a folder or table."""


MAX_SIZE = 65_535
"""Largest side of an image in pixels, that of a JPEG file."""


def open_data(
    name: str | Path,
    *,
    size: int | None = None,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
    limit: int | None = None,
    train_limit: int | None = None,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    test_only: bool = False,
    built_in: bool = False,
    group: str | None = None,
    group_regex: str | None = None,
    value_range: ValueRange | None = None,
    cache: Path | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Open a built-in dataset, a folder or a table of images. The images are stored as arrays the first time.

    Args:
        name: A name in `SOURCES`, the path of a folder, ``<class>/*`` or ``train/<class>/*``, that of a table, see
            `camkd.data.table`, or ``hf:PATH`` or ``hf:NAME``, see `camkd.data.hugging_face`.
        size: Side of the square images in pixels (default: that of the dataset; see `open_listing` for files).
        fit: ``crop`` keeps the center square of image files that are not square, ``pad`` fills up their shorter side
            with gray.
        interpolation: Filter that resizes image files, with antialiasing.
        limit: Maximum number of images per split, class-balanced.
        train_limit: Maximum number of training images, class-balanced. Validation and test stay complete.
        workers: Number of processes that decode image files (default: one per core).
        bad_images: ``fail`` raises an error for unreadable image files, ``skip`` leaves them out.
        test_only: Whether a folder or table without train is a test split: its test images, or all images if it has no
            splits. Train and val are then empty. Ignored for built-in datasets.
        built_in: Whether a name in `SOURCES` is the built-in dataset even if a folder of images has the same name.
        group: Column of a table with the group of each image, such as a patient. A group stays in one split (default:
            ``group``, if there is one).
        group_regex: Regular expression whose first capturing group, searched in the path of an image, is its group.
        value_range: The gray values that become 0 and 255, for gray image files of more than 8 bits (default:
            the range of the training images).
        cache: Root of the cache (default: ``$CAMKD_CACHE``, else ``~/.cache/camkd``).
        progress: Progress callback.

    Returns:
        The dataset. Images are memory-mapped, except that ``limit`` and ``train_limit`` copy the images of a built-in
        dataset into memory.

    Raises:
        InputError: If an argument, the folder, the table or an image is invalid, or if the dataset cannot be downloaded
            or stored. If ``name`` is a built-in dataset and also a folder of images in the current folder.

    Example:
        >>> data = open_data("shapes", limit=100)      # doctest: +SKIP
        >>> data.train.images.shape                    # doctest: +SKIP
        (100, 32, 32, 3)
    """
    for option, value in (("size", size), ("limit", limit), ("train_limit", train_limit), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} must be 1 or more, got {value}. Choose a larger number or leave it out.")
    if size is not None and size > MAX_SIZE:
        raise InputError(f"size must be at most {MAX_SIZE:,} pixels, got {size:,}. Choose a smaller number.")
    for option, choice, choices in (
        ("bad_images", bad_images, get_args(BadImages)),
        ("fit", fit, get_args(Fit)),
        ("interpolation", interpolation, get_args(Interpolation)),
    ):
        if choice not in choices:
            raise InputError(f"{option} must be {' or '.join(map(repr, choices))}, got {choice!r}. Choose one of them.")
    if group is not None and group_regex is not None:
        raise InputError(
            f"group and group_regex must not be given together, got {group!r} and {group_regex!r}. Choose one of them."
        )
    if not str(name).strip():
        raise InputError(f"data must be the name of a dataset, a folder or a table, got {str(name)!r}. Give a name.")
    cache = cache_folder(cache)
    if name in SOURCES:
        _check_square(str(name), fit, interpolation)
        _check_no_groups(str(name), group, group_regex)
        notes = () if built_in else _check_built_in(str(name))
        source = SOURCES[str(name)]
        data = source.open(size, cache, progress)
        data = replace(data, notes=(*notes, *data.notes), open_at=lambda size, _: source.open(size, cache, progress))
        data = data if limit is None else data.limited(limit)
        return data if train_limit is None else data.limited(train_limit, ("train",))
    path, notes = locate(name, cache, progress)
    open_at = partial(
        _open_files_at,
        path,
        notes,
        fit=fit,
        limit=limit,
        train_limit=train_limit,
        workers=workers,
        bad_images=bad_images,
        test_only=test_only,
        group=group,
        group_regex=group_regex,
        value_range=value_range,
        cache=cache,
        progress=progress,
    )
    return open_at(size, interpolation)


def locate(name: str | Path, cache: Path, progress: Progress) -> tuple[Path, tuple[str, ...]]:
    """Return the folder or the table of a dataset that is not built in.

    The files of a Hugging Face data set are written to the cache the first time, with a table of them.

    Args:
        name: Path of a folder or of a table, ``hf:PATH`` or ``hf:NAME``.
        cache: Root of the cache.
        progress: Progress callback.

    Returns:
        The path, and notes for the user.

    Raises:
        InputError: If the path does not exist, or if the Hugging Face data set cannot be loaded or has other columns.

    Example:
        >>> locate("pets", cache_folder(), no_progress)             # doctest: +SKIP
        (PosixPath('pets'), ())
    """
    path = Path(name).expanduser()
    if str(name).startswith(HUGGING_FACE) and not path.exists():
        table, notes = extract(str(name), cache, progress)
        return table, tuple(notes)
    if not path.exists():
        raise InputError(
            f"data must be {', '.join(SOURCES)}, a folder with one subfolder of images per class, a table of images "
            f"(.csv, .tsv), or {HUGGING_FACE}PATH or {HUGGING_FACE}NAME, got '{name}', which does not exist. Check the "
            "name."
        )
    return path, ()


def read_listing(
    path: Path,
    *,
    test_only: bool = False,
    bad_images: BadImages = "fail",
    group: str | None = None,
    group_regex: str | None = None,
) -> Listing:
    """List the image files of a folder or a table. No image is opened.

    Args:
        path: The folder or the table.
        test_only: See `open_data`.
        bad_images: Treatment of images of a table that do not exist.
        group: See `open_data`.
        group_regex: See `open_data`.

    Returns:
        The image files by split and class, and the notes for the user.

    Raises:
        InputError: If the folder or the table is invalid.

    Example:
        >>> read_listing(Path("pets")).classes             # doctest: +SKIP
        ('cat', 'dog')
    """
    if not path.is_dir() and is_table_name(path.name):
        return read_table(path, test_only=test_only, bad_images=bad_images, group=group, group_regex=group_regex)
    if group is not None:
        raise InputError(
            f"--group must be given with a table, got {group!r} for '{path}'. Add --group-regex for a folder."
        )
    return scan(path, test_only=test_only, group_regex=group_regex)


def _open_files_at(
    path: Path,
    notes: tuple[str, ...],
    size: int | None,
    interpolation: Interpolation,
    *,
    test_only: bool,
    bad_images: BadImages,
    group: str | None,
    group_regex: str | None,
    **options: Any,
) -> Dataset:
    """Open a folder or a table at a size, with the same options at every other size."""
    listing = read_listing(path, test_only=test_only, bad_images=bad_images, group=group, group_regex=group_regex)
    data = open_listing(listing, size=size, interpolation=interpolation, bad_images=bad_images, **options)
    open_at = partial(
        _open_files_at,
        path,
        notes,
        test_only=test_only,
        bad_images=bad_images,
        group=group,
        group_regex=group_regex,
        **options,
    )
    return replace(data, notes=(*notes, *data.notes), open_at=open_at)


def _check_square(name: str, fit: Fit, interpolation: Interpolation) -> None:
    """Check that a built-in dataset, whose images are neither cropped nor resized, has the default preprocessing."""
    for option, value, default in (("fit", fit, "crop"), ("interpolation", interpolation, "bicubic")):
        if value != default:
            raise InputError(
                f"{option} must be {default} for {name}, whose images are square and not resized, got {value}. Leave "
                f"{option} out."
            )


def _check_no_groups(name: str, group: str | None, group_regex: str | None) -> None:
    """Check that no groups are given for a built-in dataset, whose images are not files."""
    for option, value in (("group", group), ("group_regex", group_regex)):
        if value is not None:
            raise InputError(
                f"{option} must be given with a folder or table of images, got {value!r} for {name}. Leave it out."
            )


def _check_built_in(name: str) -> tuple[str, ...]:
    """Return a note if the current folder has a folder with the name of a built-in dataset.

    Raises:
        InputError: If the folder holds images.
    """
    folder = Path(name)
    if not folder.is_dir():
        return ()
    if holds_images(folder):
        raise InputError(
            f"data must be one dataset, got {name!r}, which is a built-in dataset and a folder of images in "
            f"'{Path.cwd()}'. Set it to ./{name} for the folder, or rename the folder to use the built-in dataset."
        )
    return (f"{name!r} is the built-in dataset, not the folder ./{name}, which holds no images",)


def open_dataset(config: DataConfig, progress: Progress = no_progress) -> Dataset:
    """Open the dataset of a configuration.

    Args:
        config: Data configuration of a run.
        progress: Progress callback.

    Returns:
        The dataset, with the unlabeled images of the configuration.

    Raises:
        InputError: If `open_data` raises it.

    Example:
        >>> data = open_dataset(DataConfig("shapes", limit=100))         # doctest: +SKIP
    """
    data = open_data(
        config.data,
        size=config.size,
        fit=config.fit,
        interpolation=config.interpolation,
        limit=config.limit,
        train_limit=config.train_limit,
        workers=config.workers,
        bad_images=config.bad_images,
        group=config.group,
        group_regex=config.group_regex,
        progress=progress,
    )
    if config.unlabeled is None:
        return data
    return add_unlabeled(
        data,
        Path(config.unlabeled),
        workers=config.workers,
        bad_images=config.bad_images,
        progress=progress,
    )
