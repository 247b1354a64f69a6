"""Which architecture should CAM-Net have? Candidates of at most 96,000 parameters under one budget, on real pictures.

    python benchmarks/cam_net_candidates.py --data data/cifar10-jpeg --limit 20000 --epochs 3 --json

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
from public_student import GatedBlock as PublicBlock
from public_student import PublicStudent
from torch import Tensor, nn

from camkd.config import TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.distill.objective import parse_objective
from camkd.experiments.compare import slug
from camkd.experiments.pipeline import channel_statistics
from camkd.models import ImageClassifier, build
from camkd.models.cam_net import CamNet, ChannelNorm, GatedBlock
from camkd.models.profile import profile
from camkd.models.resnet11 import conv_bn_relu
from camkd.runs.folder import Run, collect_environment
from camkd.train.loop import fit
from camkd.utils.files import write_json


def _norms(channels: int, times: int) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))


class Recurrent(nn.Module):
    """A residual block ``x + norm(conv2(relu(norm(conv1(x)))))`` that runs ``times`` times with the same kernels."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms1, self.norms2 = _norms(channels, times), _norms(channels, times)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2 in zip(self.norms1, self.norms2, strict=True):
            x = self.relu(x + norm2(self.conv2(self.relu(norm1(self.conv1(x))))))
        return x


class RecurrentInverted(nn.Module):
    """An inverted residual ``x + norm(narrow(relu(norm(depthwise(relu(norm(widen(x))))))))`` that runs ``times`` times.

    ``widen`` and ``narrow`` are 1x1 convolutions to ``wide`` channels and back, ``depthwise`` is 3x3.
    """

    def __init__(self, channels: int, wide: int, times: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.norms1, self.norms2, self.norms3 = _norms(wide, times), _norms(wide, times), _norms(channels, times)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2, norm3 in zip(self.norms1, self.norms2, self.norms3, strict=True):
            y = self.relu(norm1(self.widen(x)))
            x = x + norm3(self.narrow(self.relu(norm2(self.depthwise(y)))))
        return x


class Candidate(ImageClassifier):
    """A body, a 1x1 convolution and the global average."""

    def __init__(self, body: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x))).mean((2, 3))
        return logits


def candidate(channels: int, *layers: nn.Module) -> Callable[[int], ImageClassifier]:
    """A candidate whose body is ``layers``, ending in ``channels`` channels."""
    return lambda classes: Candidate(nn.Sequential(*layers), channels, classes)


def gated(channels: int, normalise: Callable[[int], nn.Module] = ChannelNorm) -> GatedBlock:
    """CAM-Net's block with another normalisation."""
    block = GatedBlock(channels)
    block.norm = normalise(channels)
    return block


def candidates() -> dict[str, Callable[[int], ImageClassifier]]:
    """Made anew at each call, so that each is drawn from the seed that is set then."""
    stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
    return {
        "cam-net": CamNet,
        "cam-net-lite": lambda classes: CamNet(classes, lite=True),
        "cam-net with the public network's blocks": candidate(
            64, stem, ChannelNorm(64), *(PublicBlock(64) for _ in range(6))
        ),
        "cam-net with batch normalisation": candidate(
            64, stem, nn.BatchNorm2d(64), *(gated(64, nn.BatchNorm2d) for _ in range(6))
        ),
        "recurrent, dense and inverted (the cam-net before)": candidate(
            64, conv_bn_relu(3, 16), conv_bn_relu(16, 16), conv_bn_relu(16, 32, stride=2),
            Recurrent(32, 2), conv_bn_relu(32, 64, stride=2),
            RecurrentInverted(64, 160, 3), RecurrentInverted(64, 176, 2),
        ),
        "the public network (over the limit)": PublicStudent,
        "resnet8 (He et al.)": lambda classes: build("resnet8", classes, 32),
    }  # fmt: skip


def optimizer(name: str) -> str:
    """AdamW where places are normalised, SGD where batches are; it is what does best for each (LOG.md)."""
    return "adamw" if name.startswith(("cam-net", "the public")) else "sgd"


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
    if run.metrics_file.exists():
        return run.read_metrics()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = candidates()[name](len(data.classes))
    model.set_normalization(*channel_statistics(data.train.images))
    cost = profile(model, size)
    best = fit(model, data, parse_objective("plain"), config, run, resume=bool(run.checkpoints))
    history = run.read_history()
    row = {
        "candidate": name,
        "params": cost.params,
        "macs": cost.macs,
        "map": list(cost.map_size),
        "val_accuracy": max(row["val_accuracy"] for row in history),
        "images_per_second": statistics.median(row["images_per_second"] for row in history),
        "latency_ms": latency(best, size),
    }
    write_json(run.metrics_file, row)
    return row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10-jpeg")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="a part of the pictures, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/evidence/candidates")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, rows = open_data(options.data, limit=options.limit), []
    for name in candidates():
        config = TrainConfig(options.epochs, optimizer=optimizer(name), seed=options.seed)
        folder = Path(options.out) / f"{options.epochs}-epochs-seed-{options.seed}" / slug(name)
        rows.append(train(data, name, config, folder))
        print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({**vars(options), "environment": collect_environment(), "rows": rows}))
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
