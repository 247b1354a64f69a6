"""Class activation maps of several models for the same images and classes, and their figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camkd.cams import predict
from camkd.data.dataset import Split, round_robin
from camkd.explain.class_names import describe_classes, describe_contrast, describe_map
from camkd.explain.plots import HeatmapColumn, save_heatmaps
from camkd.models.eval_mode import eval_mode
from camkd.types import Prediction


class ModelMaps(NamedTuple):
    """Probabilities and maps of one model for ``N`` images."""

    probabilities: NDArray[np.float32]
    """Softmax probabilities of all classes, ``(N, K)``."""
    maps: NDArray[np.float32]
    """Maps of the explained classes, ``(N, k, h, w)``."""
    threshold: float = 0.0
    """Confidence below which a prediction is unsure."""

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """Whether the confidence of each image is below the threshold, ``(N,)``."""
        is_below: NDArray[np.bool_] = self.probabilities.max(1) < self.threshold
        return is_below

    @classmethod
    def concatenate(cls, predictions: Sequence[Prediction]) -> ModelMaps:
        """Concatenate predictions with maps of the explained classes, one prediction per batch of images."""
        probabilities = torch.cat([prediction.logits.softmax(1) for prediction in predictions])
        maps = torch.cat([prediction.cams for prediction in predictions if prediction.cams is not None])
        return cls(probabilities.numpy(), maps.numpy())


class Explanation(NamedTuple):
    """Maps of several models for the same ``N`` images and the same ``k`` explained classes of each image."""

    class_ids: NDArray[np.int64]
    """The classes of the maps, ``(N, k)``."""
    maps_by_model: dict[str, ModelMaps]
    """Probabilities and maps by the title of the model."""
    against: tuple[int, ...] = ()
    """Indices of the classes that every map is contrasted with. None of them is an explained class."""


def explain_batches(
    models: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, NDArray[np.uint8]]],
    *,
    top: int = 1,
    method: str = "cam",
    layers: Mapping[str, str] | None = None,
    against: Sequence[int] = (),
) -> Explanation:
    """Compute each model's maps of the ``top`` classes that the first model ranks highest.

    The models run on their own devices in eval mode. With ``against``, every map is a contrast map, see
    `camkd.predict`. The classes in ``against`` are not explained, even if a model predicts one of them.

    Args:
        models: Models by title. The first model selects the classes.
        batches: Batches of images ``(n, H, W, 3)`` uint8, RGB, by the title of the model: each model gets the images at
            its own size.
        top: Number of classes per image, ``k``.
        method: Map method, a name in ``camkd.cams.MAP_METHODS``.
        layers: Dotted names of the layers to compute maps from, by model title. Default: the layer that
            `camkd.predict` selects.
        against: Indices of the classes that every map is contrasted with.

    Returns:
        Classes, probabilities and maps of all batches, concatenated.

    Raises:
        InputError: If ``method`` or a layer does not exist, ``top`` is not between 1 and the number of classes, or a
            model has no layer with a spatial output.

    Example:
        >>> models = {"student": camkd.load("cam-net-cifar10")}  # doctest: +SKIP
        >>> batch = {"student": np.zeros((4, 32, 32, 3), np.uint8)}  # doctest: +SKIP
        >>> explanation = explain_batches(models, [batch], top=3)  # doctest: +SKIP
        >>> explanation.class_ids.shape, explanation.maps_by_model["student"].maps.shape  # doctest: +SKIP
        ((4, 3), (4, 3, 16, 16))
    """
    layers = layers or {}
    options: dict[str, Any] = {"method": method}
    class_ids: list[Tensor] = []
    predictions: dict[str, list[Prediction]] = {title: [] for title in models}
    for images in batches:
        selection: dict[str, Any] = {"top": top}
        if against:
            title, model = next(iter(models.items()))
            selection = {"classes": _top_classes(model, images[title], top, against)}
            options["against"] = torch.tensor(against).expand(len(images[title]), -1)
        for title, model in models.items():
            prediction = predict_images(model, images[title], layer=layers.get(title), **selection, **options)
            selection = {"classes": prediction.class_ids}
            predictions[title].append(prediction)
        class_ids.append(selection["classes"])
    maps_by_model = {
        title: ModelMaps.concatenate(batch_predictions) for title, batch_predictions in predictions.items()
    }
    return Explanation(torch.cat(class_ids).numpy(), maps_by_model, tuple(against))


def _top_classes(model: nn.Module, images: NDArray[np.uint8], top: int, excluded: Sequence[int]) -> Tensor:
    """Return the ``top`` most probable classes of each image, ``(N, top)``, without the excluded classes."""
    with eval_mode(model), torch.no_grad():
        logits: Tensor = model(_to_input(model, images)).cpu()
    logits[:, list(excluded)] = -torch.inf
    return logits.topk(top).indices


def draw_explanation(
    images: NDArray[np.uint8],
    explanation: Explanation,
    classes: Sequence[str],
    path: Path,
    *,
    true_classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Save images and maps side by side as PNG, with `camkd.explain.plots.save_heatmaps`.

    With one explained class per image, the caption of a map is the class that its model predicts, and the confidence.
    Below the model's threshold the caption starts with "unsure".
    With several explained classes, the caption is the class of the map and its probability. Without true classes, a
    footnote names the classes of the model. The names of contrast maps have the form "bird vs. cat", and a footnote
    describes the contrast.

    Args:
        images: ``(N, H, W, 3)`` uint8, RGB.
        explanation: Maps for the same images.
        classes: Names of all ``K`` classes.
        path: The PNG file to write.
        true_classes: Name of each image's true class ``(N,)``. If given, predictions are marked correct or wrong.
            Ignored if the explanation holds several classes per image.
        names: Name of each image ``(N,)``, drawn under the image if ``true_classes`` is not used.

    Raises:
        ValueError: If there are no images, or the numbers of images, maps and names differ.

    Example:
        >>> explanation = explain_batches(models, [{"student": images}], top=3)  # doctest: +SKIP
        >>> draw_explanation(images, explanation, classes, Path("cams.png"))  # doctest: +SKIP
    """
    class_ids = explanation.class_ids
    against = [classes[k] for k in explanation.against]
    sentences = [describe_contrast(against)] if against else []
    if true_classes is None:
        sentences.append(describe_classes(classes))
    footnote = " ".join(sentences)
    if class_ids.shape[1] == 1:
        columns = [
            _column(title, model_maps, model_maps.probabilities.argmax(1), 0, classes, (), mark_unsure=True)
            for title, model_maps in explanation.maps_by_model.items()
        ]
        map_classes = [describe_map(classes[k], against) for k in class_ids[:, 0]]
        save_heatmaps(
            images,
            columns,
            path,
            map_classes=map_classes,
            true_classes=true_classes,
            names=names,
            footnote=footnote,
        )
        return
    columns = [
        _column(title, model_maps, class_ids[:, rank], rank, classes, against)
        for rank in range(class_ids.shape[1])
        for title, model_maps in explanation.maps_by_model.items()
    ]
    save_heatmaps(images, columns, path, names=names, blocks=1, footnote=footnote)


def _column(
    title: str,
    model_maps: ModelMaps,
    caption_ids: NDArray[np.int64],
    rank: int,
    classes: Sequence[str],
    against: Sequence[str],
    *,
    mark_unsure: bool = False,
) -> HeatmapColumn:
    confidences = np.take_along_axis(model_maps.probabilities, caption_ids[:, None], 1)[:, 0]
    captions = [describe_map(classes[k], against) for k in caption_ids]
    if mark_unsure:
        captions = [
            f"unsure: {name}" if unsure else name for name, unsure in zip(captions, model_maps.unsure, strict=True)
        ]
    return HeatmapColumn(title, model_maps.maps[:, rank], captions, confidences.tolist())


def example_rows(split: Split, count: int = 8) -> NDArray[np.int64]:
    """Select example images independent of any prediction: the first of each class, then the second, and so on.

    Args:
        split: The images.
        count: Number of images, fewer if ``split`` is smaller.

    Returns:
        Rows of ``split``, int64 ``(min(count, N),)``.
    """
    return round_robin(split.labels)[:count]


def predict_images(model: nn.Module, images: NDArray[np.uint8], **options: Any) -> Prediction:
    """Run `camkd.predict` on uint8 images, with the model on its own device in eval mode.

    Args:
        model: A classifier.
        images: ``(N, H, W, 3)`` uint8, RGB.
        **options: Keyword arguments of `camkd.predict`.

    Returns:
        The prediction, detached and on the CPU.
    """
    with eval_mode(model), torch.no_grad():
        return predict(model, _to_input(model, images), **options).to(torch.device("cpu"))


def _to_input(model: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Convert images ``(N, H, W, 3)`` uint8 to ``(N, 3, H, W)`` in 0..1, on the device of the model."""
    device = next(model.parameters()).device
    return torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 255
