"""Possible label errors: images whose label an out-of-sample prediction contradicts.

1. *Features.* A frozen network computes one feature vector per image. Layers that were trained on the label of an
   image would repeat it, wrong or not. So the network is a pretrained one, or that of a run which trained the head
   alone. Of a run that trained all layers, only the validation and test images are checked, and only if they are those
   of the run.
2. *Out-of-sample predictions.* The images of all splits are divided into `FOLDS` folds with similar class counts.
   Duplicates and images of one group are in the same fold. The images of each fold are predicted by a linear head that
   was trained on the features of the other folds. The head of the run is not used.
3. *Errors.* cleanlab compares the probabilities with the labels (C. Northcutt, L. Jiang, I. Chuang, "Confident
   Learning", JAIR 2021).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.audit.findings import Entry, Finding
from camkd.audit.inventory import Inventory
from camkd.cams.linear_head import linear_head
from camkd.config import DataConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset, Progress
from camkd.data.near_duplicates import DuplicateGroup, connected_groups
from camkd.data.sources import open_data
from camkd.explain.explain import predict_images
from camkd.explain.plots import overlay_full_image
from camkd.models import ImageClassifier
from camkd.models.example_images import example_images
from camkd.models.external import is_external
from camkd.runs.folder import Run
from camkd.runs.loading import find_run_folder, load
from camkd.train.head import LabeledFeatures, Standardization, minimize, plain_features
from camkd.types import InputError, Preprocessing

FOLDS = 5
"""Number of folds. Classes with fewer images are left out."""

WEIGHT_DECAYS = (0.3, 0.1, 0.03, 0.01)
"""Weight decays of the heads. The one with the lowest out-of-sample loss is used."""

MAX_MAPS = 60
"""Largest number of images that get maps."""


@dataclass(frozen=True)
class OutOfSample:
    """Out-of-sample predictions.

    Args:
        rows: Rows of the inventory, ``(n,)``.
        labels: Index of each label in ``classes``, ``(n,)``.
        classes: Class indices of the dataset that were predicted, sorted.
        probabilities: Probability of each class, ``(n, len(classes))``.
        folds: Fold of each image, ``(n,)``.
        heads: Weight ``(len(classes), D)`` and bias of the head that predicted each fold.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    folds: NDArray[np.int64]
    heads: list[tuple[Tensor, Tensor]]


def check_cleanlab() -> None:
    """Raise ``InputError`` if cleanlab is not installed."""
    try:
        import cleanlab.filter  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--teacher needs cleanlab, which is not installed. Run pip install 'camkd[audit]', or leave --teacher out."
        ) from error


def find_label_errors(
    inventory: Inventory,
    duplicates: Sequence[DuplicateGroup],
    config: DataConfig,
    teacher: str,
    *,
    device: str,
    with_maps: bool,
    progress: Progress,
) -> tuple[Finding | None, str]:
    """Find possible label errors.

    Args:
        inventory: The images.
        duplicates: Groups of duplicates.
        config: The dataset and its groups.
        teacher: A run, or the name of a pretrained network.
        device: Device of the network.
        with_maps: Whether to draw the maps of the network for the first images.
        progress: Progress callback.

    Returns:
        The finding, or None if there is no possible error; and a note on how the images were predicted.

    Raises:
        InputError: If the network cannot be loaded or has no linear head, or if there are too few images.
    """
    model = load(teacher)
    info = model.info
    assert info is not None
    data, features = image_features(inventory, model, config, device, progress)
    is_checked = inventory.is_readable
    was_trained = trains_all_layers(teacher)
    if was_trained:
        if info.source_fingerprint != data.source_fingerprint:
            raise InputError(
                f"--teacher must not have seen the labels of '{config.data}', got {teacher!r}, whose layers were "
                "trained on other images or splits. Choose a pretrained network, such as timm:resnet18.a1_in1k, or a "
                "run of --train head."
            )
        is_checked &= inventory.splits != "train"
    prediction = predict_out_of_sample(inventory, duplicates, is_checked, features)
    images = "validation and test images" if was_trained else "images"
    note = (
        f"{len(prediction.rows):,} {images} were predicted out of sample: {FOLDS} folds, a linear head on features of "
        f"{teacher}, accuracy {(prediction.probabilities.argmax(1) == prediction.labels).mean():.1%}"
    )
    if was_trained:
        note += ". All its layers were trained on the training images, so their labels are not checked"
    left_out = int(is_checked.sum()) - len(prediction.rows)
    if left_out:
        note += f". {left_out:,} images of classes with fewer than {FOLDS} images are not checked"
    entries = _entries(inventory, prediction)
    if not entries:
        return None, note
    if with_maps:
        shown = _with_maps(inventory, model, data, prediction, entries[:MAX_MAPS], progress)
        entries = [*shown, *entries[MAX_MAPS:]]
    count = len(entries)
    summary = f"{count:,} of {len(prediction.rows):,} images may have a wrong label"
    return Finding("label-errors", count, summary, tuple(entries)), note


def image_features(
    inventory: Inventory, model: ImageClassifier, config: DataConfig, device: str, progress: Progress
) -> tuple[Dataset, Tensor]:
    """Compute the features of all readable images at the image size of a network.

    Args:
        inventory: The images.
        model: The network.
        config: The dataset and its groups.
        device: Device of the network.
        progress: Progress callback.

    Returns:
        The readable images at the size of the network, and the features ``(N, D)`` by row of the inventory.

    Raises:
        InputError: If the network has no linear head, a class of train has no readable image, or the disk is full.
    """
    info = model.info
    assert info is not None
    data = open_data(
        config.data,
        size=info.size,
        fit=info.fit,
        interpolation=info.interpolation,
        bad_images="skip",
        group=config.group,
        group_regex=config.group_regex,
        value_range=info.value_range,
        progress=progress,
    )
    run = RunConfig(config, TrainConfig(device=device), model=info.architecture, role="teacher")
    return data, _in_inventory(inventory, data, plain_features(model, data, run, progress))


def trains_all_layers(teacher: str) -> bool:
    """Return whether a run trained layers before the head, so that its features may repeat the labels of its images.

    Args:
        teacher: A run, or the name of a pretrained network.
    """
    if is_external(teacher) and not Path(teacher).exists():
        return False
    folder = find_run_folder(teacher)
    assert folder is not None
    settings = Run(folder).config()
    return not (settings.get("train") == "head" or (settings.get("weights") and settings.get("epochs") == 0))


def predict_out_of_sample(
    inventory: Inventory, duplicates: Sequence[DuplicateGroup], is_checked: NDArray[np.bool_], features: Tensor
) -> OutOfSample:
    """Predict each image by a linear head that was trained on other images.

    Args:
        inventory: The images.
        duplicates: Groups of duplicates, which stay in one fold.
        is_checked: The images to predict, ``(N,) bool``.
        features: Features ``(N, D)`` of all images.

    Returns:
        The predictions of the images in `is_checked` whose class has `FOLDS` of them or more.

    Raises:
        InputError: If fewer than two classes have enough images.
    """
    counts = np.bincount(inventory.labels[is_checked], minlength=len(inventory.classes))
    classes = np.flatnonzero(counts >= FOLDS)
    rows = np.flatnonzero(is_checked & np.isin(inventory.labels, classes))
    if len(classes) < 2:
        raise InputError(
            f"label errors need two classes with {FOLDS} images or more, got {len(classes)}. Add images, or leave "
            "--teacher out."
        )
    labels = np.searchsorted(classes, inventory.labels[rows])
    folds = _assign_folds(labels, _fold_groups(inventory, duplicates)[rows])
    x = features[torch.from_numpy(rows).to(features.device)]
    y = torch.from_numpy(labels).to(features.device)
    best: tuple[float, Tensor, list[tuple[Tensor, Tensor]]] | None = None
    starts: list[tuple[Tensor, Tensor]] | None = None
    for weight_decay in WEIGHT_DECAYS:
        logits, heads, starts = _cross_validate(x, y, len(classes), folds, weight_decay, starts)
        loss = float(F.cross_entropy(logits, y))
        if best is not None and loss >= best[0]:
            break
        best = (loss, logits, heads)
    assert best is not None
    probabilities = best[1].double().softmax(1).cpu().numpy()
    return OutOfSample(rows, labels, classes, probabilities, folds, best[2])


def _cross_validate(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    folds: NDArray[np.int64],
    weight_decay: float,
    starts: list[tuple[Tensor, Tensor]] | None,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Return the logits of each image, and for each fold the head and the solution for standardized features."""
    logits = x.new_zeros(len(x), num_classes)
    heads = []
    solutions = []
    for fold in range(int(folds.max()) + 1):
        is_held_out = torch.from_numpy(folds == fold).to(x.device)
        standardization = Standardization.of(x[~is_held_out])
        train = LabeledFeatures(standardization.apply(x[~is_held_out]), y[~is_held_out])
        zeros = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
        solution = minimize(train, weight_decay, starts[fold] if starts else zeros)
        head = standardization.unapply(solution)
        logits[is_held_out] = F.linear(x[is_held_out], *head)
        heads.append(head)
        solutions.append((solution.weight, solution.bias))
    return logits, heads, solutions


def _assign_folds(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold  # a dependency of cleanlab

    folds = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        divide = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        for fold, (_, rows) in enumerate(divide.split(labels, labels, groups)):
            folds[rows] = fold
    return folds


def _fold_groups(inventory: Inventory, duplicates: Sequence[DuplicateGroup]) -> NDArray[np.int64]:
    """Return a number for each image that images of one group, and duplicates, share."""
    pairs = [(group.rows[0], row) for group in duplicates for row in group.rows[1:]]
    first: dict[str, int] = {}
    for row, name in enumerate(inventory.groups):
        if name is not None:
            pairs.append((first.setdefault(name, row), row))
    numbers = np.arange(len(inventory))
    for rows in connected_groups(pairs):
        numbers[rows] = rows[0]
    return numbers


def _in_inventory(inventory: Inventory, data: Dataset, features: dict[str, Tensor]) -> Tensor:
    """Return the features by row of the inventory, zero for unreadable images, which the dataset lacks."""
    values = torch.cat([features[name] for name in data.splits])
    rows = np.flatnonzero(inventory.is_readable)
    labels = np.concatenate([split.labels for split in data.splits.values()])
    if not np.array_equal(labels, inventory.labels[rows]):
        raise InputError(f"the images of '{inventory.name}' must stay as they are, got changed files. Run it again.")
    result = values.new_zeros(len(inventory), values.shape[1])
    result[torch.from_numpy(rows).to(values.device)] = values
    return result


def find_suspects(prediction: OutOfSample) -> list[int]:
    """Return the indices of the predictions that contradict the label, by cleanlab, the lowest probability first."""
    from cleanlab.filter import find_label_issues

    issues = find_label_issues(
        prediction.labels, prediction.probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    predicted = prediction.probabilities.argmax(1)
    return [index for index in np.asarray(issues, np.int64).tolist() if predicted[index] != prediction.labels[index]]


def _entries(inventory: Inventory, prediction: OutOfSample) -> list[Entry]:
    entries = []
    for index in find_suspects(prediction):
        probabilities = prediction.probabilities[index]
        predicted, label = int(probabilities.argmax()), int(prediction.labels[index])
        name = inventory.classes[prediction.classes[predicted]]
        facts = {
            "predicted": name,
            "confidence": round(float(probabilities[predicted]), 4),
            "label_confidence": round(float(probabilities[label]), 4),
        }
        percent = f"{probabilities[label]:.0%}" if probabilities[label] >= 0.01 else "under 1%"
        text = f"predicted {name} ({probabilities[predicted]:.0%}), label {percent}"
        entries.append(Entry((int(prediction.rows[index]),), text, facts))
    return entries


def _with_maps(
    inventory: Inventory,
    model: ImageClassifier,
    data: Dataset,
    prediction: OutOfSample,
    entries: Sequence[Entry],
    progress: Progress,
) -> list[Entry]:
    """Add the maps of the predicted class and of the label, of the head that was not trained on the image."""
    info = model.info
    assert info is not None
    preprocessing = Preprocessing(info.size, info.fit, info.interpolation, info.value_range)
    position = {row: index for index, row in enumerate(prediction.rows.tolist())}
    in_data = {row: index for index, row in enumerate(np.flatnonzero(inventory.is_readable).tolist())}
    networks = [_replace_head(model, info.size, *head) for head in prediction.heads]
    result = []
    for done, entry in enumerate(entries):
        (row,) = entry.rows
        index = position[row]
        class_ids = [int(prediction.probabilities[index].argmax()), int(prediction.labels[index])]
        pixels = _read(data, in_data[row])
        network = networks[prediction.folds[index]]
        maps = predict_images(network, pixels[None], classes=torch.tensor([class_ids])).cams
        assert maps is not None
        full = inventory.read_full(row)
        pictures = tuple(
            (f"map of {inventory.classes[prediction.classes[k]]}", overlay_full_image(full, cam, preprocessing))
            for k, cam in zip(class_ids, maps[0].float().numpy(), strict=True)
        )
        result.append(replace(entry, maps=pictures))
        progress(done + 1, len(entries), "drawing maps")
    return result


def _read(data: Dataset, index: int) -> NDArray[np.uint8]:
    """Return the image at an index of all splits of a dataset."""
    for split in data.splits.values():
        if index < len(split):
            return np.asarray(split.images[index])
        index -= len(split)
    raise IndexError(index)


def _replace_head(model: nn.Module, size: int, weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a copy of a model with another head."""
    copied = copy.deepcopy(model)
    name, layer = linear_head(copied, example_images(size, weight.device))
    head: Any
    if isinstance(layer, nn.Conv2d):
        head = nn.Conv2d(layer.in_channels, len(weight), 1)
    else:
        head = nn.Linear(layer.in_features, len(weight))
    head.to(weight.device)
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))
        head.bias.copy_(bias)
    copied.set_submodule(name, head)
    return copied.eval()
