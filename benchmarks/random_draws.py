"""Spread of the metrics that depend on a random draw, over seeds, and the time of the randomization test.

    python benchmarks/random_draws.py MODEL... --data NAME [--json]

The sample is that of the faithfulness metrics. For each model and metric, the script prints mean and standard deviation
over seeds of the value from a single draw: a randomized copy of the model, the noise of ROAD, or the order of the
images whose maps are exchanged. ``time_share`` is the CPU time of the randomization test as a share of that of all
faithfulness metrics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from camkd.data.dataset import Split, balanced_subset
from camkd.data.sources import open_data
from camkd.data.views import Views
from camkd.evaluate.faithfulness import MAX_SAMPLE_SIZE, faithfulness
from camkd.evaluate.inference import predict_split
from camkd.evaluate.metrics import cosine, derangement
from camkd.evaluate.perturbation import average_drop, deletion, insertion
from camkd.evaluate.road import road
from camkd.evaluate.sanity import sanity
from camkd.runs.folder import collect_environment
from camkd.runs.loading import load

DRAWS = {"randomized_spearman": 40, "road": 10, "shuffled": 10}
"""Number of seeds by random draw."""


def draw_metrics(model: nn.Module, split: Split) -> dict[str, list[float]]:
    """Compute each metric once per seed.

    Args:
        model: A classifier on the CPU, in eval mode.
        split: The images.

    Returns:
        The values by metric, one per seed.
    """
    predictions = predict_split(model, split)
    x = Views(split, 0, "none", 0, torch.device("cpu"))[0, torch.arange(len(split))].x
    rows = torch.arange(len(split))

    def score(x: torch.Tensor) -> torch.Tensor:
        return model(x).softmax(1)[rows, predictions.class_ids]

    values: dict[str, list[float]] = {"randomized_spearman": []}
    for seed in range(DRAWS["randomized_spearman"]):
        value = sanity(model, split, predictions, draws=1, seed=seed)
        values["randomized_spearman"] += [] if value is None else [value]
    with torch.no_grad():
        values["road"] = [road(score, x, predictions.maps, seed).mean().item() for seed in range(DRAWS["road"])]
        metrics: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "cam_cosine_shuffled": lambda maps: cosine(predictions.maps, maps),
            "deletion_shuffled": lambda maps: deletion(score, x, maps),
            "insertion_shuffled": lambda maps: insertion(score, x, maps),
            "road_shuffled": lambda maps: road(score, x, maps),
            "average_drop_shuffled": lambda maps: average_drop(score, x, maps)[0],
            "confidence_increase_shuffled": lambda maps: average_drop(score, x, maps)[1],
        }
        for name, metric in metrics.items():
            orders = [derangement(len(split), seed) for seed in range(DRAWS["shuffled"])]
            values[name] = [metric(predictions.maps[order]).double().mean().item() for order in orders]
    return values


def time_share(model: nn.Module, split: Split) -> float:
    """Return the CPU time of the randomization test as a share of that of all faithfulness metrics."""
    predictions = predict_split(model, split)
    started = time.process_time()
    sanity(model, split, predictions)
    middle = time.process_time()
    faithfulness(model, split)
    return (middle - started) / (time.process_time() - middle)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run, checkpoint or name of a shipped model")
    parser.add_argument("--data", required=True, help="name of a data source, or a folder of images")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = open_data(options.data).test
    sample = test.take(balanced_subset(test.labels, MAX_SAMPLE_SIZE))
    results = {}
    for name in options.models:
        model = load(name).eval()
        values = draw_metrics(model, sample)
        results[name] = {
            "time_share": time_share(model, sample),
            "metrics": {
                metric: {"mean": statistics.mean(draws), "sd": statistics.stdev(draws), "draws": len(draws)}
                for metric, draws in values.items()
            },
        }
    if options.json:
        print(json.dumps({"models": results, "images": len(sample), "environment": collect_environment()}))
        return
    for name, result in results.items():
        print(f"{name}: the randomization test takes {result['time_share']:.0%} of the faithfulness metrics")
        for metric, row in result["metrics"].items():
            print(f"  {metric:30} {row['mean']:7.4f}, standard deviation {row['sd']:.4f} over {row['draws']} draws")


if __name__ == "__main__":
    main()
