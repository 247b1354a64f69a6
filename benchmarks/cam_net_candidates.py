"""Compare the architectures that were considered for CAM-Net, all with the same number of epochs and images.

    python benchmarks/cam_net_candidates.py --data data/cifar10-jpeg --limit 20000 --epochs 3 --json

CAM-Net was designed for at most 96,000 parameters; ``cifar10-tiniest`` has more and is trained for comparison. Each
candidate is trained without a teacher by camkd's own loop, and compared on the validation images. The test images are
not read. Latency is the median time of one image on one thread in fp32. Every candidate is a run folder under --out.
Finished runs are read, interrupted runs resume. The script prints a table; with --json one object on stdout.
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
from cifar10_tiniest import Cifar10Tiniest
from cifar10_tiniest import GatedBlock as TiniestBlock
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


def _norms(channels: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(count))


class Recurrent(nn.Module):
    """Residual block ``relu(x + norm2(conv2(relu(norm1(conv1(x))))))``, repeated with the same kernels.

    Args:
        channels: Number of channels.
        repeats: Number of repetitions; each has its own batch normalization.
    """

    def __init__(self, channels: int, repeats: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms1 = _norms(channels, repeats)
        self.norms2 = _norms(channels, repeats)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2 in zip(self.norms1, self.norms2, strict=True):
            x = self.relu(x + norm2(self.conv2(self.relu(norm1(self.conv1(x))))))
        return x


class RecurrentInverted(nn.Module):
    """Inverted residual block ``x + norm3(narrow(relu(norm2(depthwise(relu(norm1(widen(x))))))))``, repeated.

    All repetitions share the kernels. ``widen`` and ``narrow`` are 1x1 convolutions, and ``depthwise`` is a 3x3
    convolution.

    Args:
        channels: Number of channels.
        wide_channels: Number of channels between ``widen`` and ``narrow``.
        repeats: Number of repetitions; each has its own batch normalization.
    """

    def __init__(self, channels: int, wide_channels: int, repeats: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, wide_channels, 1, bias=False)
        self.depthwise = nn.Conv2d(wide_channels, wide_channels, 3, 1, 1, groups=wide_channels, bias=False)
        self.narrow = nn.Conv2d(wide_channels, channels, 1, bias=False)
        self.norms1 = _norms(wide_channels, repeats)
        self.norms2 = _norms(wide_channels, repeats)
        self.norms3 = _norms(channels, repeats)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2, norm3 in zip(self.norms1, self.norms2, self.norms3, strict=True):
            y = self.relu(norm1(self.widen(x)))
            x = x + norm3(self.narrow(self.relu(norm2(self.depthwise(y)))))
        return x


class Candidate(ImageClassifier):
    """Classifier of a body, a 1x1 convolution to the classes, and global average pooling.

    Args:
        body: Module from normalized images ``(N, 3, H, W)`` to features ``(N, channels, h, w)``.
        channels: Number of channels of the features.
        classes: Number of classes.
    """

    def __init__(self, body: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x))).mean((2, 3))
        return logits


def make_candidate(channels: int, *layers: nn.Module) -> Callable[[int], ImageClassifier]:
    """Return a function from the number of classes to a `Candidate` with ``layers`` as its body.

    Args:
        channels: Number of output channels of the last layer.
        layers: Layers of the body. All returned candidates share them.
    """
    return lambda classes: Candidate(nn.Sequential(*layers), channels, classes)


def gated_block(channels: int, norm: Callable[[int], nn.Module]) -> GatedBlock:
    """Build CAM-Net's block with ``norm(channels)`` instead of layer normalization."""
    block = GatedBlock(channels)
    block.norm = norm(channels)
    return block


def candidates() -> dict[str, Callable[[int], ImageClassifier]]:
    """Return the candidates by name, each as a function from the number of classes to a model.

    Random weights depend on the global seed when this function and the returned function are called.
    """
    stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
    return {
        "cam-net": lambda classes: CamNet(classes, 32),
        "cam-net-lite": lambda classes: CamNet(classes, 32, variant="lite"),
        "cam-net with the blocks of cifar10-tiniest": make_candidate(
            64, stem, ChannelNorm(64), *(TiniestBlock(64) for _ in range(6))
        ),
        "cam-net with batch normalization": make_candidate(
            64, stem, nn.BatchNorm2d(64), *(gated_block(64, nn.BatchNorm2d) for _ in range(6))
        ),
        "recurrent, dense and inverted (the previous cam-net)": make_candidate(
            64, conv_bn_relu(3, 16), conv_bn_relu(16, 16), conv_bn_relu(16, 32, stride=2),
            Recurrent(32, 2), conv_bn_relu(32, 64, stride=2),
            RecurrentInverted(64, 160, 3), RecurrentInverted(64, 176, 2),
        ),
        "cifar10-tiniest (over the limit)": Cifar10Tiniest,
        "resnet8 (He et al.)": lambda classes: build("resnet8", classes, 32),
    }  # fmt: skip


def optimizer(name: str) -> str:
    """Return the optimizer of a candidate: AdamW for CAM-Nets and cifar10-tiniest, SGD for the others (LOG.md)."""
    return "adamw" if name.startswith(("cam-net", "cifar10-tiniest")) else "sgd"


def latency(model: nn.Module, size: int) -> float:
    """Return the median milliseconds for one image of ``size`` x ``size`` pixels on one thread, of 200 calls."""
    x = torch.rand(1, 3, size, size)
    seconds = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(200):
                started = time.perf_counter()
                model(x)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(num_threads)
    return 1e3 * statistics.median(seconds)


def train(data: Dataset, name: str, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train a candidate, or read the metrics of its finished run. Return the candidate's row of the table."""
    run = Run(folder)
    if run.metrics_file.exists():
        return run.read_metrics()
    size = int(data.train.images.shape[1])
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
    """Train every candidate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/cifar10-jpeg")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="number of images per split, for a quick trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/evidence/candidates")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    data = open_data(options.data, limit=options.limit)
    rows = []
    for name in candidates():
        config = TrainConfig(options.epochs, optimizer=optimizer(name), seed=options.seed)
        folder = Path(options.out) / f"{options.epochs}-epochs-seed-{options.seed}" / slug(name)
        rows.append(train(data, name, config, folder))
        print(rows[-1], file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({**vars(options), "environment": collect_environment(), "rows": rows}))
        return
    print("| candidate | parameters | MACs | validation accuracy | images/s in training | ms for one image |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['candidate']} | {row['params']:,} | {row['macs'] / 1e6:.1f} M | {row['val_accuracy']:.2%} "
            f"| {row['images_per_second']:,.0f} | {row['latency_ms']:.2f} |"
        )


if __name__ == "__main__":
    main()
