"""The commands ``cache list|precompute|verify|prune``: cached outputs of teachers and features of networks on disk."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, Group, open_data, open_reporter
from camkd.cli.flags import add_flags, from_namespace
from camkd.cli.streams import print_message
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig, epochs_in_budget, num_augmented_epochs
from camkd.utils.units import format_quantity, parse_quantity

if TYPE_CHECKING:
    from camkd.cli.progress import ProgressReporter
    from camkd.data.dataset import Dataset

CACHE_OPTIONS = {"epochs", "batch_size", "augment", "augment_epochs", "augment_seed", "precision", "device"}
"""Training options that determine which teacher outputs a run needs."""


def _add_precompute_options(parser: ArgumentParser) -> None:
    add_flags(parser, DataConfig)
    add_flags(parser, TrainConfig, only=CACHE_OPTIONS)
    add_flags(parser, DistillConfig, exclude={"method", "weak_teacher"})
    parser.add_argument("--processes", type=int, default=1, help="number of processes, which share the CPU cores")
    parser.add_argument("--dry-run", action="store_true", help="only estimate size and time")
    parser.add_argument(
        "--images", type=str | None, default=None, help="with --dry-run: number of training images, like 1.28M"
    )
    parser.add_argument("--classes", type=int | None, default=None, help="with --images: number of classes")


def _precompute(options: Namespace) -> dict[str, Any]:
    from camkd.distill.cache import precompute
    from camkd.distill.teacher import check_default_teacher, find_teacher
    from camkd.experiments import pipeline
    from camkd.models import is_model_name
    from camkd.runs.loading import read_model_info
    from camkd.types import InputError

    config = RunConfig(
        from_namespace(DataConfig, options),
        from_namespace(TrainConfig, options),
        from_namespace(DistillConfig, options),
    )
    pipeline.check_config(config)
    images = None if options.images is None else parse_quantity(options.images, "images")
    numbers = {"processes": options.processes, "classes": options.classes, "size": options.size, "images": images}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InputError(f"--{name} must be 1 or more, got {number}. Choose a larger number.")
    if options.classes and not images:
        raise InputError(
            f"--classes must be given with --images, got --classes {options.classes} without it. Add --images."
        )
    if images and not options.dry_run:
        raise InputError(
            f"--images must be given with --dry-run, got --images {options.images} without it. Add --dry-run."
        )
    is_untrained = bool(images) and is_model_name(options.teacher)
    teacher = None if is_untrained else find_teacher(options.teacher, options.data)
    if teacher is not None:
        config = replace(config, distill=replace(config.distill, teacher=str(teacher)))
    with open_reporter() as reporter:
        if images:
            config = pipeline.resolve_precision(config, [reporter])
            info = read_model_info(teacher) if teacher else None
            classes = options.classes or (len(info.classes) if info else 10)
            size = options.size or (info.size if info else 32)
            architecture = info.architecture if info else options.teacher
            cost = precompute.estimate_architecture_cost(architecture, config, images, classes, size)
        else:
            data = open_data(config.data, reporter)
            assert teacher is not None
            check_default_teacher(options.teacher, teacher, options.data, data.labeled.source_fingerprint)
            config = pipeline.resolve_settings(config, data, callbacks=[reporter])
            if not options.dry_run:
                return _compute_outputs(config, data, options.processes, reporter)
            cost = precompute.estimate_cost(config, data, reporter.progress)
        result = cost.summary()
        reporter.message(
            f"{result['images']:,} images x {result['epochs']} epochs x {result['bytes_per_image']:,} bytes = "
            f"{format_quantity(result['bytes'])} ({format_quantity(result['bytes_per_epoch'])} per epoch)"
        )
        duration = datetime.timedelta(seconds=round(result["seconds"]))
        reporter.message(
            f"{duration} at {result['images_per_second']:,.0f} images/s; {result['computed_before']:,} computed before"
        )
    return result


def _compute_outputs(config: RunConfig, data: Dataset, processes: int, reporter: ProgressReporter) -> dict[str, Any]:
    """Compute the missing teacher outputs and print the size of the cache."""
    from camkd.distill.cache.precompute import precompute

    try:
        store = precompute(config, data, processes, reporter.progress)
    except KeyboardInterrupt:
        reporter.message("computed outputs are kept; the same command computes the rest")
        raise
    epochs = epochs_in_budget(config, store.epoch_bytes)
    size = store.epoch_bytes * epochs
    reporter.message(f"{epochs} augmented epochs are cached: {format_quantity(size)} in {store.folder}")
    if epochs < num_augmented_epochs(config.train):
        reporter.message(f"the cache budget of {config.distill.cache_budget} is full")
    return {"folder": str(store.folder), "epochs": list(range(epochs)), "bytes": size}


def _add_keys_option(parser: ArgumentParser) -> None:
    parser.add_argument("keys", type=str, nargs="*", help="the first characters of keys (default: all)")


def _list(options: Namespace) -> dict[str, Any]:
    from camkd.cli.tables import print_table
    from camkd.distill.cache import Manifest, Store
    from camkd.types import InputError

    result: dict[str, Any] = {}
    rows = []
    for folder in _select_stores([]):
        if _holds_features(folder):
            try:
                result[folder.name] = _describe_features(folder)
            except (ValueError, KeyError, TypeError) as error:
                print_message(f"{folder} must have an intact features.json, got an error: {error}. Prune it.")
                continue
            rows.append(_feature_row(folder.name, result[folder.name]))
            continue
        try:
            store = Store(folder, Manifest.read(folder))
        except InputError as error:
            print_message(str(error))
            continue
        manifest = store.manifest
        record_format = store.record_format
        size = _folder_bytes(folder)
        epochs = len(store.epochs())
        result[folder.name] = {
            "kind": "outputs",
            "teacher": manifest.teacher,
            "architecture": manifest.architecture,
            "data": manifest.data,
            "augment": manifest.augment,
            "augment_seed": manifest.augment_seed,
            "precision": manifest.precision,
            "num_samples": manifest.num_samples,
            "map": [record_format.height, record_format.width],
            "classes": record_format.classes,
            "epochs": epochs,
            "bytes": size,
        }
        rows.append(
            [
                folder.name[:12],
                manifest.architecture,
                manifest.data,
                f"{manifest.augment}, seed {manifest.augment_seed}",
                f"{record_format.height}x{record_format.width} {manifest.precision}",
                str(epochs),
                format_quantity(size),
            ]
        )
    if not options.json:
        columns = ["key", "network", "data", "augmentation", "content", "epochs", "size"]
        print_table("cached outputs and features, least recently used first", columns, rows)
    return result


def _holds_features(folder: Path) -> bool:
    """Return True for a cache of features, False for one of teacher outputs."""
    from camkd.train.feature_cache import feature_folder

    return folder.parent == feature_folder("")


def _describe_features(folder: Path) -> dict[str, Any]:
    """Describe a cache of features as JSON values."""
    from camkd.train.feature_cache import DESCRIPTION
    from camkd.utils.files import load_json

    description = load_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return {
        "kind": "features",
        "architecture": description["architecture"],
        "image_size": description["images"]["size"],
        "augmentation": description["augmentation"],
        "augment_seed": description["augmentation_seed"],
        "precision": description["precision"],
        "views": len(list(folder.glob("train-*.bin"))),
        "bytes": _folder_bytes(folder),
    }


def _feature_row(key: str, features: dict[str, Any]) -> list[str]:
    """Return the table row of a cache of features."""
    return [
        key[:12],
        features["architecture"],
        f"{features['image_size']} pixels",
        f"seed {features['augment_seed']}",
        f"features {features['precision']}",
        str(features["views"]),
        format_quantity(features["bytes"]),
    ]


def _verify(options: Namespace) -> dict[str, Any]:
    from camkd.distill.cache import Manifest, Store
    from camkd.types import InputError

    result = {}
    with open_reporter() as reporter:
        for folder in _select_stores(options["keys"]):
            if _holds_features(folder):
                continue  # `camkd teacher` verifies the checksums of features when it reads them
            try:
                store = Store(folder, Manifest.read(folder))
            except InputError as error:
                reporter.message(str(error))
                continue
            epochs = store.epochs()
            valid = 0
            corrupt = 0
            for done, epoch in enumerate(epochs, 1):
                epoch_valid, epoch_corrupt = store.verify_epoch(epoch, repair=True)
                valid += epoch_valid
                corrupt += epoch_corrupt
                reporter.progress(done, len(epochs), f"verifying {folder.name[:12]}")
            result[folder.name] = {"valid": valid, "corrupt": corrupt}
            details = f"; {corrupt:,} corrupt outputs were removed and will be recomputed" if corrupt else ""
            reporter.message(f"{folder.name[:12]}: {valid:,} outputs are valid{details}")
    return result


def _add_prune_options(parser: ArgumentParser) -> None:
    _add_keys_option(parser)
    parser.add_argument(
        "--keep",
        type=str | None,
        default=None,
        help="size to keep, like 10GB; the least recently used caches are removed first",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the caches that would be removed")


def _prune(options: Namespace) -> dict[str, Any]:
    import shutil

    from camkd.types import InputError

    if not options["keys"] and options.keep is None:
        raise InputError(
            "'camkd cache prune' must have keys or --keep, got neither. Name caches, or give a size like 10GB."
        )
    folders = _select_stores(options["keys"])
    if options.keep is not None:
        max_bytes = parse_quantity(options.keep, "keep", "B")
        kept_bytes = sum(map(_folder_bytes, folders))
        for index, folder in enumerate(folders):
            if kept_bytes <= max_bytes:
                folders = folders[:index]
                break
            kept_bytes -= _folder_bytes(folder)
    freed_bytes = sum(map(_folder_bytes, folders))
    for folder in folders:
        if not options.dry_run:
            shutil.rmtree(folder)
    verb = "would free" if options.dry_run else "freed"
    names = ", ".join(folder.name[:12] for folder in folders) or "no cache"
    print_message(f"{verb} {format_quantity(freed_bytes)}: {names}")
    return {"removed": [folder.name for folder in folders], "bytes": freed_bytes, "dry_run": options.dry_run}


def _select_stores(keys: list[str]) -> list[Path]:
    """List the caches whose key starts with one of ``keys``, or all caches, least recently used first."""
    from camkd.distill.cache import MANIFEST, list_stores
    from camkd.train.feature_cache import DESCRIPTION, list_feature_stores
    from camkd.types import InputError

    times = {folder: (folder / MANIFEST).stat().st_mtime for folder in list_stores()}
    times |= {folder: (folder / DESCRIPTION).stat().st_mtime for folder in list_feature_stores()}
    folders = sorted(times, key=lambda folder: times[folder])
    for key in keys:
        if not any(folder.name.startswith(key) for folder in folders):
            raise InputError(f"A key must be one of 'camkd cache list', got {key!r}. Choose one of them.")
    return [folder for folder in folders if not keys or folder.name.startswith(tuple(keys))]


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _no_options(parser: ArgumentParser) -> None:
    pass


CACHE = Group(
    "Cached outputs of teachers and features of networks on disk: list, precompute, verify, prune.",
    {
        "list": Command("List the caches.", _no_options, _list),
        "precompute": Command("Compute teacher outputs before training.", _add_precompute_options, _precompute),
        "verify": Command("Verify the checksums of outputs; corrupt outputs are removed.", _add_keys_option, _verify),
        "prune": Command("Remove caches.", _add_prune_options, _prune),
    },
)
