"""Whose a run folder is: one process at a time, and one configuration, whatever may change on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.files import lock_folder, remove_stale_temp

ACCEPTABLE = ("epochs", "lr", "weight_decay", "warmup_fraction", "label_smoothing", "grad_clip", "on_nan", "ema_decay")
"""Settings that may change on the way where ``accept`` names them: the run is then another than either alone."""

IGNORED_ON_RESUME = ("workers", "figure_every", "tensorboard", "cache_budget")
"""Settings that change no result, so that a run may go on with others."""

ORIGINS = {"pictures": "the pictures", "teacher_weights": "the teacher's weights", "terms": "the method's terms"}


def parse_accept(names: str) -> tuple[str, ...]:
    """The settings in ``epochs,lr`` that a resumed run may change. Raises ``InputError`` for another."""
    found = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in found:
        if name not in ACCEPTABLE:
            raise InputError(f"--accept cannot take {name!r}: choose among {', '.join(ACCEPTABLE)}.")
    return found


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Be the only one that works on a run, in a folder that can be written; a killed one's half-written files go."""
    if run.folder.exists() and not run.folder.is_dir():
        raise InputError(f"{run.folder} is a file, but a run is a folder: give another --out.")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(run.folder))
        except BlockingIOError as error:
            raise InputError(f"{run.folder}: {error.strerror}; wait for it, stop it, or give another --out.") from error
        except OSError as error:
            raise InputError(f"{run.folder} cannot be written ({error.strerror}): give another --out.") from error
        for folder in (run.folder, *(place for place in run.folder.rglob("*") if place.is_dir())):
            remove_stale_temp(folder)
        yield


def start_or_resume(
    run: Run, settings: dict[str, Any], origin: dict[str, Any], resume: bool, accept: Collection[str] = ()
) -> bool:
    """Take the folder for this run; whether there is a checkpoint to go on from."""
    before = run.config()
    if not before and run.checkpoints:
        raise InputError(f"{run.folder} has checkpoints and no configuration: bring that back, or give another --out.")
    if not before:
        run.start(settings, origin)
        return False
    if not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        raise InputError(f"{run.folder} holds {state}: add --resume to go on with it, or give another --out.")
    changed = [name for name in settings if name not in IGNORED_ON_RESUME and settings[name] != before.get(name)]
    for name in changed:
        if name not in accept:
            how = f"add --accept {name} to go on with it" if name in ACCEPTABLE else "resume with the same settings"
            raise InputError(
                f"{run.folder} was started with {name} = {before.get(name)}, now it is {settings[name]}: "
                f"{how}, or give another --out."
            )
    begun_from = run.provenance()
    for name, words in ORIGINS.items():
        if name in begun_from and begun_from[name] != origin[name]:
            raise InputError(f"{words} are not those {run.folder} was started with: give another --out.")
    if changed and not run.finished:
        run.update_config({name: settings[name] for name in changed})
    return bool(run.checkpoints)
