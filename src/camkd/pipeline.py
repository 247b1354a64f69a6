"""From pictures to a finished run folder: a teacher, a student with or without one, or all three and a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camkd import findings
from camkd.cams import predict
from camkd.config import DataConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.data.store import Dataset, Progress, Split, cache_folder
from camkd.data.views import policy_named
from camkd.evaluate import Examination, evaluate, examine
from camkd.explain import explain, read_pictures, specimens
from camkd.files import write_json
from camkd.findings import verdict
from camkd.knowledge import Knowledge, epochs_within, key_of, record
from camkd.models import MODELS, build, entry
from camkd.models.modes import evaluating
from camkd.models.profile import profile
from camkd.objectives import Objective, objective
from camkd.report import write_report
from camkd.runs import Description, Run, describe, load, locate, save
from camkd.train import Ask, Watch, fit, pick_device, pick_precision
from camkd.types import InputError, Prediction


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from, frozen, with its answers to the test pictures."""

    model: nn.Module
    folder: Path
    examination: Examination


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn, beside the pictures: a method and its options."""

    method: str = "plain"
    cam_schedule: str | None = None
    knowledge_budget: float = 8.0

    def objective(self, config: TrainConfig) -> Objective:
        return objective(self.method, smoothing=config.smoothing, cam_schedule=self.cam_schedule)


Range = tuple[str, Callable[[float], bool]]

AT_LEAST_ONE: Range = ("1 or more", lambda value: value >= 1)
NOT_NEGATIVE: Range = ("0 or more", lambda value: value >= 0)
POSITIVE: Range = ("more than 0", lambda value: value > 0)
SHARE: Range = ("between 0 and 1", lambda value: 0 <= value <= 1)
SEED: Range = ("between 0 and 4,294,967,295", lambda value: 0 <= value < 1 << 32)

RANGES: dict[str, Range] = {
    "epochs": AT_LEAST_ONE,
    "teacher_epochs": AT_LEAST_ONE,
    "batch_size": AT_LEAST_ONE,
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup": SHARE,
    "smoothing": SHARE,
    "clip": POSITIVE,
    "ema": SHARE,
    "view_epochs": AT_LEAST_ONE,
    "view_seed": SEED,
    "seed": SEED,
    "figure_every": NOT_NEGATIVE,
    "knowledge_budget": NOT_NEGATIVE,
}
"""What each number a run is told has to be."""


def check_names(model: str, lesson: Lesson, config: TrainConfig, teacher_epochs: int | None = None) -> None:
    """Say before any work if there is no such model, method, schedule, view policy or device: ``InputError``.

    So it does where a number is out of its range.
    """
    entry(model)
    lesson.objective(config)
    policy_named(config.views)
    check_numbers({**asdict(config), **asdict(lesson), "teacher_epochs": teacher_epochs})
    pick_device(config.device)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for the first of ``values`` that is out of its range in ``RANGES``, or is not finite."""
    for name, (wanted, holds) in RANGES.items():
        value = values.get(name)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise InputError(f"{name} is {value}, but has to be {wanted}: give such a number.")


def default_folder(data: str, *names: str) -> Path:
    """Where a run goes that is given no place: ``runs/<data>/<names>``."""
    return Path("runs", Path(data).name, "-".join(names))


def open_pictures(config: DataConfig, progress: Progress) -> Dataset:
    """Open the configured pictures, building their store the first time."""
    return open_data(
        config.data,
        size=config.size,
        limit=config.limit,
        workers=config.workers,
        bad_images=config.bad_images,
        progress=progress,
    )


def find_teacher(name: str, data: str) -> Path:
    """The folder of a trained teacher: a run, a shipped name, or a model name trained on ``data`` at its default place.

    Raises ``InputError`` with the command that trains it where there is none.
    """
    default = default_folder(data, "teacher", name)
    for place in (Path(name), Path(name) / "teacher", default):
        if (place / "model.json").exists():
            return place
    if name in MODELS:
        raise InputError(
            f"there is no trained {name} for {data!r} in {default}: train it with "
            f"'camkd teacher --data {data} --model {name}', or give --teacher the folder of one."
        )
    return locate(name)


def adopt_teacher(folder: Path, data: Dataset, device: str) -> Teacher:
    """Load a teacher, check that it knows these classes, freeze it and ask it about the test pictures."""
    said = describe(folder)
    size = data.train.images.shape[1]
    if said.classes != data.classes:
        raise InputError(
            f"the teacher in {folder} knows the classes {_listed(said.classes)}, but the pictures have "
            f"{_listed(data.classes)}: train a teacher on these pictures."
        )
    if said.size != size:
        raise InputError(
            f"the teacher in {folder} was trained on {said.size} pixel pictures, not {size}: add --size {said.size}."
        )
    model = load(folder).requires_grad_(False).to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, folder, examine(model, data.test))


def train_run(
    folder: Path,
    data: Dataset,
    model_name: str,
    role: str,
    configs: tuple[DataConfig, TrainConfig],
    lesson: Lesson,
    teacher: Teacher | None = None,
    *,
    resume: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train, evaluate and draw one network; everything is in ``folder`` afterwards. Returns its metrics.

    With ``resume`` a finished run is returned as it is and an unfinished one goes on. Raises ``InputError`` where the
    folder holds a run and ``resume`` is not given, or one with another configuration.
    """
    run, (data_config, config) = Run(folder), configs
    place = str(teacher.folder.resolve()) if teacher else None
    settings = _settings(model_name, role, configs, lesson, place)
    goal = lesson.objective(config)
    started = _claim(run, settings, resume)
    if run.finished:
        return run.read_metrics()
    size = int(data.train.images.shape[1])
    model = build(model_name, len(data.classes), size, config.seed)
    model.normalise_with(*channel_statistics(data.train.images))
    cost = profile(model, size)
    ask = _asking(teacher, data, config, lesson, goal) if teacher and goal.asks_teacher else None
    best = fit(
        model,
        data,
        goal,
        config,
        run,
        teacher=teacher.model if teacher else None,
        ask=ask,
        resume=started,
        watch=_Drawing(run, data, teacher, role, config, watch or Watch()),
    )
    save(
        best,
        folder,
        Description(
            architecture=model_name,
            classes=data.classes,
            size=size,
            params=cost.params,
            macs=cost.macs,
            role=role,
            method=lesson.method,
            data=data_config.data,
            data_fingerprint=data.fingerprint,
            seed=config.seed,
            teacher=place,
        ),
    )
    return finish(run, data, best, teacher)


def finish(run: Run, data: Dataset, model: nn.Module, teacher: Teacher | None) -> dict[str, Any]:
    """Evaluate a trained network on the test pictures, draw its maps, write ``metrics.json`` and return it."""
    said, history = describe(run.folder), run.read_history()
    own = examine(model, data.test, teacher.examination.shown if teacher else None)
    labels = torch.from_numpy(np.array(data.test.labels))
    latest_first = reversed(history)  # of equals `fit` keeps the later
    best: dict[str, Any] = max(latest_first, key=lambda row: row["val_accuracy"], default={})
    seconds = sum(row["seconds"] for row in history)
    figures = {
        **evaluate(own, labels, data.classes, teacher.examination if teacher else None),
        "val_accuracy": best.get("val_accuracy"),
        "best_epoch": best.get("epoch"),
        "params": said.params,
        "macs": said.macs,
        "epochs": len(history),
        "seconds": seconds,
        "images_per_second": len(history) * len(data.train) / seconds if seconds else None,
        "test_pictures": len(data.test),
    }
    _draw(
        run.figures / "cams.png",
        data.test,
        data.classes,
        {**({"teacher": teacher.model} if teacher else {}), said.role: model},
    )
    write_json(run.metrics, figures)
    return figures


def train_all(
    folder: Path,
    data: Dataset,
    teacher_name: str,
    student_name: str,
    configs: tuple[DataConfig, TrainConfig],
    lesson: Lesson,
    *,
    teacher_epochs: int | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> dict[str, dict[str, Any]]:
    """Teacher (unless ``teacher_name`` is a trained one), undistilled control, distilled student, report."""
    data_config, config = configs
    epochs = config.epochs if teacher_epochs is None else teacher_epochs
    teacher_config = replace(config, epochs=epochs, smoothing=0.0)
    taught: dict[str, dict[str, Any]] = {}
    if teacher_name in MODELS:
        place = folder / "teacher"
        taught["teacher"] = train_run(
            place,
            data,
            teacher_name,
            "teacher",
            (data_config, teacher_config),
            Lesson(),
            resume=resume,
            watch=watch,
        )
    else:
        place = find_teacher(teacher_name, data_config.data)
        taught["teacher"] = Run(place).read_metrics()
    teacher = adopt_teacher(place, data, config.device)
    for role, what in (("control", Lesson()), ("student", lesson)):
        taught[role] = train_run(
            folder / role, data, student_name, role, configs, what, teacher, resume=resume, watch=watch
        )
    _draw(
        folder / "student" / "figures" / "cams.png",
        data.test,
        data.classes,
        {"teacher": teacher.model, "student": load(folder / "student"), "control": load(folder / "control")},
    )
    write_report([place, folder / "control", folder / "student"], folder / "report.html")
    return taught


def summary(folder: Path) -> str:
    """Whether distillation helped, and by how much, in one line."""
    student, control = (Run(folder / role).read_metrics() for role in ("student", "control"))
    said = verdict(findings.Run("student", metrics=student), findings.Run("control", metrics=control))
    return f"{said.sentence} {said.grounds}"


def reevaluate(source: str, data: str | None, teacher: str | None, device: str, progress: Progress) -> dict[str, Any]:
    """Measure a trained model on the test pictures it was made for, or on those of ``data``.

    It is compared with its teacher where that is still there. Raises ``InputError`` where the classes differ.
    """
    said, told = describe(source), Run(locate(source)).config()
    pictures = open_data(
        data or said.data,
        size=said.size,
        limit=None if data else told.get("limit"),
        bad_images=told.get("bad_images", "fail"),
        progress=progress,
    )
    if pictures.classes != said.classes:
        raise InputError(
            f"{source!r} knows the classes {_listed(said.classes)}, but {data or said.data} has "
            f"{_listed(pictures.classes)}: evaluate it on pictures of its own classes."
        )
    model = load(source).to(pick_device(device))
    place = _teacher_of(said, teacher)
    known = adopt_teacher(place, pictures, device).examination if place else None
    own = examine(model, pictures.test, known.shown if known else None)
    labels = torch.from_numpy(np.array(pictures.test.labels))
    return {
        **evaluate(own, labels, pictures.classes, known),
        "params": said.params,
        "macs": said.macs,
        "test_pictures": len(pictures.test),
    }


def explain_files(source: str, images: Sequence[str], out: Path, teacher: str | None) -> list[dict[str, Any]]:
    """Draw where a trained model looks in picture files, with its teacher beside it where that is at hand."""
    said = describe(source)
    pixels = read_pictures(images, said.size)
    models = {said.role: load(source)}
    place = _teacher_of(said, teacher)
    if place:
        theirs = describe(place)
        if (theirs.classes, theirs.size) != (said.classes, said.size):
            raise InputError(f"{str(place)!r} is no teacher of {source!r}: its classes or its picture size differ.")
        models = {"teacher": load(place), **models}
    return explain(pixels, models, said.classes, out)


def _teacher_of(said: Description, teacher: str | None) -> Path | None:
    """The folder of ``teacher``, or else of the one a student learnt from where it is still there."""
    if teacher is not None:
        return find_teacher(teacher, said.data)
    return Path(said.teacher) if said.teacher and (Path(said.teacher) / "model.json").exists() else None


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour over all pictures ``(N, H, W, 3)``, in units of 0..1."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024].reshape(-1, 3).astype(np.float32) / 255
        total += pixels.sum(0, dtype=np.float64)
        squares += np.square(pixels).sum(0, dtype=np.float64)
        count += len(pixels)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return mean.tolist(), deviation.tolist()


def _settings(
    model_name: str, role: str, configs: tuple[DataConfig, TrainConfig], lesson: Lesson, teacher: str | None
) -> dict[str, Any]:
    """What ``config.yaml`` holds: the options of ``camkd teacher`` or ``camkd distill``, which run it again."""
    data_config, config = configs
    if role == "teacher":
        named: dict[str, Any] = {"model": model_name}
    else:
        named = {"teacher": teacher, "student": model_name, **asdict(lesson)}
    return {**named, **asdict(data_config), **asdict(config)}


def _claim(run: Run, settings: dict[str, Any], resume: bool) -> bool:
    """Take the folder for this run; whether there is a checkpoint to go on from."""
    if run.folder.exists() and not run.folder.is_dir():
        raise InputError(f"{run.folder} is a file, but a run is a folder: give another --out.")
    before = run.config()
    if not before:
        run.start(settings)
        return False
    if not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        raise InputError(f"{run.folder} holds {state}: add --resume to go on with it, or give another --out.")
    changed = [name for name in settings if settings[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"{run.folder} was started with {name} = {before.get(name)}, now it is {settings[name]}: "
            "resume with the same settings, or give another --out."
        )
    return run.checkpoint.exists()


def _asking(teacher: Teacher, data: Dataset, config: TrainConfig, lesson: Lesson, goal: Objective) -> Ask:
    """How the loop asks the teacher: through the store, or live where a term reads features, which it does not keep."""
    device = torch.device(pick_device(config.device))
    precision = pick_precision(config.precision, device)

    def live(x: Tensor) -> Prediction:
        with (
            evaluating(teacher.model),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            answer = predict(teacher.model, x, features="features" in goal.needs)
        # the store keeps no strides, and sums over other strides have other last bits: what is asked is laid out alike
        return Prediction(*(None if part is None else part.float().contiguous() for part in answer))  # type: ignore[arg-type]

    if "features" in goal.needs:
        return lambda epoch, samples, x: live(x)
    key = key_of(
        teacher.model,
        {
            "data": data.fingerprint,
            "views": config.views,
            "view_seed": config.view_seed,
            "precision": precision,
        },
    )
    _, classes = teacher.examination.logits.shape
    _, height, width = teacher.examination.maps.shape
    kept = epochs_within(lesson.knowledge_budget, len(data.train), record(classes, height, width).itemsize)
    return Knowledge(live, cache_folder(None) / "knowledge" / key, len(data.train), kept)


def _draw(path: Path, split: Split, classes: tuple[str, ...], models: dict[str, nn.Module]) -> None:
    rows = specimens(split)
    explain(split.images[rows], models, classes, path, [classes[label] for label in split.labels[rows]])


class _Drawing(Watch):
    """Draws the student's maps every few epochs, and passes everything on."""

    def __init__(
        self, run: Run, data: Dataset, teacher: Teacher | None, role: str, config: TrainConfig, inner: Watch
    ) -> None:
        self.run, self.data, self.teacher, self.role, self.inner = run, data, teacher, role, inner
        self.every = config.figure_every
        self.start, self.step = inner.start, inner.step  # type: ignore[method-assign]

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        number = row["epoch"]
        if self.every and (number == 1 or number % self.every == 0):
            models = {"teacher": self.teacher.model} if self.teacher else {}
            path = self.run.figures / f"cams-epoch-{number:03d}.png"
            _draw(path, self.data.val, self.data.classes, {**models, self.role: model})
        self.inner.epoch(row, model)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)})"
