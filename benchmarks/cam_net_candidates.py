"""Which architecture should CAM-Net have? Candidates of at most 96,000 parameters under one budget, on real pictures.

    python benchmarks/cam_net_candidates.py --data data/cifar10-jpeg --epochs 4 --json

Each is trained without a teacher by the product's own loop with its default settings, and judged on the validation
pictures (the test pictures are not read). Prints a table; with --json one object on stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from camkd.config import TrainConfig
from camkd.data.sources import open_data
from camkd.models import Normalised, build
from camkd.models.cam_net import CamNet, Recurrent, unit
from camkd.models.profile import profile
from camkd.models.resnet import BasicBlock
from camkd.objectives import objective
from camkd.pipeline import channel_statistics
from camkd.runs import Run
from camkd.train import fit


class Candidate(Normalised):
    """A body, a 1x1 convolution and the global average."""

    def __init__(self, body: nn.Sequential, channels: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(x))).mean((2, 3))
        return logits


class Inverted(nn.Module):
    """Inverted residual: 1x1 to a wider space, depthwise 3x3, 1x1 back (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(inputs, wide, 1),
            unit(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def candidate(channels: int, *layers: nn.Module) -> Callable[[int], Normalised]:
    """A candidate whose body is ``layers``, ending in ``channels`` channels."""
    return lambda classes: Candidate(nn.Sequential(*layers), channels, classes)


def candidates() -> dict[str, Callable[[int], Normalised]]:
    """Made anew at each call, so that each is drawn from the seed that is set then."""
    return {
        "cam-net: recurrent 40x3 at 16x16, 48x2 at 8x8": CamNet,
        "residual: 16 / 32 32 32 / 48": candidate(
            48, unit(3, 16), BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1), BasicBlock(32, 48, 2)
        ),
        "recurrent 48x3 at 16x16, one inverted residual at 8x8": candidate(
            64, unit(3, 16), unit(16, 48, stride=2), Recurrent(48, 3), unit(48, 64, stride=2), Inverted(64, 64, 112)
        ),
        "recurrent 32x3 at 16x16, 56x2 at 8x8": candidate(
            56, unit(3, 16), unit(16, 32, stride=2), Recurrent(32, 3), unit(32, 56, stride=2), Recurrent(56, 2)
        ),
        "inverted residuals, depthwise 3x3: 3x32 at 16x16, 3x48 at 8x8": candidate(
            48, unit(3, 16), unit(16, 32, stride=2), *[Inverted(32, 32, 128) for _ in range(2)],
            Inverted(32, 48, 128, 2), *[Inverted(48, 48, 192) for _ in range(2)],
        ),
        "resnet8 (He et al.)": lambda classes: build("resnet8", classes, 32),
    }  # fmt: skip


def measure(options: argparse.Namespace) -> list[dict[str, float | str]]:
    """Train every candidate once and read its validation accuracy."""
    data = open_data(options.data)
    mean, deviation = channel_statistics(data.train.images)
    rows = []
    for name in candidates():
        torch.manual_seed(options.seed)
        model = candidates()[name](len(data.classes))
        model.normalise_with(mean, deviation)
        cost = profile(model, data.train.images.shape[1])
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder))
            config = TrainConfig(epochs=options.epochs, seed=options.seed)
            fit(model, data, objective("plain"), config, run)
            history = run.read_history()
        rows.append(
            {
                "candidate": name,
                "params": cost.params,
                "macs": cost.macs,
                "val_accuracy": max(row["val_accuracy"] for row in history),
                "images_per_second": sum(row["images_per_second"] for row in history) / len(history),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/cifar10-jpeg")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options)
    if options.json:
        settings = {"data": options.data, "epochs": options.epochs, "seed": options.seed}
        print(json.dumps({**settings, "torch": torch.__version__, "machine": platform.machine(), "rows": rows}))
    else:
        print("| candidate | parameters | MACs | validation accuracy | pictures/s |\n|---|---|---|---|---|")
        for row in rows:
            print(
                f"| {row['candidate']} | {row['params']:,} | {float(row['macs']) / 1e6:.1f} M "
                f"| {float(row['val_accuracy']):.2%} | {float(row['images_per_second']):,.0f} |"
            )


if __name__ == "__main__":
    main()
