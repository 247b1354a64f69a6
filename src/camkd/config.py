"""Configuration of a run as plain dataclasses. Imports no torch, so that ``camkd --help`` starts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from camkd.types import Fit, InputError, Interpolation
from camkd.utils.units import parse_quantity

AUTO = "auto"
"""Name that stands for the default teacher."""


@dataclass(frozen=True)
class DataConfig:
    """The images of a run.

    Args:
        data: shapes, shapes-cue, cifar10, cifar100, a folder of images with one subfolder per class, a table (.csv,
            .tsv) with the columns image and label, or hf:PATH_OR_NAME, a data set of the Hugging Face library datasets.
        size: side of the images in pixels (default: the dataset's own, 64 for folders of mixed or larger sizes).
        fit: images that are not square: crop the center square (crop), or fill up the shorter side with gray (pad).
        interpolation: filter that resizes images, with antialiasing.
        limit: use at most N images of each split, balanced over the classes, for quick trials.
        train_limit: use at most N training images, balanced over the classes; validation and test stay complete.
        workers: processes that decode a folder (default: one per core; 1: this process only).
        bad_images: unreadable images: stop and list them (fail), or leave them out (skip).
        unlabeled: a folder of images without labels, at any depth, for every loss term except the cross-entropy.
        group: column of a table with the group of each image, such as the patient; a group stays in one split (default:
            the column group, if there is one).
        group_regex: regular expression; its first capturing group in the path of an image is the group of the image.
    """

    data: str = "shapes"
    size: int | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
    limit: int | None = None
    train_limit: int | None = None
    workers: int | None = None
    bad_images: Literal["fail", "skip"] = "fail"
    unlabeled: str | None = None
    group: str | None = None
    group_regex: str | None = None

    def __post_init__(self) -> None:
        if not self.data.strip():
            raise InputError(
                f"data must be the name of a dataset, a folder or a table, got {self.data!r}. Give a name."
            )


UNLABELED_OPTIONS = ("unlabeled", "unlabeled_ratio")
"""Options of students only: a teacher is trained on labeled images."""

Balance = Literal["none", "sampler", "logits"]
"""Treatment of unbalanced classes in training, see `camkd.data.class_balance` and `camkd.distill.losses.logits`."""

Select = Literal["accuracy", "balanced_accuracy", "nll"]
"""Criterion that selects the epoch of a run and ranks methods, on the validation images."""


class Criterion(NamedTuple):
    """Validation metric of a `Select` criterion.

    Attributes:
        key: Key in ``metrics.jsonl`` and ``metrics.json``.
        label: Name in a sentence.
        sign: 1 if higher is better, -1 if lower is better.
    """

    key: str
    label: str
    sign: int

    def score(self, metrics: Mapping[str, Any]) -> float:
        """Return the value of the metric with the sign for which higher is better."""
        return self.sign * float(metrics[self.key])


CRITERIA: dict[Select, Criterion] = {
    "accuracy": Criterion("val_accuracy", "validation accuracy", 1),
    "balanced_accuracy": Criterion("val_balanced_accuracy", "balanced validation accuracy", 1),
    "nll": Criterion("val_loss", "validation loss", -1),
}
"""The metric of each criterion."""


def best_epoch(rows: Sequence[Mapping[str, Any]], select: Select) -> Mapping[str, Any] | None:
    """Return the row of the epoch that is kept.

    Args:
        rows: Rows of ``metrics.jsonl``.
        select: The criterion.

    Returns:
        The row with the best value. Of equal values, the last row counts. None without rows.

    Example:
        >>> rows = [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.4}, {"epoch": 3, "val_loss": 0.4}]
        >>> best_epoch(rows, "nll")
        {'epoch': 3, 'val_loss': 0.4}
    """
    return max(reversed(rows), key=CRITERIA[select].score, default=None)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. The learning rate rises linearly, then decays to zero along a cosine.

    Args:
        epochs: passes over the training images.
        batch_size: approximate number of images per step; the batches of an epoch differ by at most one image.
        optimizer: sgd (Nesterov momentum 0.9) or adamw; auto: adamw for cam-net and its variants, else sgd.
        lr: peak learning rate at batch size 128, scaled linearly with the batch size (default: sgd 0.2, adamw 0.01).
        weight_decay: weight decay of all weights except normalization and biases (default: sgd 0.0005, adamw 0.01).
        warmup_fraction: fraction of the run over which the learning rate rises.
        label_smoothing: label smoothing; 'camkd train' applies it to students only.
        grad_clip: maximum norm of the gradient.
        on_nan: action when the loss or the gradient of a batch is not finite: stop, or skip the batch.
        ema_decay: decay per step of the averaged weights, which are evaluated and saved.
        unlabeled_ratio: number of unlabeled images per labeled image in each batch (default: all unlabeled images are
            in every epoch).
        balance: unbalanced classes: none; sampler, epochs with equally many samples of each class; or logits, logit
            adjustment of the cross-entropy.
        select: criterion on the validation images for the epoch that is kept: accuracy, balanced_accuracy (mean recall
            of the classes) or nll (mean negative log-likelihood).
        augment: augmentation: none, light (flip, crop), strong (light + rotation, color, cutout, mixup/cutmix), photo
            (resized crop, flip, TrivialAugment, erasing) or photo-mix (photo + mixup/cutmix); auto: photo for folders
            of images above 32 pixels, else light.
        augment_epochs: number of epochs with new augmented views; later epochs repeat these views (default: all).
        augment_seed: seed of the augmentation and of the sample order, equal in runs that are compared.
        seed: seed of the initial weights.
        precision: number format of the forward pass; auto: bf16 where it is faster on this device.
        device: auto, cpu, cuda, cuda:1 or mps.
        figure_every: epochs between two heatmap figures of the model during training (0: only at the end).
        tensorboard: also write scalars and heatmaps for TensorBoard into the run folder (needs camkd[tensorboard]).
        track: also send settings, metrics and heatmaps to trackio, mlflow or wandb (needs the extra of that name).
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    lr: float | None = None
    weight_decay: float | None = None
    warmup_fraction: float = 0.2
    label_smoothing: float = 0.0
    grad_clip: float = 5.0
    on_nan: Literal["stop", "skip"] = "stop"
    ema_decay: float = 0.998
    unlabeled_ratio: float | None = None
    balance: Balance = "none"
    select: Select = "accuracy"
    augment: str = AUTO
    augment_epochs: int | None = None
    augment_seed: int = 0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    figure_every: int = 5
    tensorboard: bool = False
    track: Literal["trackio", "mlflow", "wandb"] | None = None


WeakTeacher = Literal["reject", "accept"]
"""Treatment of a teacher that is no better than guessing: ``reject`` raises an error, ``accept`` distills from it."""


@dataclass(frozen=True)
class DistillConfig:
    """The teacher, the loss, and the cache of teacher outputs.

    Args:
        teacher: a trained run, a shipped model, or a model name, which 'camkd train' trains first; auto: the trained
            teacher of these images; for 'camkd train' wrn-16-4, or on a CPU resnet20 for more than 32 pixels.
        method: a name of 'camkd list methods', or a sum of terms like ce=0.1,kd=0.9:T=4,cam=1:pool=4:schedule=early.
        cache_budget: disk space for cached teacher outputs, like 4GB; augmented epochs repeat when it is full.
        cache_map_size: side of the cached maps, in cells (default: the teacher's own, at most 8).
        weak_teacher: a teacher that is no better than guessing: stop (reject), or distill from it (accept).
    """

    teacher: str = AUTO
    method: str = "cam-kd"
    cache_budget: str = "8GB"
    cache_map_size: int | None = None
    weak_teacher: WeakTeacher = "reject"


Layers = Literal["all", "head", "head,all"]
"""Layers of a teacher that are trained: all, the head, or first the head and then all."""


@dataclass(frozen=True)
class TeacherConfig:
    """The start of a teacher's training: trained weights, their classes, and the layers to train.

    Args:
        train: the layers to train: all; head, the last layer on features that are computed once; or head, then all.
        head_views: views of each training image that the head is trained on: the image itself, then augmented views.
        weights: trained weights of the network, a .safetensors, .pt or .pth file; --epochs 0 leaves them as they are.
        classes: classes of the trained weights in order (.txt, .json), or their mapping to those of the data (.csv).
        normalization: mean and deviation of the images for --weights; auto: of the checkpoint, network or images.
    """

    train: Layers = "all"
    head_views: int = 1
    weights: str | None = None
    classes: str | None = None
    normalization: Literal["auto", "imagenet", "none", "data"] = "auto"


Role = Literal["teacher", "control", "student"]
"""Role of a run in an experiment. A control is the student's network, trained without a teacher."""


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run.

    Args:
        data: the images.
        train: the training loop.
        distill: the teacher and the loss; unused if the role is teacher.
        model: name of the network to train, see 'camkd list models'.
        role: teacher, control or student.
        teacher: the start of a teacher's training; for other roles, of the teacher that is trained first.

    Example:
        >>> config = RunConfig(DataConfig("shapes"), TrainConfig(epochs=5), model="resnet8", role="teacher")
        >>> config.options()["model"], config.options()["epochs"]
        ('resnet8', 5)
        >>> RunConfig.from_options(config.options()) == config
        True
    """

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    model: str = "cam-net"
    role: Role = "student"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    @property
    def method(self) -> str:
        """The method of the loss; ``plain`` for a teacher."""
        return "plain" if self.role == "teacher" else self.distill.method

    def options(self) -> dict[str, Any]:
        """Return the content of ``config.yaml``: the options of the command that repeats the run.

        Returns:
            The options of ``camkd teacher`` for a teacher, else those of ``camkd distill``.
        """
        settings = {**asdict(self.data), **asdict(self.train)}
        if self.role == "teacher":
            settings = {name: value for name, value in settings.items() if name not in UNLABELED_OPTIONS}
            return {"model": self.model, **asdict(self.teacher), **settings}
        distill = asdict(self.distill)
        return {"teacher": distill.pop("teacher"), "student": self.model, **distill, **settings}

    @classmethod
    def from_options(cls, options: Mapping[str, Any], role: Role | None = None) -> RunConfig:
        """Rebuild a configuration from `options`; a missing option has its default.

        Args:
            options: Content of a ``config.yaml``.
            role: Role of the run (default: student if the options name a student, else teacher).

        Returns:
            The configuration.
        """

        def section(config: type[Any]) -> Any:
            return config(**{f.name: options[f.name] for f in fields(config) if f.name in options})

        is_student = "student" in options
        model = options.get("student" if is_student else "model", cls.model)
        distill = section(DistillConfig) if is_student else DistillConfig()
        teacher = TeacherConfig() if is_student else section(TeacherConfig)
        role = role or ("student" if is_student else "teacher")
        return cls(section(DataConfig), section(TrainConfig), distill, model, role, teacher)


class OptimizerSettings(NamedTuple):
    """Optimizer, peak learning rate at batch size 128, and weight decay."""

    optimizer: str
    lr: float
    weight_decay: float


DEFAULT_OPTIMIZERS = {"sgd": OptimizerSettings("sgd", 0.2, 5e-4), "adamw": OptimizerSettings("adamw", 0.01, 0.01)}
"""Best settings in short runs of the built-in networks (LOG.md)."""


FINE_TUNING_LR = {"sgd": 0.01, "adamw": 0.0005}
"""Default learning rates of networks that start from trained weights with their head."""


def is_fine_tuned(config: RunConfig) -> bool:
    """Return True if all layers of a network are trained after its head, or from given weights."""
    is_teacher = config.role == "teacher"
    return is_teacher and (config.teacher.train == "head,all" or config.teacher.weights is not None)


def resolve_optimizer(config: TrainConfig, default: str = "sgd", *, fine_tune: bool = False) -> OptimizerSettings:
    """Resolve optimizer, learning rate and weight decay of a run.

    Args:
        config: Training settings; ``auto`` and None are resolved.
        default: Optimizer that ``auto`` stands for, ``sgd`` or ``adamw``.
        fine_tune: Whether the default learning rate is that of `FINE_TUNING_LR`.

    Returns:
        The resolved settings.

    Example:
        >>> resolve_optimizer(TrainConfig(lr=0.002), "adamw")
        OptimizerSettings(optimizer='adamw', lr=0.002, weight_decay=0.01)
    """
    settings = DEFAULT_OPTIMIZERS[default if config.optimizer == "auto" else config.optimizer]
    return OptimizerSettings(
        settings.optimizer,
        config.lr if config.lr is not None else FINE_TUNING_LR[settings.optimizer] if fine_tune else settings.lr,
        settings.weight_decay if config.weight_decay is None else config.weight_decay,
    )


def num_augmented_epochs(config: TrainConfig) -> int:
    """Return the number of augmented epochs of a run: epochs with augmented views of their own, before views repeat."""
    return min(config.augment_epochs or config.epochs, config.epochs)


def epochs_in_budget(config: RunConfig, epoch_bytes: int) -> int:
    """Return the number of augmented epochs of a run, at most as many as fit into the cache budget with their outputs.

    Args:
        config: Configuration of the run.
        epoch_bytes: Size of the teacher outputs of one epoch.

    Returns:
        A number from 0 to `num_augmented_epochs`.

    Raises:
        InputError: If ``cache_budget`` is not a quantity.
    """
    budget = parse_quantity(config.distill.cache_budget, "cache_budget", "B")
    return min(num_augmented_epochs(config.train), budget // epoch_bytes)


Range = tuple[str, Callable[[float], bool]]
"""Rule as text, for error messages, and the function that checks a value against the rule."""

COUNT: Range = ("1 or more, up to a billion", lambda value: 1 <= value <= 10**9)
NOT_NEGATIVE: Range = ("0 or more", lambda value: value >= 0)
POSITIVE: Range = ("more than 0", lambda value: value > 0)
FRACTION: Range = ("between 0 and 1", lambda value: 0 <= value <= 1)
SEED: Range = ("between 0 and 4,294,967,295", lambda value: 0 <= value < 1 << 32)

RANGES: dict[str, Range] = {
    "epochs": COUNT,
    "teacher_epochs": COUNT,
    "teacher_size": COUNT,
    "batch_size": COUNT,
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "warmup_fraction": FRACTION,
    "label_smoothing": FRACTION,
    "grad_clip": POSITIVE,
    "ema_decay": FRACTION,
    "augment_epochs": COUNT,
    "augment_seed": SEED,
    "seed": SEED,
    "figure_every": NOT_NEGATIVE,
    "cache_map_size": COUNT,
    "head_views": COUNT,
    "unlabeled_ratio": POSITIVE,
}
"""Valid ranges of numeric settings. `camkd.data.open_data` checks the settings of `DataConfig`."""


def check_ranges(values: Mapping[str, Any]) -> None:
    """Check numeric settings against `RANGES`.

    Args:
        values: Settings by name. None is valid, and names that are not in `RANGES` are ignored.

    Raises:
        InputError: If a value is not finite or out of range.
    """
    for name, (rule, is_valid) in RANGES.items():
        value = values.get(name)
        if value is not None and not (abs(value) < math.inf and is_valid(value)):
            raise InputError(f"{name} must be {rule}, got {value}. Choose another value.")
