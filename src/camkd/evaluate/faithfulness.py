"""Faithfulness of a model's maps to the model, on a sample of a split, with the chance level of other images' maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from camkd.data.batches import sequential_batches
from camkd.data.dataset import Split, balanced_subset
from camkd.data.views import Views
from camkd.evaluate.inference import predict_split
from camkd.evaluate.metrics import derangement
from camkd.evaluate.perturbation import ScoreFunction, average_drop, deletion, insertion
from camkd.evaluate.road import road
from camkd.evaluate.sanity import sanity
from camkd.models.eval_mode import eval_mode
from camkd.types import SHUFFLED

MAX_SAMPLE_SIZE = 256
"""Default number of images in the sample, if they have at most 96x96 pixels."""

MIN_SAMPLE_SIZE = 64
"""Default number of images in the sample, if they are large."""

MAX_SAMPLE_PIXELS = MAX_SAMPLE_SIZE * 96 * 96
"""Largest number of pixels of the default sample, if it has more than `MIN_SAMPLE_SIZE` images."""

FORWARD_PASSES_PER_IMAGE = 85
"""Forward passes per image of the sample, see docs/metrics.md."""

IMPUTATIONS_PER_IMAGE = 16
"""Calls of `camkd.evaluate.road.impute` per image of the sample."""


def default_sample_size(split: Split) -> int:
    """Return the default number of images in the sample of `faithfulness`.

    Args:
        split: The images.

    Returns:
        The number of images, which decreases with the size of an image.

    Example:
        >>> sides = (32, 128, 224)
        >>> [default_sample_size(Split(np.zeros((500, s, s, 3), np.uint8), np.zeros(500))) for s in sides]
        [256, 144, 64]
    """
    pixels_per_image = int(split.images.shape[1] * split.images.shape[2])
    count = min(MAX_SAMPLE_SIZE, max(MIN_SAMPLE_SIZE, MAX_SAMPLE_PIXELS // pixels_per_image))
    return min(count, len(split))


def faithfulness(model: nn.Module, split: Split, count: int | None = None) -> dict[str, float]:
    """Average the faithfulness metrics over a class-balanced sample of a split.

    The sample is the first ``count`` images of ``split``, taken from the classes in turn. Each map is of the class that
    the model predicts, and each score is the softmax probability of that class. The model runs on its own device in
    eval mode; its modes, buffers and parameter gradients stay unchanged.

    Args:
        model: A classifier.
        split: The images.
        count: Number of images in the sample, fewer if ``split`` is smaller (default: `default_sample_size`).

    Returns:
        Values by the name of the metric.

        - ``insertion``, ``deletion``, ``road``, ``average_drop``, ``confidence_increase``: means over the sample.
        - ``*_shuffled``: the same metrics with the map of another image, chosen by
          `camkd.evaluate.metrics.derangement`. Absent for a single image.
        - ``randomized_spearman``: see `camkd.evaluate.sanity.sanity`. Absent if the logits or the maps of the
          randomized copy are not finite.
        - ``faithfulness_images``: number of images in the sample.

    Raises:
        InputError: If the model has no layer with a spatial output, or stored images fail their checksums.

    Example:
        >>> values = faithfulness(camkd.load("cam-net-cifar10"), open_data("cifar10").test)  # doctest: +SKIP
        >>> values["deletion"] < values["deletion_shuffled"]  # doctest: +SKIP
        True
    """
    sample = split.take(balanced_subset(split.labels, count or default_sample_size(split)))
    predictions = predict_split(model, sample)
    device = next(model.parameters()).device
    views = Views(sample, 0, "none", 0, device)
    other_maps = predictions.maps[derangement(len(sample))] if len(sample) > 1 else None
    sums: dict[str, float] = {}
    with eval_mode(model), torch.no_grad():
        for rows in sequential_batches(sample):
            x = views[0, rows].x
            score = _class_probability(model, predictions.class_ids[rows].to(device))
            values = _perturbation_metrics(score, x, predictions.maps[rows].to(device))
            if other_maps is not None:
                shuffled_values = _perturbation_metrics(score, x, other_maps[rows].to(device))
                values |= {SHUFFLED.key(name): value for name, value in shuffled_values.items()}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    metrics = {name: total / len(sample) for name, total in sums.items()}
    similarity = sanity(model, sample, predictions)
    if similarity is not None:
        metrics["randomized_spearman"] = similarity
    metrics["faithfulness_images"] = len(sample)
    return metrics


def _class_probability(model: nn.Module, class_ids: Tensor) -> ScoreFunction:
    """Return a function that computes the probability of class ``class_ids[i]`` for image ``i``."""

    def score(x: Tensor) -> Tensor:
        probabilities: Tensor = model(x).float().softmax(1)
        return probabilities.gather(1, class_ids[:, None]).squeeze(1)

    return score


def _perturbation_metrics(score: ScoreFunction, x: Tensor, maps: Tensor) -> dict[str, Tensor]:
    drop, increase = average_drop(score, x, maps)
    return {
        "insertion": insertion(score, x, maps),
        "deletion": deletion(score, x, maps),
        "road": road(score, x, maps),
        "average_drop": drop,
        "confidence_increase": increase,
    }
