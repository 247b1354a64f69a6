"""Commands about the teacher's answers on disk: knowledge list, fill, verify, prune."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from camkd.cli.commands.common import Command, Group, open_data, open_reporter, print_plainly
from camkd.cli.flags import add_flags, from_namespace
from camkd.config import DataConfig, DistillConfig, TrainConfig, epochs_in_budget, num_augmented_epochs
from camkd.utils.units import format_quantity, parse_quantity

VIEWED = {"epochs", "batch_size", "augment", "augment_epochs", "augment_seed", "precision", "device"}
VIEWED |= {"cache_budget", "cache_map_size"}
"""The options of a run that decide which answers it needs."""


def _precompute_options(parser: ArgumentParser) -> None:
    parser.add_argument("--teacher", type=str, default="wrn-16-4", help="a trained run, or a model trained before")
    add_flags(parser, DataConfig, TrainConfig, DistillConfig, only={*VIEWED, *DataConfig.__dataclass_fields__})
    parser.add_argument("--processes", type=int, default=1, help="how many ask at once")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and ask nothing")
    parser.add_argument("--pictures", type=str | None, default=None, help="with --dry-run: so many, like 1.28M")
    parser.add_argument("--classes", type=int | None, default=None, help="with --pictures: of so many classes")


def _precompute(options: Namespace) -> dict[str, Any]:
    from camkd.distill.cache import precompute as filling
    from camkd.distill.teacher import find_teacher
    from camkd.experiments import pipeline
    from camkd.models import is_model_name
    from camkd.runs.load_model import read_model_info
    from camkd.types import InputError

    data_config, config, lesson = (
        from_namespace(DataConfig, options),
        from_namespace(TrainConfig, options),
        from_namespace(DistillConfig, options),
    )
    pipeline.check_settings(lesson, config)
    pictures = None if options.pictures is None else parse_quantity(options.pictures, "pictures")
    numbers = {"processes": options.processes, "classes": options.classes, "size": data_config.size}
    for name, number in {**numbers, "pictures": pictures}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, but has to be 1 or more: give such a number.")
    if options.classes and not pictures:
        raise InputError("--classes goes with --pictures, which are not here: leave it out, or add --pictures.")
    if pictures and not options.dry_run:
        raise InputError("--pictures stands for pictures that are not here: add --dry-run.")
    place = None if pictures and is_model_name(options.teacher) else find_teacher(options.teacher, data_config.data)
    with open_reporter() as screen:
        config = pipeline.resolve_auto(config, watch=screen)
        if pictures:
            said = read_model_info(place) if place else None
            classes = options.classes or (len(said.classes) if said else 10)
            size = data_config.size or (said.size if said else 32)
            name = said.architecture if said else options.teacher
            cost = filling.estimate_architecture_cost(name, config, lesson, pictures, classes, size)
        else:
            assert place is not None
            job = filling.Job(place, data_config, config, lesson)
            data = open_data(data_config, screen)
            if not options.dry_run:
                try:
                    store = filling.precompute(job, data, options.processes, screen.progress)
                except KeyboardInterrupt:
                    screen.message("the answers so far are kept; the same command goes on with the rest")
                    raise
                epochs = epochs_in_budget(config, lesson, store.epoch_bytes)
                size = store.epoch_bytes * epochs
                screen.message(f"{epochs} epochs of views are known: {format_quantity(size)} in {store.folder}")
                if epochs < num_augmented_epochs(config):
                    screen.message(f"a knowledge budget of {lesson.cache_budget} has no room for more")
                return {"folder": str(store.folder), "epochs": list(range(epochs)), "bytes": size}
            cost = filling.estimate_cost(job, data, screen.progress)
        found = cost.figures
        screen.message(
            f"{found['pictures']:,} pictures x {found['epochs']} epochs x {found['bytes_per_picture']:,} bytes = "
            f"{format_quantity(found['bytes'])} ({format_quantity(found['bytes_per_epoch'])} an epoch)"
        )
        took = datetime.timedelta(seconds=round(found["seconds"]))
        screen.message(f"{took} at {found['pictures_per_second']:,.0f} pictures/s; {found['asked_before']:,} known already")
    return found


def _keys_option(parser: ArgumentParser) -> None:
    parser.add_argument("keys", type=str, nargs="*", help="the stores, by the beginning of their key (default: all)")


def _list(options: Namespace) -> dict[str, Any]:
    from camkd.cli.tables import print_table
    from camkd.distill.cache import Manifest, Store
    from camkd.types import InputError

    found, rows = {}, []
    for folder in _chosen([]):
        try:
            store = Store(folder, Manifest.read(folder))
        except InputError as error:
            print_plainly(str(error))
            continue
        said, layout, size = store.manifest, store.record_format, _bytes(folder)
        epochs = len(store.epochs())
        found[folder.name] = {
            **{name: value for name, value in vars(said).items() if name != "record_format"},
            **{"map": [layout.height, layout.width], "classes": layout.classes, "epochs": epochs, "bytes": size},
        }
        views = f"{said.augment}, seed {said.augment_seed}"
        maps = f"{layout.height}x{layout.width} {said.precision}"
        rows.append([folder.name[:12], said.architecture, said.data, views, maps, str(epochs), format_quantity(size)])
    if not options.json:
        columns = ["key", "teacher", "data", "views", "maps", "epochs", "size"]
        print_table("knowledge, least recently used first", columns, rows)
    return found


def _verify(options: Namespace) -> dict[str, Any]:
    from camkd.distill.cache import Manifest, Store
    from camkd.types import InputError

    found = {}
    with open_reporter() as screen:
        for folder in _chosen(options["keys"]):
            try:
                store = Store(folder, Manifest.read(folder))
            except InputError as error:
                screen.message(str(error))
                continue
            known = damaged = 0
            for done, epoch in enumerate(epochs := store.epochs(), 1):
                good, bad = store.verify_epoch(epoch, repair=True)
                known, damaged = known + good, damaged + bad
                screen.progress(done, len(epochs), f"verifying {folder.name[:12]}")
            found[folder.name] = {"known": known, "damaged": damaged}
            said = f"; {damaged:,} were damaged and will be asked again" if damaged else ""
            screen.message(f"{folder.name[:12]}: {known:,} answers are sound{said}")
    return found


def _prune_options(parser: ArgumentParser) -> None:
    _keys_option(parser)
    parser.add_argument(
        "--keep", type=str | None, default=None, help="remove those least recently used beyond, like 10GB"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")


def _prune(options: Namespace) -> dict[str, Any]:
    import shutil

    from camkd.types import InputError

    if not options["keys"] and options.keep is None:
        raise InputError("nothing says what to remove: name stores by their key, or give --keep with a size like 10GB.")
    going = _chosen(options["keys"])
    if options.keep is not None:
        bound, kept = parse_quantity(options.keep, "keep", "B"), sum(map(_bytes, going))
        for index, folder in enumerate(going):
            if kept <= bound:
                going = going[:index]
                break
            kept -= _bytes(folder)
    freed = sum(map(_bytes, going))
    for folder in going:
        if not options.dry_run:
            shutil.rmtree(folder)
    verb = "would free" if options.dry_run else "freed"
    print_plainly(f"{verb} {format_quantity(freed)}: {', '.join(folder.name[:12] for folder in going) or 'no store'}")
    return {"removed": [folder.name for folder in going], "bytes": freed, "dry_run": options.dry_run}


def _chosen(keys: list[str]) -> list[Path]:
    """The stores whose key begins with one of ``keys``, all without any, least recently used first."""
    from camkd.distill.cache import list_stores
    from camkd.types import InputError

    found = list_stores()
    for key in keys:
        if not any(folder.name.startswith(key) for folder in found):
            raise InputError(f"there is no knowledge store {key!r}: see 'camkd cache list'.")
    return [folder for folder in found if not keys or folder.name.startswith(tuple(keys))]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _no_options(parser: ArgumentParser) -> None:
    pass


CACHE = Group(
    "The teacher's answers on disk: list, fill, verify, prune.",
    {
        "list": Command("List the stores.", _no_options, _list),
        "precompute": Command(
            "Ask a teacher ahead of time about the views that a run will see.", _precompute_options, _precompute
        ),
        "verify": Command("Check every answer; damaged ones are forgotten and asked again.", _keys_option, _verify),
        "prune": Command("Remove stores.", _prune_options, _prune),
    },
)
