"""What one does with a trained model: measure it again, look where it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from camkd.data.dataset import Dataset, Progress
from camkd.data.sources import SOURCES, open_data
from camkd.distill.teacher import find_teacher, format_names, load_teacher
from camkd.evaluate import Evaluation, measure
from camkd.explain.explain import explain_batches
from camkd.explain.files import (
    check_figure_size,
    find_image_files,
    iter_decoded,
    output_format,
    prediction_records,
    write_figure,
    write_maps,
    write_overlays,
    write_records,
)
from camkd.models.io import INFO_FILE, ModelInfo
from camkd.runs.folder import Run
from camkd.runs.load_model import find_model_folder, load, read_model_info, subject
from camkd.types import InputError
from camkd.utils.devices import pick_device


def reevaluate(
    source: str, data: str | None, teacher: str | None, device: str, progress: Progress, note: Callable[[str], None]
) -> Evaluation:
    """Measure a trained model on the test pictures it was made for, or on those of ``data``.

    A ``note`` says which those of ``data`` are, and that the run's own have changed since. The model is compared with
    its teacher where that is still there. Raises ``InputError`` where the classes differ.
    """
    said, pictures = read_model_info(source), _measured(source, data, progress)
    if data is not None:
        which = "the {:,} test" if len(pictures.train) else "all {:,}"
        note(f"measured on {which.format(len(pictures.test))} pictures of {data!r}")
        for line in pictures.notes:
            note(f"  {line}")
    elif pictures.fingerprint != said.data_fingerprint:
        note(
            f"the pictures in {said.data!r} are not those that {source!r} was trained on, bit for bit: it may have "
            "learnt from some that are test pictures now"
        )
    model = load(source).to(pick_device(device))
    place = find_recorded_teacher(said, teacher)
    known = load_teacher(place, pictures, device).test_predictions if place else None
    measured = measure(model, pictures, known)
    return measured._replace(metrics={**measured.metrics, "params": said.params, "macs": said.macs})


def _measured(source: str, data: str | None, progress: Progress) -> Dataset:
    """What `reevaluate` measures: of ``data`` without splits all pictures, unless the run was trained on these."""
    if data is None:
        return open_model_data(source, None, progress)
    pictures = _opened(source, data, progress, unseen=True)
    if not len(pictures.train):
        with suppress(InputError):  # where it could not be trained on, it was not
            own = _opened(source, data, progress, as_trained=True)
            said = read_model_info(source)
            same = Path(data).expanduser().resolve() == Path(said.data).expanduser().resolve()
            return own if same or own.fingerprint == said.data_fingerprint else pictures
    return pictures


def open_model_data(source: str, data: str | None, progress: Progress) -> Dataset:
    """The pictures a trained model was made for, or those of ``data`` at its size.

    Raises ``InputError`` where their classes are not those the model knows.
    """
    said = read_model_info(source)
    if data is None and said.data not in SOURCES and not Path(said.data).expanduser().exists():
        raise InputError(
            f"the pictures {said.data!r} that {source!r} was trained on are not here: give --data with their folder."
        )
    return _opened(source, data or said.data, progress, as_trained=data is None)


def _opened(source: str, data: str, progress: Progress, *, as_trained: bool = False, unseen: bool = False) -> Dataset:
    """``data`` at the size of the model, with the limits of its run where it is opened ``as_trained``."""
    said, told = read_model_info(source), Run(find_model_folder(source)).config()
    pictures = open_data(
        data,
        size=said.size,
        limit=told.get("limit") if as_trained else None,
        train_limit=told.get("train_limit") if as_trained else None,
        bad_images=told.get("bad_images", "fail"),
        unseen=unseen,
        progress=progress,
    )
    if pictures.classes != said.classes:
        raise InputError(
            f"{source!r} knows the classes {format_names(said.classes)}, but {data} has "
            f"{format_names(pictures.classes)}: give pictures of its own classes."
        )
    return pictures


def explain_files(
    source: str,
    images: Sequence[str],
    out: Path,
    teacher: str | None,
    progress: Progress,
    *,
    method: str = "cam",
    layer: str | None = None,
    top: int = 1,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Write where a model looks in picture files, with its teacher beside it where that is at hand, to ``out``.

    ``images`` are pictures, or folders of them. What ``out`` is called says what is written: ``.png`` a figure,
    ``.npz`` or ``.json`` the maps, a folder an overlay a picture, of the model alone. The maps are of the ``top``
    likeliest classes, the teacher's where there is one. ``layer`` is one of the model's, not of its teacher's. Returns
    what `camkd.explain.files.prediction_records` says.
    """
    kind, paths, model = output_format(out), find_image_files(images), subject(source).to(pick_device(device))
    said = model.info
    assert said is not None
    if not 1 <= top <= len(said.classes):
        raise InputError(f"--top is {top}, but {source!r} knows {len(said.classes)} classes: give 1 to that.")
    place = matching_teacher(said, teacher)
    title = "model" if place and said.role == "teacher" else said.role
    models: dict[str, nn.Module] = {title: model}
    if place and kind != "folder":
        models = {"teacher": load(place).to(pick_device(device)), **models}
    if kind == "png":
        check_figure_size(len(paths), top * len(models))
    layers = {title: layer} if layer else None
    looks = explain_batches(models, iter_decoded(paths, said.size, progress), top=top, method=method, layers=layers)
    if kind == "folder":
        write_overlays(out, paths, looks.by[title].maps, progress)
    else:
        write = {"png": write_figure, "npz": write_maps, "json": write_records}[kind]
        write(out, paths, looks, said.classes)
    return prediction_records(paths, looks, said.classes)


def matching_teacher(said: ModelInfo, teacher: str | None) -> Path | None:
    """Find the teacher of a model, or None where the recorded teacher has other classes or another image size.

    Raises ``InputError`` where that is so of the ``teacher`` that was asked for.
    """
    place = find_recorded_teacher(said, teacher)
    if place:
        theirs = read_model_info(place)
        if (theirs.classes, theirs.size) != (said.classes, said.size):
            if teacher is None:
                return None
            raise InputError(
                f"{str(place)!r} is no teacher of this model, as its classes or its picture size differ: "
                "give --teacher another run."
            )
    return place


def find_recorded_teacher(said: ModelInfo, teacher: str | None) -> Path | None:
    """The folder of ``teacher``, or else of the one a student learnt from where it is still there."""
    if teacher is not None:
        return find_teacher(teacher, said.data)
    return Path(said.teacher) if said.teacher and (Path(said.teacher) / INFO_FILE).exists() else None
