"""Calibration of a trained model: temperature and threshold from validation images, written into its run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as serialize
from torch import Tensor, nn

from camkd.data.dataset import Dataset, Progress, Split
from camkd.data.files import BadImages
from camkd.distill.teacher import Teacher, choose_teacher, load_teacher
from camkd.evaluate import Evaluation, measure, predict_split
from camkd.evaluate.calibration import choose_threshold, divide_head, fit_temperature, measure_confidence
from camkd.experiments.finished_runs import ANSWER_METRICS, answer_metrics, open_model_data
from camkd.models.io import INFO_FILE, ModelInfo, save
from camkd.report.gallery import GalleryModel, gallery_rows, select_images, write_gallery
from camkd.runs.folder import UNCALIBRATED_FILE, Run
from camkd.runs.loading import find_model_folder, load, read_model_info, shipped_models
from camkd.runs.per_image import write_per_image
from camkd.runs.resume import lock_run
from camkd.train.heatmap_figures import draw_examples
from camkd.types import InputError
from camkd.utils.devices import pick_device
from camkd.utils.files import commit_dir, write_json

NOT_COPIED = ("checkpoints", "export", "report.html")
"""Files and folders of a run that a calibrated copy leaves out."""


def calibrate(
    source: str,
    *,
    precision: float = 0.95,
    data: str | None = None,
    out: Path | None = None,
    undo: bool = False,
    device: str = "auto",
    bad_images: BadImages | None = None,
    progress: Progress,
    message: Callable[[str], None],
) -> dict[str, Any]:
    """Divide the head of a trained model by a temperature, choose a confidence threshold, and measure the run again.

    Both are chosen on the validation images. Weights, model info, metrics, results per image, gallery and figure are
    written when everything is measured. ``uncalibrated.safetensors`` holds the previous head.

    Args:
        source: A run folder or a shipped model.
        precision: Requested accuracy on the images at or above the threshold, more than 0 and at most 1.
        data: Another dataset, whose validation and test images are used. None: the dataset of the run.
        out: New folder for a calibrated copy of the run. None: the run is changed.
        undo: Whether to restore the head of before the first calibration instead.
        device: Device: auto, cpu, cuda, cuda:1 or mps.
        bad_images: Treatment of unreadable images of a folder. None: as in the training.
        progress: Callback ``progress(done, total, description)``.
        message: Callback ``message(text)``.

    Returns:
        The content of ``calibration.json``, and the run folder under ``run``.

    Raises:
        InputError: If an argument is invalid, the network does not end in a linear layer, the validation images give no
            temperature, or ``undo`` is given for a run that is not calibrated.
    """
    if not 0 < precision <= 1:
        raise InputError(f"precision must be more than 0 and at most 1, got {precision}. Choose another value.")
    folder = find_model_folder(source)
    if out is None and folder in shipped_models().values():
        raise InputError(f"--out must be a new folder for the shipped model {source!r}, got none. Add --out FOLDER.")
    if out is not None and out.exists():
        raise InputError(f"--out must be a new folder, got {out}, which exists. Choose another --out.")
    info = read_model_info(source)
    if undo and info.temperature == 1 and info.threshold is None:
        raise InputError(f"{source!r} must be calibrated for --undo, got a run without a calibration. Leave it out.")
    dataset = open_model_data(source, data, progress, message, bad_images)
    model = load(source).to(pick_device(device))
    teacher_folder = choose_teacher(info, source, None, message)
    teacher = load_teacher(teacher_folder, dataset, device) if teacher_folder else None
    with ExitStack() as stack:
        if out is None:
            stack.enter_context(lock_run(Run(folder)))
        if undo:
            _restore_head(model, folder / UNCALIBRATED_FILE)
            changed = replace(info, temperature=1.0, threshold=None)
            head = None
            record: dict[str, Any] = {}
        else:
            logits = predict_split(model, dataset.val).logits
            labels = _labels(dataset.val)
            temperature = fit_temperature(logits, labels)
            total = info.temperature * temperature
            threshold = choose_threshold(logits / temperature, labels, precision)
            changed = replace(info, temperature=total, threshold=threshold)
            head = divide_head(model, info.size, temperature) if temperature != 1 else None
            record = {
                "temperature": temperature,
                "total_temperature": total,
                "precision": precision,
                "threshold": threshold,
                "validation": _before_and_after(logits / temperature, labels, changed),
            }
        evaluation = measure(model, dataset, teacher.test_predictions if teacher else None)
        if not undo:
            record["test"] = _before_and_after(evaluation.predictions.logits, _labels(dataset.test), changed)
        target = folder
        if out is not None:
            target = stack.enter_context(commit_dir(out))
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
        models = _gallery_models(folder, model, changed, dataset, teacher)
        _write(Run(target), model, changed, record, head, evaluation, dataset, teacher, models)
    if info.role == "teacher" and read_model_info(out or folder).sha256 != info.sha256:
        message(
            "the teacher has other weights now: its outputs are cached again, and students that were trained with the "
            "previous weights leave it out"
        )
    return {"run": str(out or folder), **record}


def _labels(split: Split) -> Tensor:
    return torch.from_numpy(np.array(split.labels))


def _before_and_after(logits: Tensor, labels: Tensor, info: ModelInfo) -> dict[str, Any]:
    """Measure calibrated logits, and the logits of before the first calibration."""
    return {
        "uncalibrated": measure_confidence(logits * info.temperature, labels)._asdict(),
        "calibrated": measure_confidence(logits, labels, info.threshold or 0.0)._asdict(),
    }


def _restore_head(model: nn.Module, path: Path) -> None:
    """Load the head of before the first calibration."""
    if not path.exists():
        return  # only a threshold was chosen
    try:
        model.load_state_dict({**model.state_dict(), **load_tensors(path.read_bytes())})
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} must hold the uncalibrated head, got a corrupt file. Restore it.") from error


def _write(
    run: Run,
    model: nn.Module,
    info: ModelInfo,
    record: Mapping[str, Any],
    head: Mapping[str, Tensor] | None,
    evaluation: Evaluation,
    dataset: Dataset,
    teacher: Teacher | None,
    models: Mapping[str, GalleryModel],
) -> None:
    """Write the files of a run that depend on the head. They get their names when all of them are written.

    Args:
        run: The run.
        model: The calibrated or restored model.
        info: Description of the model.
        record: Content of ``calibration.json``. If it is empty, the files of the calibration are removed.
        head: Weight and bias of before this calibration, or None if they were not changed.
        evaluation: Evaluation of the model.
        dataset: The dataset.
        teacher: The teacher, or None.
        models: Models of the gallery. The checksum of ``model`` is filled in.
    """
    rows = gallery_rows(run.gallery_file)
    if not rows:
        rows = select_images(
            _labels(dataset.test), evaluation.predictions, teacher.test_predictions if teacher else None
        )
    metrics = {name: value for name, value in run.read_metrics().items() if name not in ANSWER_METRICS}
    metrics = {**evaluation.metrics, **{name: metrics[name] for name in metrics if name not in evaluation.metrics}}
    if info.threshold is not None:
        metrics |= answer_metrics(evaluation, dataset, info.threshold)
    if record:
        metrics["val_loss"] = record["validation"]["calibrated"]["nll"]
    with commit_dir(run.folder) as staged:
        if head is not None and not (run.folder / UNCALIBRATED_FILE).exists():
            (staged / UNCALIBRATED_FILE).write_bytes(serialize({key: head[key].cpu().contiguous() for key in head}))
        save(model, staged, info)
        staged_run = Run(staged)
        models = {**models, info.role: models[info.role]._replace(sha256=read_model_info(staged).sha256)}
        write_gallery(staged_run.gallery_file, dataset, models, rows)
        draw_examples(
            staged_run.figures_folder / "cams.png",
            dataset,
            "test",
            {title: entry.model for title, entry in models.items() if teacher is None or title != "teacher"},
            teacher.test_predictions if teacher else None,
        )
        write_per_image(staged_run.per_image_file, evaluation.per_image)
        write_json(staged_run.metrics_file, metrics)
        if record:
            write_json(staged_run.calibration_file, dict(record))
    if not record:
        run.remove_calibration()


def _gallery_models(
    folder: Path, model: nn.Module, info: ModelInfo, dataset: Dataset, teacher: Teacher | None
) -> dict[str, GalleryModel]:
    """Return the models of the gallery: the teacher, the model of the run, and the control beside a student."""
    models = {info.role: GalleryModel(model, "", dataset.test)}
    if teacher:
        teacher_checksum = read_model_info(teacher.folder).sha256
        models = {"teacher": GalleryModel(teacher.model, teacher_checksum, teacher.data.test), **models}
    control = folder.resolve().parent / "control"
    if info.role == "student" and (control / INFO_FILE).exists():
        control_info = read_model_info(control)
        if (control_info.data_fingerprint, control_info.size) == (info.data_fingerprint, info.size):
            models["control"] = GalleryModel(load(control), control_info.sha256, dataset.test)
    return models
