"""Training of a teacher, a control and a student, and the report of all three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from camkd.config import (
    Role,
    RunConfig,
    TrainConfig,
)
from camkd.data.dataset import Dataset
from camkd.distill.teacher import Teacher, find_teacher, load_teacher
from camkd.experiments.pipeline import (
    TeacherWithCache,
    check_outputs,
    gallery_teacher,
    prepare_teacher,
    resolve_settings,
    train_run,
)
from camkd.experiments.planning import (
    describe_times,
    estimate_distillation,
    estimate_run,
    resolve_network,
)
from camkd.experiments.start_network import (
    Message,
    default_interpolation,
    resolve_size,
    resolve_start,
)
from camkd.models import build, is_model_name
from camkd.report.gallery import GalleryModel, gallery_rows, write_gallery
from camkd.report.report import write_report
from camkd.report.run_summary import ROLES, read_runs
from camkd.report.verdict import verdict
from camkd.runs.folder import Run
from camkd.runs.loading import load, read_model_info
from camkd.runs.resume import Resume
from camkd.train.callbacks import Callback, CallbackList
from camkd.train.heatmap_figures import draw_examples
from camkd.types import InputError
from camkd.utils.devices import pick_device
from camkd.utils.distributed import run_on_rank0


def train_all(
    folder: Path,
    config: RunConfig,
    data: Dataset,
    *,
    teacher_epochs: int | None = None,
    teacher_size: int | None = None,
    resume: Resume | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, dict[str, Any]]:
    """Train a teacher, a control and a distilled student, and write the report.

    Args:
        folder: Folder of the three runs and ``report.html``.
        config: Configuration of the student. If ``config.distill.teacher`` is a model name, a teacher is trained first,
            without label smoothing; ``config.teacher`` has the layers to train. Otherwise it is the folder of a trained
            teacher.
        data: The dataset of ``config.data``.
        teacher_epochs: Epochs of a teacher that is trained first. None: the epochs of the student.
        teacher_size: Side of the images of a teacher that is trained first. None: that of the pretrained weights if the
            head of a pretrained network is trained on a folder of images, else that of the student.
        resume: Permission to continue runs in ``folder``. None: the folders must be new.
        callbacks: Callbacks of all three runs.

    Returns:
        The metrics of ``teacher``, ``control`` and ``student``.

    Raises:
        InputError: If the teacher does not fit the dataset or is no better than guessing, or if `train_run` raises it.

    Example:
        >>> from camkd.config import DataConfig, DistillConfig
        >>> config = RunConfig(DataConfig("shapes"), TrainConfig(epochs=5), DistillConfig("resnet20"))
        >>> train_all(Path("runs/demo"), config, open_dataset(config.data))  # doctest: +SKIP
    """
    runs = {role: Run(folder / role) for role in ROLES}
    run_on_rank0(lambda: check_outputs(config, folder, *(run.folder for run in runs.values())))
    teacher_name = resolve_network(config.distill.teacher, data, config.train.device, runs["teacher"].folder)
    trains_teacher = is_model_name(teacher_name)
    if not trains_teacher:
        del runs["teacher"]
    config = resolve_settings(config, data, *(run.folder for run in runs.values()), callbacks=callbacks)
    accept = resume.accept if resume else ()
    settings = run_on_rank0(lambda: _settings_by_role(runs, config.train, teacher_epochs, accept))
    message = CallbackList(callbacks).on_message
    metrics: dict[str, dict[str, Any]] = {}
    if trains_teacher:
        train_config = replace(config.train, label_smoothing=0.0, **settings["teacher"])
        teacher_data = replace(config.data, unlabeled=None)
        teacher_config = replace(config, data=teacher_data, model=teacher_name, role="teacher", train=train_config)
        teacher_run = _prepare_teacher_run(teacher_config, data.labeled, teacher_size, message)
        if not any(run.config() for run in runs.values()):
            message(describe_times(_estimate_all(config, data, teacher_run)))
        teacher_folder = runs["teacher"].folder
        metrics["teacher"] = train_run(teacher_folder, *teacher_run, resume=resume, callbacks=callbacks)
    else:
        teacher_folder = find_teacher(teacher_name, config.data.data)
        metrics["teacher"] = Run(teacher_folder).read_metrics()
    teacher = load_teacher(teacher_folder, data, config.train.device)
    teacher_with_cache, config = prepare_teacher(teacher, config, callbacks=callbacks)
    if not trains_teacher and not any(run.config() for run in runs.values()):
        message(describe_times(_estimate_students(config, data, teacher.model, teacher.size)))

    def train(role: Role, config: RunConfig, teacher_with_cache: TeacherWithCache) -> None:
        config = replace(config, role=role, train=replace(config.train, **settings[role]))
        metrics[role] = train_run(
            runs[role].folder, config, data, teacher_with_cache, resume=resume, callbacks=callbacks
        )

    train("control", replace(config, distill=replace(config.distill, method="plain")), TeacherWithCache(teacher))
    train("student", config, teacher_with_cache)

    def report() -> None:
        _draw_all_models(folder, data, teacher)
        write_report([teacher_folder, folder / "control", folder / "student"], folder / "report.html")

    run_on_rank0(report)
    return metrics


def _settings_by_role(
    runs: Mapping[str, Run], train: TrainConfig, teacher_epochs: int | None, accept: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the training settings of each run of `train_all` that differ from the common settings.

    A change that ``--accept`` names is for the runs with epochs left. A finished run without epochs left keeps its
    settings, unless no run uses the new ones: `start_or_resume` then raises an error. A finished teacher is not trained
    further after a student was started with its weights.

    Raises:
        InputError: If more epochs are given for such a teacher.
    """
    completed = {role: run.completed_epochs() if run.finished else 0 for role, run in runs.items()}
    epochs = dict.fromkeys(runs, train.epochs)
    if "teacher" in runs:
        students = [role for role, run in runs.items() if role != "teacher" and run.config()]
        is_fixed = bool(completed["teacher"] and students and "epochs" in accept)
        if is_fixed and teacher_epochs is not None and teacher_epochs > completed["teacher"]:
            raise InputError(
                f"teacher_epochs must be {completed['teacher']}, the completed epochs of {runs['teacher'].folder}, "
                f"because {' and '.join(students)} started with its weights, got {teacher_epochs}. Leave out "
                "--teacher-epochs, or choose another --out."
            )
        epochs["teacher"] = teacher_epochs or (completed["teacher"] if is_fixed else train.epochs)
    settings = {role: {"epochs": epochs[role]} for role in runs}
    unaffected = {}
    has_effect = False
    for role, run in runs.items():
        stored = {name: run.config()[name] for name in accept if name in run.config()}
        new = {**asdict(train), **settings[role]}
        is_changed = any(new[name] not in (None, value) for name, value in stored.items())
        if is_changed and completed[role] >= epochs[role]:
            unaffected[role] = stored
        elif is_changed or all(getattr(train, name) == value for name, value in stored.items()):
            has_effect = True  # now, or in an earlier call; also for a run without a configuration
    return {**settings, **unaffected} if has_effect else settings


def _prepare_teacher_run(
    config: RunConfig, data: Dataset, size: int | None, message: Message
) -> tuple[RunConfig, Dataset]:
    """Resolve the images and the network of a teacher that `train_all` trains first.

    Args:
        config: Configuration of the teacher, with the images of the student.
        data: The dataset at the image size of the student.
        size: Side of the teacher's images in pixels, or None, see `train_all`.
        message: Callback for a line about a new name of the network.

    Returns:
        The configuration of the teacher, and the dataset at its image size.
    """
    interpolation = config.data.interpolation
    if config.teacher.train != "all":
        interpolation = default_interpolation(config.model, config.data.data)
        if size is None:
            size = resolve_size(replace(config, data=replace(config.data, size=None))).data.size
    data = data.at_size(size or data.size, interpolation)
    config = replace(config, data=replace(config.data, size=data.size, interpolation=interpolation))
    return resolve_start(config, data, message), data


def _estimate_all(config: RunConfig, data: Dataset, teacher_run: tuple[RunConfig, Dataset]) -> dict[str, float]:
    """Estimate the time in seconds of a teacher, and of what follows."""
    teacher_config, teacher_data = teacher_run
    size = teacher_data.size
    model = build(teacher_config.model, len(data.classes), size, pretrained=False)
    model.to(pick_device(config.train.device))
    seconds = {"teacher": estimate_run(teacher_config, teacher_data)}
    return {**seconds, **_estimate_students(config, data, model, size)}


def _estimate_students(config: RunConfig, data: Dataset, teacher: nn.Module, teacher_size: int) -> dict[str, float]:
    """Estimate the time in seconds of the control, the student and the outputs of the teacher."""
    seconds = estimate_distillation(teacher, teacher_size, config, data)
    labeled_share = len(data.labeled.train) / len(data.train)
    return {"control": seconds["student"] * labeled_share, **seconds}


def _draw_all_models(folder: Path, data: Dataset, teacher: Teacher) -> None:
    """Draw the student's heatmap figure and gallery again, with the control as a further model."""
    student = Run(folder / "student")
    folders = {"student": student.folder, "control": folder / "control"}
    models = {role: load(run_folder) for role, run_folder in folders.items()}
    draw_examples(student.figures_folder / "cams.png", data, "test", models, teacher.test_predictions)
    gallery_models = {"teacher": gallery_teacher(teacher)} | {
        role: GalleryModel(model, read_model_info(folders[role]).sha256, data.test) for role, model in models.items()
    }
    write_gallery(student.gallery_file, data, gallery_models, gallery_rows(student.gallery_file))


def summary(folder: Path) -> str:
    """Return the verdict on the distillation and the numbers behind the verdict, in one line.

    Args:
        folder: Folder of `train_all`.
    """
    student, control = read_runs([folder / "student", folder / "control"])
    result = verdict(student, control)
    return f"{result.sentence} {result.grounds}"
