"""Which architecture should CAM-Net have? Candidates of at most 96,000 parameters under one budget, on real pictures.

    python benchmarks/cam_net_candidates.py --data data/cifar10-jpeg --epochs 8 --json

Each is trained without a teacher by the product's own loop, and judged on the validation pictures (the test pictures
are not read). Latency is of one picture on one thread in fp32, as trained, the median of many. Every candidate is a run
folder under --out: what is finished is read, what was interrupted goes on. Prints a table; with --json one object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkd.compare import slug
from camkd.config import TrainConfig
from camkd.data.sources import open_data
from camkd.data.store import Dataset
from camkd.files import write_json
from camkd.models import Normalised, build
from camkd.models.cam_net import CamNet, Recurrent, RecurrentInverted, unit
from camkd.models.profile import profile
from camkd.models.resnet import BasicBlock
from camkd.objectives import objective
from camkd.pipeline import channel_statistics
from camkd.runs import Run, environment
from camkd.train import fit


class Candidate(Normalised):
    """A body, a 1x1 convolution and the global average."""

    def __init__(self, body: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(x))).mean((2, 3))
        return logits


def candidate(channels: int, *layers: nn.Module) -> Callable[[int], Normalised]:
    """A candidate whose body is ``layers``, ending in ``channels`` channels."""
    return lambda classes: Candidate(nn.Sequential(*layers), channels, classes)


def candidates() -> dict[str, Callable[[int], Normalised]]:
    """Made anew at each call, so that each is drawn from the seed that is set then."""
    return {
        "cam-net": CamNet,
        "cam-net-lite": lambda classes: CamNet(classes, lite=True),
        "resnet8 (He et al.)": lambda classes: build("resnet8", classes, 32),
        "residual: 16 / 32 32 32 / 48": candidate(
            48, unit(3, 16), BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1), BasicBlock(32, 48, 2)
        ),
        "dense recurrent: 40x3 at 16x16, 48x2 at 8x8": candidate(
            48, unit(3, 16), unit(16, 40, stride=2), Recurrent(40, 3), unit(40, 48, stride=2), Recurrent(48, 2)
        ),
        "stem of two, dense 48x3, inverted 64x2": candidate(
            64, unit(3, 16), unit(16, 16), unit(16, 48, stride=2), Recurrent(48, 3), unit(48, 64, stride=2),
            RecurrentInverted(64, 96, 2),
        ),
        "inverted recurrent alone, 12.3M": candidate(
            64, unit(3, 16), unit(16, 32, stride=2), RecurrentInverted(32, 96, 2), unit(32, 64, stride=2),
            RecurrentInverted(64, 176, 3), RecurrentInverted(64, 144, 1),
        ),
        "inverted recurrent alone, stem of two": candidate(
            64, unit(3, 16), unit(16, 16), unit(16, 32, stride=2), RecurrentInverted(32, 128, 3),
            unit(32, 64, stride=2), RecurrentInverted(64, 192, 3), RecurrentInverted(64, 176, 2),
        ),
    }  # fmt: skip


def latency(model: nn.Module, size: int) -> float:
    """Milliseconds for one picture, on one thread."""
    x, times, threads = torch.rand(1, 3, size, size), [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(200):
                started = time.perf_counter()
                model(x)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(times)


def train(data: Dataset, name: str, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """One candidate's row."""
    run, size = Run(folder), int(data.train.images.shape[1])
    if run.metrics.exists():
        return run.read_metrics()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = candidates()[name](len(data.classes))
    model.normalise_with(*channel_statistics(data.train.images))
    cost = profile(model, size)
    best = fit(model, data, objective("plain"), config, run, resume=bool(run.checkpoints))
    history = run.read_history()
    row = {
        "candidate": name,
        "params": cost.params,
        "macs": cost.macs,
        "map": list(cost.grid),
        "val_accuracy": max(row["val_accuracy"] for row in history),
        "images_per_second": statistics.median(row["images_per_second"] for row in history),
        "latency_ms": latency(best, size),
    }
    write_json(run.metrics, row)
    return row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10-jpeg")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/evidence/candidates")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, rows = open_data(options.data), []
    config = TrainConfig(epochs=options.epochs, lr=options.lr, seed=options.seed)
    for name in candidates():
        folder = Path(options.out) / f"{options.epochs}-epochs-seed-{options.seed}" / slug(name)
        rows.append(train(data, name, config, folder))
        print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({**vars(options), "environment": environment(), "rows": rows}))
        return
    print("| candidate | parameters | MACs | validation accuracy | pictures/s in training | ms for one picture |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['candidate']} | {row['params']:,} | {row['macs'] / 1e6:.1f} M | {row['val_accuracy']:.2%} "
            f"| {row['images_per_second']:,.0f} | {row['latency_ms']:.2f} |"
        )


if __name__ == "__main__":
    main()
