"""Lock a run folder, start a run, and check the configuration of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from camkd.config import RunConfig
from camkd.models.io import INFO_FILE
from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.files import load_json, lock_folder, remove_stale_temp, write_json

ACCEPTABLE = (
    "epochs",
    "lr",
    "weight_decay",
    "warmup_fraction",
    "label_smoothing",
    "grad_clip",
    "on_nan",
    "ema_decay",
)
"""Settings that a resumed run may change if ``--accept`` names them. The result then differs."""

IGNORED_ON_RESUME = ("workers", "figure_every", "tensorboard", "track", "cache_budget", "weak_teacher")
"""Settings that a resumed run may always change, because they do not influence the result.

``cache_budget`` can change the result only by reducing ``augment_epochs``, which is itself compared on resume.
"""

PROVENANCE = {
    "data_fingerprint": "images",
    "sample_weights": "weights of the images",
    "unlabeled_fingerprint": "unlabeled images",
    "teacher_weights": "teacher's weights",
    "terms": "loss terms of the method",
    "weights_file": "weights of --weights",
    "classes_file": "classes of --classes",
}
"""Entries of the provenance that must be equal on resume, and their names in error messages."""

IDENTIFIED_BY = {
    **dict.fromkeys(("data", "size", "limit", "train_limit", "bad_images", "group", "group_regex"), "data_fingerprint"),
    "unlabeled": "unlabeled_fingerprint",
    "teacher": "teacher_weights",
    "weights": "weights_file",
    "classes": "classes_file",
}
"""Settings that select images or a teacher, and the entry of the provenance that identifies what they select.

These settings may differ on resume, for example the path of a folder that moved. The entry is compared instead.
"""


@dataclass(frozen=True)
class Resume:
    """Permission to continue an existing run.

    Args:
        accept: Settings in `ACCEPTABLE` that may differ from the stored configuration of the run.
    """

    accept: tuple[str, ...] = ()


def parse_accept(names: str) -> tuple[str, ...]:
    """Parse the value of ``--accept``.

    Args:
        names: Names of settings, separated by commas, for example ``epochs,lr``.

    Returns:
        The names.

    Raises:
        InputError: If a name is not in `ACCEPTABLE`.
    """
    accepted = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in accepted:
        if name not in ACCEPTABLE:
            raise InputError(
                f"--accept must name settings among {', '.join(ACCEPTABLE)}, got {name!r}. Choose among them, or "
                "start a run in another --out."
            )
    return accepted


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Lock a run folder for this process, and remove temporary files of killed processes.

    Args:
        run: The run. Its folder is created if it does not exist.

    Raises:
        InputError: If the folder is a file, cannot be written, or is locked by another process.
    """
    if run.folder.exists() and not run.folder.is_dir():
        raise InputError(f"--out must be a folder, got the file {run.folder}. Choose another --out.")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(run.folder))
        except BlockingIOError as error:
            raise InputError(
                f"{run.folder} must not be in use, got a lock: {error.strerror}. Wait for that process, stop it, or "
                "choose another --out."
            ) from error
        except OSError as error:
            raise InputError(f"{run.folder} must be writable, got: {error.strerror}. Choose another --out.") from error
        for folder in (run.folder, *(path for path in run.folder.rglob("*") if path.is_dir())):
            remove_stale_temp(folder)
        yield


def start_or_resume(run: Run, config: RunConfig, provenance: Mapping[str, Any], resume: Resume | None) -> bool:
    """Start a run in a folder without a run, or check that the run in the folder can be resumed.

    Settings are compared by name. A setting that is missing in the stored configuration has its default. Images and
    teacher are compared by content; their new paths are stored. Accepted changes are stored if they leave an epoch to
    train. A finished run is then unfinished: its metrics are removed, and training continues from its last checkpoint.

    Args:
        run: The run; the caller has locked its folder.
        config: Configuration of the run.
        provenance: Identity of the images, the teacher's weights and the loss terms; see `PROVENANCE`.
        resume: Permission to continue an existing run. With None, the folder must not hold a run.

    Returns:
        True if there is a checkpoint to continue from.

    Raises:
        InputError: If the folder holds a run and ``resume`` is None. If the run has other settings that ``resume`` does
            not accept, or other images, teacher weights or loss terms. If all epochs are completed, so that accepted
            changes have no effect. If ``config.yaml`` is missing or corrupt.
    """
    stored_options = run.config()
    if not stored_options and run.checkpoints:
        raise InputError(
            f"{run.folder} must have a config.yaml beside its checkpoints, got none. Restore the file, or choose "
            "another --out."
        )
    if not stored_options:
        run.start(config.options(), dict(provenance))
        return False
    if resume is None:
        state = "a finished run" if run.finished else "an unfinished run"
        raise InputError(
            f"--out must be a new folder, got {run.folder}, which holds {state}. Add --resume to continue it, or "
            "choose another --out."
        )
    options = config.options()
    stored = RunConfig.from_options(stored_options, config.role).options()
    stored_provenance = run.provenance()
    different = {name for name in options if name not in IGNORED_ON_RESUME and options[name] != stored.get(name)}
    moved = {name for name, entry in IDENTIFIED_BY.items() if name in different and entry in stored_provenance}
    changed = [name for name in options if name in different - moved]
    for name in changed:
        if name not in resume.accept:
            advice = f"Add --accept {name} to continue" if name in ACCEPTABLE else "Resume with the same settings"
            raise InputError(
                f"{name} must be {stored.get(name)}, the value that {run.folder} was started with, got "
                f"{options[name]}. {advice}, or choose another --out."
            )
    for name, description in PROVENANCE.items():
        if name in stored_provenance and stored_provenance[name] != provenance.get(name):
            names = [option for option in options if option in moved and IDENTIFIED_BY[option] == name]
            before, after = (
                ", ".join(f"{option} {values[option]}" for option in names) for values in (stored, options)
            )
            raise InputError(
                f"The {description} must be those that {run.folder} was started with{before and f' ({before})'}, got "
                f"other {description}{after and f' ({after})'}. Resume with the same {description}, or choose another "
                "--out."
            )
    if changed:
        _check_epochs_left(run, changed, options["epochs"])
        run.metrics_file.unlink(missing_ok=True)
    if different:
        run.update_config({name: options[name] for name in options if name in different})
    paths = {name: options[name] for name in ("data", "teacher") if name in moved}
    info_file = run.folder / INFO_FILE
    if paths and info_file.exists():
        write_json(info_file, {**load_json(info_file.read_text(encoding="utf-8")), **paths})
    return bool(run.checkpoints)


def _check_epochs_left(run: Run, changed: Sequence[str], epochs: int) -> None:
    """Check that an epoch is left to train with the changed settings."""
    completed = run.completed_epochs()
    if epochs <= completed:
        raise InputError(
            f"epochs must be more than {completed}, the number of completed epochs of {run.folder}, for a change of "
            f"{', '.join(changed)} to have an effect, got {epochs}. Raise --epochs with --accept "
            f"{','.join(dict.fromkeys(('epochs', *changed)))}, or resume with the same settings."
        )
    if run.finished and not run.checkpoints:
        raise InputError(
            f"{run.folder} must have checkpoints to be trained for more epochs, got none. Restore them, or choose "
            "another --out."
        )
