"""Initial network of a run: random weights, pretrained weights, or weights and classes from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from camkd.cams import form
from camkd.cams.linear_head import linear_head
from camkd.config import RANGES, RunConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import SOURCES
from camkd.models import ImageClassifier, build
from camkd.models.class_groups import Groups, group_classes, is_one_to_one, read_class_file
from camkd.models.example_images import example_images
from camkd.models.external import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LIBRARIES,
    PATCH_MEAN,
    has_pretrained_weights,
    is_external,
    pretrained_info,
    usual_normalization,
)
from camkd.models.foreign_weights import ForeignWeights, check_fit, read_weights, without_prefix
from camkd.models.grouped import GroupedClassifier, grouped_name, split_groups
from camkd.types import InputError, Interpolation
from camkd.utils.files import sha256_of

Message = Callable[[str], None]
"""Callback that shows one line of text to the user."""


def no_message(text: str) -> None:
    """Ignore a message."""


def check_start(config: RunConfig) -> None:
    """Check the options for the initial weights of a teacher, as far as possible without the images.

    Args:
        config: Configuration of the teacher.

    Raises:
        InputError: If options contradict each other, or a file does not exist.
    """
    start = config.teacher
    is_trained = start.weights is not None or has_pretrained_weights(config.model)
    if start.train != "all" and not is_trained:
        raise InputError(
            f"--train {start.train} must be given with trained weights, got {config.model} without weights. Add a "
            "tag to the name of the model, as in timm:resnet18.a1_in1k, or --weights FILE."
        )
    if start.train != "all" and start.classes is not None:
        raise InputError(
            f"--classes must be given with --train all, got --train {start.train}, which trains a new head for the "
            "classes of the data. Leave out --classes."
        )
    if start.classes is not None and not is_trained:
        raise InputError(
            f"--classes must be given with trained weights, got {config.model} without weights. Add --weights FILE, "
            "or a tag to the name of the model."
        )
    if start.normalization != "auto" and start.weights is None:
        raise InputError(
            f"--normalization must be given with --weights, got {start.normalization!r} without --weights. Leave out "
            "--normalization."
        )
    if config.train.epochs == 0 and (start.train != "all" or (start.weights is None and start.classes is None)):
        raise InputError(
            f"epochs must be {RANGES['epochs'][0]}, got 0. Choose a larger number. To use trained weights without "
            "training, leave out --train, and add --weights FILE, or --classes FILE for a model with a tag."
        )
    if start.classes is not None:
        read_class_file(start.classes)
    if start.weights is not None and not Path(start.weights).expanduser().is_file():
        read_weights(start.weights)  # raises the error


def start_files(config: RunConfig) -> dict[str, str | None]:
    """Return the SHA-256 of the weights file and the class file of a run, for the provenance of the run."""
    return {
        f"{name}_file": None if file is None else sha256_of(Path(file).expanduser())
        for name, file in (("weights", config.teacher.weights), ("classes", config.teacher.classes))
    }


def resolve_size(config: RunConfig) -> RunConfig:
    """Set the image size to that of the pretrained weights, for a folder of images without a given size.

    Args:
        config: Configuration of a teacher.

    Returns:
        The configuration with the size.
    """
    data = config.data
    if data.size is not None or data.data in SOURCES or not has_pretrained_weights(config.model):
        return config
    return replace(config, data=replace(data, size=pretrained_info(split_groups(config.model)[0]).size))


def default_interpolation(model: str, data: str) -> Interpolation:
    """Return the filter that resizes images for a teacher: that of its pretrained weights for a folder, else bicubic.

    Args:
        model: Name of the network.
        data: Name or folder of the dataset.
    """
    name = model.partition("+")[0]
    is_pretrained = data not in SOURCES and has_pretrained_weights(name)
    return "bilinear" if is_pretrained and pretrained_info(name).interpolation == "bilinear" else "bicubic"


def resolve_start(config: RunConfig, data: Dataset, message: Message = no_message) -> RunConfig:
    """Add the suffix that the options for the initial weights require to the model name of a teacher.

    If the head of a vision transformer with a class token is trained, the suffix is ``+patch-mean``, because the maps
    are then exact. If several classes of the weights are mapped to one class of the data, or the classes differ and the
    head is not linear, the suffix is ``+groups-K``.

    Args:
        config: Configuration of a teacher.
        data: The dataset.
        message: Callback for a line about the suffix ``+patch-mean``.

    Returns:
        The configuration, with the name in ``config.model``.

    Raises:
        InputError: If the weights or the classes do not fit.
    """
    if config.teacher.train != "all":
        name = _resolve_patch_mean(config.model, data)
        if name != config.model:
            message(f"{name}: the head gets the mean of the patch tokens, so that the maps are exact")
        return replace(config, model=name)
    mapping = _map_classes(config, data)
    return config if mapping is None else replace(config, model=mapping.name)


def start_network(config: RunConfig, data: Dataset, message: Message = no_message) -> ImageClassifier:
    """Build the network that a run starts from, with its trained weights.

    Args:
        config: Configuration of a run, from `resolve_start` for a teacher.
        data: The dataset.
        message: Callback for lines about the weights.

    Returns:
        The model in training mode. Its normalization is set, unless the weights are random.

    Raises:
        InputError: If the weights or the classes do not fit, or a download fails.
    """
    size = data.size
    start = config.teacher
    if config.role != "teacher" or (start.weights is None and start.classes is None):
        return build(config.model, len(data.classes), size, config.train.seed)
    if start.train != "all":
        model = build(config.model, len(data.classes), size, config.train.seed, pretrained=False)
        assert start.weights is not None
        _load_weights(model, read_weights(start.weights, needs_classes=False), config, size, message, head=False)
        return model
    mapping = _map_classes(config, data)
    assert mapping is not None
    base_name = split_groups(config.model)[0]
    base = build(base_name, mapping.num_classes, size, config.train.seed, pretrained=mapping.weights is None)
    if mapping.weights is not None:
        _load_weights(base, mapping.weights, config, size, message)
    message(mapping.describe(data.classes))
    if mapping.name != base_name:
        return GroupedClassifier(base, mapping.groups, mapping.num_classes)
    rows = [group[0] for group in mapping.groups]
    if rows == list(range(mapping.num_classes)):
        return base
    return _select_classes(base, build(base_name, len(rows), size, pretrained=False), rows, size)


class _ClassMapping(NamedTuple):
    """Mapping from the classes of trained weights to the classes of a dataset, and the network for it.

    Attributes:
        name: Name of the resulting network.
        num_classes: Number of classes of the weights.
        groups: Indices of the classes of the weights that are mapped to each class of the data.
        weights: The given weights, or None for pretrained weights.
        has_names: Whether the classes were matched by name.
    """

    name: str
    num_classes: int
    groups: Groups
    weights: ForeignWeights | None
    has_names: bool

    def describe(self, classes: tuple[str, ...]) -> str:
        """Describe the mapping in one line."""
        if not self.has_names:
            names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            return f"classes: the weights contain no class names, so the order of the data is assumed: {names}"
        used = sum(map(len, self.groups))
        return (
            f"classes: {used:,} of the {self.num_classes:,} classes of the weights are mapped to the {len(classes):,} "
            "classes of the data"
        )


def _map_classes(config: RunConfig, data: Dataset) -> _ClassMapping | None:
    """Map the classes of trained weights to those of the data. None without ``--weights`` and ``--classes``."""
    start = config.teacher
    if start.weights is None and start.classes is None:
        return None
    name = split_groups(config.model)[0]
    size = data.size
    class_file = None if start.classes is None else read_class_file(start.classes)
    given_names = None if class_file is None else class_file.names
    pairs = None if class_file is None or class_file.names is not None else class_file.pairs
    if start.weights is None:
        weights = None
        stored_names: tuple[str, ...] | None = pretrained_info(name).classes
        assert stored_names is not None
        count = len(stored_names)
    else:
        weights = read_weights(start.weights, needs_classes=class_file is None)
        stored_names = weights.classes
        count = _count_classes(name, weights, len(data.classes), size)
    names = given_names or stored_names
    groups = group_classes(names, count, data.classes, pairs)
    is_plain = [group[0] for group in groups] == list(range(count)) and is_one_to_one(groups)
    if not is_plain and not (is_one_to_one(groups) and _has_linear_head(name, len(data.classes), size)):
        name = grouped_name(name, count)
    return _ClassMapping(name, count, groups, weights, names is not None or pairs is not None)


def _count_classes(name: str, weights: ForeignWeights, default: int, size: int) -> int:
    """Return the number of classes of weights: rows of the linear head, or ``default`` if there is no linear head."""
    model = build(name, default, size, pretrained=False)
    try:
        head = linear_head(_network(model), example_images(size))[0]
    except InputError:
        return default
    weight = _own_state(model, weights).get(f"{head}.weight")
    return default if weight is None or weight.ndim < 2 else len(weight)


def _has_linear_head(name: str, classes: int, size: int) -> bool:
    try:
        linear_head(build(name, classes, size, pretrained=False), example_images(size))
    except InputError:
        return False
    return True


def _network(model: ImageClassifier) -> nn.Module:
    """Return the network without the normalization of `ExternalClassifier`. Other models are returned as they are."""
    net = getattr(model, "net", None)
    return net if isinstance(net, nn.Module) and not isinstance(net, ImageClassifier) else model


def _own_state(model: ImageClassifier, weights: ForeignWeights) -> dict[str, Tensor]:
    """Return the tensors of a file, with the names that they have in ``_network(model)``."""
    return without_prefix(weights.state, _network(model).state_dict())


def _load_weights(
    model: ImageClassifier,
    weights: ForeignWeights,
    config: RunConfig,
    size: int,
    message: Message,
    *,
    head: bool = True,
) -> None:
    """Load given weights into a model, and set its normalization.

    Args:
        model: The model.
        weights: The weights.
        config: Configuration of the run, with the normalization.
        size: Side of the images in pixels.
        message: Callback for a line about the weights.
        head: Whether the head is loaded too. Otherwise the weights may have any number of classes.
    """
    network = _network(model)
    state = _own_state(model, weights)
    normalization = {name: _pop_normalization(state, weights, name) for name in ("mean", "std")}
    expected = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if network is not model or name not in normalization
    }
    if not head:
        prefix = f"{linear_head(network, example_images(size))[0]}."
        state, expected = (
            {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
            for tensors in (state, expected)
        )
    check_fit(state, expected, weights.path, split_groups(config.model)[0])
    network.load_state_dict(state, strict=False)
    source = f", entry {'.'.join(weights.source)}" if weights.source else ""
    text = _set_normalization(model, normalization, config)
    message(f"weights: {len(state):,} tensors of {weights.path}{source}; normalization: {text}")


def _pop_normalization(state: dict[str, Tensor], weights: ForeignWeights, name: str) -> Tensor | None:
    """Remove the mean or std that camkd stores with its weights from a state dict, and return it. None without it."""
    value = state.get(name, weights.state.get(name))
    if value is None or value.shape != (1, 3, 1, 1):
        return None
    state.pop(name, None)
    return value


def _set_normalization(model: ImageClassifier, stored: Mapping[str, Tensor | None], config: RunConfig) -> str:
    """Set the normalization that belongs to given weights, and describe it in a few words.

    If it is that of the training images, nothing is set: the caller of `start_network` computes and sets it.
    """
    choice = config.teacher.normalization
    mean, std = stored["mean"], stored["std"]
    statistics: tuple[Any, Any] | None
    if choice == "auto" and mean is not None and std is not None:
        statistics, source = (mean.flatten().tolist(), std.flatten().tolist()), "of the file"
    elif choice == "auto" and is_external(config.model):
        library = config.model.partition(":")[0]
        assert library in LIBRARIES
        statistics, source = usual_normalization(split_groups(config.model)[0]), f"default of {library}"
    elif choice == "imagenet":
        statistics, source = (IMAGENET_MEAN, IMAGENET_STD), "ImageNet's"
    elif choice == "none":
        statistics, source = ((0.0,) * 3, (1.0,) * 3), "none"
    else:
        return "the statistics of the training images"
    model.set_normalization(*statistics)
    model.has_pretrained_normalization = True
    return f"mean {_format(statistics[0])}, std {_format(statistics[1])} ({source})"


def _format(values: Any) -> str:
    return "/".join(f"{value:.3g}" for value in values)


def _select_classes(base: ImageClassifier, model: ImageClassifier, rows: list[int], size: int) -> ImageClassifier:
    """Load the weights of ``base`` into ``model``, with only ``rows`` of the last layer, in this order."""
    head, _ = linear_head(base, example_images(size))
    state = base.state_dict()
    for name in (f"{head}.weight", f"{head}.bias"):
        if name in state:
            state[name] = state[name][rows]
    model.load_state_dict(state)
    model.has_pretrained_normalization = base.has_pretrained_normalization
    return model.train()


def _resolve_patch_mean(name: str, data: Dataset) -> str:
    """Add the suffix `PATCH_MEAN` to the name of a network whose maps are exact only with the suffix."""
    if not is_external(name) or name.endswith(PATCH_MEAN):
        return name
    size = data.size
    images = example_images(size)
    if form(build(name, len(data.classes), size, pretrained=False).eval(), images) == "exact":
        return name
    try:
        model = build(name + PATCH_MEAN, len(data.classes), size, pretrained=False).eval()
    except InputError:
        return name
    return name + PATCH_MEAN if form(model, images) == "exact" else name
