"""From pictures to a finished run folder: a teacher, a student with or without one, or all three and a report."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from camkd.config import (
    DataConfig,
    DistillConfig,
    TrainConfig,
    check_ranges,
    epochs_in_budget,
    num_augmented_epochs,
    resolve_optimizer,
)
from camkd.data.augment import get_policy
from camkd.data.dataset import CHUNK_BYTES, Dataset, Split, max_rows
from camkd.distill.cache import TeacherCache
from camkd.distill.cache.build import build_teacher_cache
from camkd.distill.objective import Objective, format_objective, parse_objective
from camkd.distill.teacher import Teacher, find_teacher, load_teacher
from camkd.evaluate import measure, write_per_image
from camkd.explain.explain import draw_heatmaps, example_rows
from camkd.models import build, default_optimizer, is_model_name, model_factory
from camkd.models.io import ModelInfo, save
from camkd.models.profile import profile_model
from camkd.report import verdict as findings
from camkd.report.gallery import GalleryModel, gallery_rows, select_images, write_gallery
from camkd.report.report import write_report
from camkd.runs.folder import Run
from camkd.runs.load_model import load, read_model_info
from camkd.runs.resume import lock_run, start_or_resume
from camkd.train.callbacks import Callback
from camkd.train.loop import fit
from camkd.train.tensorboard import check_tensorboard, watched
from camkd.types import InputError
from camkd.utils.devices import describe_device, pick_device, pick_precision
from camkd.utils.distributed import process_group, run_on_rank0
from camkd.utils.files import write_json
from camkd.utils.units import format_quantity, parse_quantity


def check_names(model: str, lesson: DistillConfig, config: TrainConfig, teacher_epochs: int | None = None) -> None:
    """Say before any work if there is no such model, or what `check_settings` says: ``InputError``."""
    model_factory(model)
    check_settings(lesson, config, teacher_epochs)


def check_settings(lesson: DistillConfig, config: TrainConfig, teacher_epochs: int | None = None) -> None:
    """Say if there is no such method, view policy or device, or a number is out of range: ``InputError``."""
    goal = objective_of(lesson, config)
    if (goal.has_adapters or goal.shuffles) and config.batch_size < 2:
        raise InputError(f"{lesson.method} needs several pictures in a batch: give a --batch-size of 2 or more.")
    get_policy(config.augment)
    check_ranges({**asdict(config), **asdict(lesson), "teacher_epochs": teacher_epochs})
    parse_quantity(lesson.cache_budget, "cache_budget", "B")
    pick_device(config.device)
    if config.tensorboard:
        check_tensorboard()


def check_shared_rate(config: TrainConfig, *models: str) -> None:
    """Say if one learning rate or weight decay is to serve networks that have different optimisers: ``InputError``."""
    steps = [resolve_optimizer(config, default_optimizer(model)) for model in models]
    for name in ("lr", "weight_decay"):
        value = getattr(config, name)
        if value is not None and len({step.optimizer for step in steps}) > 1:
            told = " and ".join(f"{model} with {step.optimizer}" for model, step in zip(models, steps, strict=True))
            raise InputError(f"{told} cannot share {name} {value}: give --optimizer, too, or train them one by one.")


def objective_of(lesson: DistillConfig, config: TrainConfig) -> Objective:
    """The objective a lesson names, with the run's label smoothing."""
    return parse_objective(lesson.method, label_smoothing=config.label_smoothing)


def train_run(
    folder: Path,
    data: Dataset,
    model_name: str,
    role: str,
    configs: tuple[DataConfig, TrainConfig],
    lesson: DistillConfig,
    teacher: Teacher | None = None,
    knowledge: TeacherCache | None = None,
    *,
    resume: bool = False,
    accept: Collection[str] = (),
    watch: Callback | None = None,
) -> dict[str, Any]:
    """Train, evaluate and draw one network; everything is in ``folder`` afterwards. Returns its metrics.

    ``knowledge`` is what the teacher says in training, from `prepare_teacher_cache`. With ``resume`` a finished run is
    returned as it is and an unfinished one goes on; settings in ``accept`` may then differ from those it began with.
    Raises ``InputError`` where the folder holds a run and ``resume`` is not given, or one with another configuration,
    and where another process works on it.
    """
    run, (data_config, config) = Run(folder), configs
    config = replace(config, **resolve_optimizer(config, default_optimizer(model_name))._asdict())
    place = str(teacher.folder.resolve()) if teacher else None
    settings = _settings(model_name, role, (data_config, config), lesson, place)
    goal = objective_of(lesson, config)
    with ExitStack() as held:

        def take() -> tuple[bool, dict[str, Any]]:
            held.enter_context(lock_run(run))
            started = start_or_resume(run, settings, provenance(role, data, teacher, goal), resume, accept)
            return started, run.read_metrics() if run.finished else {}

        started, finished = run_on_rank0(take)
        if finished:
            return finished
        size = int(data.train.images.shape[1])
        model = build(model_name, len(data.classes), size, config.seed, pretrained=not started)
        if not model.statistics_given:
            model.set_normalization(*channel_statistics(data.train.images))
        cost = profile_model(model_name, model, size)
        watch = watch or Callback()
        if process_group().rank == 0:
            seen = held.enter_context(watched(folder, config.tensorboard, watch))
            watch = _Drawing(run, data, teacher, role, config, seen)
        best = fit(
            model,
            data,
            goal,
            config,
            run,
            teacher=teacher.val_targets if teacher else None,
            knowledge=knowledge,
            resume=started,
            watch=watch,
        )
        said = ModelInfo(
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
        )

        def end() -> dict[str, Any]:
            save(best, folder, said)
            return evaluate_and_save(run, data, best, teacher)

        return run_on_rank0(end)


def evaluate_and_save(run: Run, data: Dataset, model: nn.Module, teacher: Teacher | None) -> dict[str, Any]:
    """Evaluate a trained network on the test pictures, draw maps and gallery, write ``metrics.json`` and return it.

    ``per_image.npz`` holds what is known of each picture.
    """
    said, history = read_model_info(run.folder), run.read_history()
    measured = measure(model, data, teacher.test_predictions if teacher else None)
    latest_first = reversed(history)  # of equals `fit` keeps the later
    best: dict[str, Any] = max(latest_first, key=lambda row: row["val_accuracy"], default={})
    seconds = sum(row["seconds"] for row in history)
    figures = {
        **measured.metrics,
        "val_accuracy": best.get("val_accuracy"),
        "best_epoch": best.get("epoch"),
        "params": said.params,
        "macs": said.macs,
        "epochs": len(history),
        "augment_epochs": min(run.config().get("augment_epochs") or len(history), len(history)),
        "seconds": seconds,
        "images_per_second": len(history) * len(data.train) / seconds if seconds else None,
    }
    exhibits = {said.role: GalleryModel(model, said.sha256)}
    if teacher:
        exhibits = {"teacher": GalleryModel(teacher.model, read_model_info(teacher.folder).sha256), **exhibits}
    _draw(run.figures / "cams.png", data.test, data.classes, {title: one.model for title, one in exhibits.items()})
    labels = torch.from_numpy(np.array(data.test.labels))
    chosen = select_images(labels, measured.predictions, teacher.test_predictions if teacher else None)
    write_gallery(run.gallery, data, exhibits, chosen)
    write_per_image(run.per_image, measured.per_image)
    write_json(run.metrics, figures)
    return figures


def train_all(
    folder: Path,
    data: Dataset,
    teacher_name: str,
    student_name: str,
    configs: tuple[DataConfig, TrainConfig],
    lesson: DistillConfig,
    *,
    teacher_epochs: int | None = None,
    resume: bool = False,
    accept: Collection[str] = (),
    watch: Callback | None = None,
) -> dict[str, dict[str, Any]]:
    """Teacher (unless ``teacher_name`` is a trained one), undistilled control, distilled student, report."""
    data_config, config = configs
    config = resolve_auto(config, *(folder / role for role in ("teacher", "control", "student")), watch=watch)
    epochs = config.epochs if teacher_epochs is None else teacher_epochs
    teacher_config = replace(config, epochs=epochs, label_smoothing=0.0)
    taught: dict[str, dict[str, Any]] = {}
    if is_model_name(teacher_name):
        place = folder / "teacher"
        taught["teacher"] = train_run(
            place,
            data,
            teacher_name,
            "teacher",
            (data_config, teacher_config),
            DistillConfig("plain"),
            resume=resume,
            accept=accept,
            watch=watch,
        )
    else:
        place = find_teacher(teacher_name, data_config.data)
        taught["teacher"] = Run(place).read_metrics()
    teacher = load_teacher(place, data, config.device)
    knowledge, config = prepare_teacher_cache(teacher, data, config, lesson, watch)
    for role, what, known in (("control", DistillConfig("plain"), None), ("student", lesson, knowledge)):
        taught[role] = train_run(
            folder / role,
            data,
            student_name,
            role,
            (data_config, config),
            what,
            teacher,
            known,
            resume=resume,
            accept=accept,
            watch=watch,
        )

    def compare() -> None:
        _side_by_side(folder, data, teacher)
        write_report([place, folder / "control", folder / "student"], folder / "report.html")

    run_on_rank0(compare)
    return taught


def prepare_teacher_cache(
    teacher: Teacher, data: Dataset, config: TrainConfig, lesson: DistillConfig, watch: Callback | None = None
) -> tuple[TeacherCache | None, TrainConfig]:
    """What the teacher knows, and the configuration with as many different views as the budget has room for.

    None where the lesson does not ask a teacher. ``watch`` is told the size and what is known already.
    """
    goal, watch = objective_of(lesson, config), watch or Callback()
    if not goal.needs_teacher:
        return None, config
    watch.note(f"the teacher is right on {teacher.check():.1%} of the validation pictures")
    knowledge = build_teacher_cache(teacher, data, config, lesson, features="features" in goal.needs)
    store = knowledge.store
    if store is None:
        watch.note(f"{lesson.method} reads the teacher's features, which are not kept: it is asked at every step")
        return knowledge, config
    epochs = epochs_in_budget(config, lesson, store.epoch_bytes)
    budget = f"a knowledge budget of {lesson.cache_budget}"
    if not epochs:
        watch.note(
            f"the teacher is asked at every step: {budget} has no room for {format_quantity(store.epoch_bytes)} an "
            "epoch"
        )
        return TeacherCache(knowledge.teacher, layout=store.layout), config
    begun = sum(epoch < epochs for epoch in store.epochs())
    watch.note(
        f"the teacher's answers: {epochs} epochs of views, {format_quantity(store.epoch_bytes * epochs)} in "
        f"{store.folder}; {begun} of them begun before"
    )
    if epochs < num_augmented_epochs(config):
        watch.note(f"{budget} is full then: the views come again every {epochs} epochs")
        config = replace(config, augment_epochs=epochs)
    return knowledge, config


def resolve_auto(config: TrainConfig, *folders: Path, watch: Callback | None = None) -> TrainConfig:
    """The configuration with what ``auto`` stands for here, and with what the runs in ``folders`` were begun with.

    Those go on in the number format and with the views that they began with, whatever is measured or free today.
    """
    for before in (Run(folder).config() for folder in folders):
        if config.precision == "auto":
            config = replace(config, precision=before.get("precision", "auto"))
        if config.augment_epochs is None and "student" in before:  # its control, too, sees as many views as it
            config = replace(config, augment_epochs=before.get("augment_epochs"))
    device = torch.device(pick_device(config.device))
    (watch or Callback()).note(f"computing on {describe_device(config.precision, device)}")
    return replace(config, precision=run_on_rank0(lambda: pick_precision(config.precision, device)))


def summary(folder: Path) -> str:
    """Whether distillation helped, and by how much, in one line."""
    student, control = (Run(folder / role).read_metrics() for role in ("student", "control"))
    said = findings.verdict(
        findings.RunSummary("student", metrics=student), findings.RunSummary("control", metrics=control)
    )
    return f"{said.sentence} {said.grounds}"


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour over all pictures ``(N, H, W, 3)``, in units of 0..1."""
    counts, rows = np.zeros((3, 256), np.int64), max_rows(CHUNK_BYTES // 16, images)
    for start in range(0, len(images), rows):
        for colour, values in enumerate(images[start : start + rows].reshape(-1, 3).T):
            counts[colour] += np.bincount(values, minlength=256)
    value, share = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = share @ value
    deviation = np.sqrt(np.maximum(share @ value**2 - mean**2, 1e-6))
    return mean.tolist(), deviation.tolist()


def _settings(
    model_name: str, role: str, configs: tuple[DataConfig, TrainConfig], lesson: DistillConfig, teacher: str | None
) -> dict[str, Any]:
    """What ``config.yaml`` holds: the options of ``camkd teacher`` or ``camkd distill``, which run it again."""
    data_config, config = configs
    if role == "teacher":
        named: dict[str, Any] = {"model": model_name}
    else:
        named = {"teacher": teacher, "student": model_name, **asdict(lesson)}
    return {**named, **asdict(data_config), **asdict(config)}


def provenance(role: str, data: Dataset, teacher: Teacher | None, goal: Objective) -> dict[str, Any]:
    """What the names in a run's configuration stand for today: pictures, teacher, method."""
    weights = read_model_info(teacher.folder).sha256 if teacher else None
    known = {"classes": list(data.classes), "size": int(data.train.images.shape[1])}
    return {
        "role": role,
        "pictures": data.fingerprint,
        "teacher_weights": weights,
        "terms": format_objective(goal),
        **known,
    }


def _draw(path: Path, split: Split, classes: tuple[str, ...], models: dict[str, nn.Module]) -> None:
    rows = example_rows(split)
    draw_heatmaps(split.images[rows], models, classes, path, [classes[label] for label in split.labels[rows]])


def _side_by_side(folder: Path, data: Dataset, teacher: Teacher) -> None:
    """Draw the student's pictures again, with the control beside it."""
    student = Run(folder / "student")
    places = {"teacher": teacher.folder, "student": student.folder, "control": folder / "control"}
    models = {"teacher": teacher.model, **{role: load(places[role]) for role in ("student", "control")}}
    _draw(student.figures / "cams.png", data.test, data.classes, models)
    exhibits = {role: GalleryModel(model, read_model_info(places[role]).sha256) for role, model in models.items()}
    write_gallery(student.gallery, data, exhibits, gallery_rows(student.gallery))


class _Drawing(Callback):
    """Draws the student's maps every few epochs, and passes everything on."""

    def __init__(
        self, run: Run, data: Dataset, teacher: Teacher | None, role: str, config: TrainConfig, inner: Callback
    ) -> None:
        self.run, self.data, self.teacher, self.role, self.inner = run, data, teacher, role, inner
        self.every = config.figure_every
        self.note, self.start, self.step = inner.note, inner.start, inner.step  # type: ignore[method-assign]

    def epoch(self, row: dict[str, Any], model: nn.Module) -> None:
        number = row["epoch"]
        if self.every and (number == 1 or number % self.every == 0):
            models = {"teacher": self.teacher.model} if self.teacher else {}
            path = self.run.figures / f"cams-epoch-{number:03d}.png"
            _draw(path, self.data.val, self.data.classes, {**models, self.role: model})
            self.inner.drawn(number, path)
        self.inner.epoch(row, model)
