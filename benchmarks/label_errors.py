"""Recall and precision of `camkd audit --teacher`, on replaced labels.

    python benchmarks/label_errors.py FOLDER --teacher RUN --out benchmarks/results/DATE-label-errors.json

Labels of random images are replaced by another class. Images that are listed with their own label count as false, so
the precision is a lower bound.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from camkd.audit.inventory import open_inventory
from camkd.audit.label_errors import FOLDS, find_suspects, image_features, predict_out_of_sample
from camkd.config import DataConfig
from camkd.data.dataset import no_progress
from camkd.runs.loading import load


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = DataConfig(str(options.folder))
    rows = []
    with open_inventory(config, no_progress) as inventory:
        _, features = image_features(inventory, load(options.teacher), config, "auto", no_progress)
        prediction = predict_out_of_sample(inventory, [], inventory.is_readable, features)
        accuracy = float((prediction.probabilities.argmax(1) == prediction.labels).mean())
        listed = len(find_suspects(prediction))
        print(f"{len(inventory):,} images, accuracy {accuracy:.3f}, listed {listed}")
        count = round(options.fraction * len(inventory))
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)
            replaced = rng.choice(len(inventory), count, replace=False)
            labels = inventory.labels.copy()
            labels[replaced] += rng.integers(1, len(inventory.classes), count)
            noisy = replace(inventory, labels=labels % len(inventory.classes))
            prediction = predict_out_of_sample(noisy, [], noisy.is_readable, features)
            suspects = prediction.rows[find_suspects(prediction)]
            is_true = np.isin(suspects, replaced)
            row = {
                "seed": seed,
                "listed": len(suspects),
                "recall": is_true.sum() / count,
                "precision": is_true.mean(),
                "precision_of_first": is_true[:count].mean(),
            }
            rows.append({key: round(float(value), 4) for key, value in row.items()})
            print(rows[-1])
    result = {
        "images": len(inventory),
        "teacher": Path(options.teacher).name,
        "folds": FOLDS,
        "accuracy": round(accuracy, 4),
        "listed": listed,
        "replaced": count,
        "runs": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
