"""Search a student for photographs of 64 to 224 pixels: cost, training speed, latency and accuracy of candidates.

    python benchmarks/student_plans.py cost --views views --size 64 --out cost.json
    python benchmarks/student_plans.py train --views views --size 64 --out rows.json [--only NAME ...] [--seeds 0 1]

``--views`` is the folder that ``student_views.py`` writes. Candidates learn from labels and from the fixed teacher's
logits and maps on the same augmented views. Every fourth training image is held out; the candidates are compared on
these images and the validation images, each rendered once without augmentation. The test images are not read.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.config import TrainConfig
from camkd.data.dataset import Split
from camkd.distill.objective import parse_objective
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_onnx
from camkd.export.sessions import open_session, run_session, to_input
from camkd.models import ImageClassifier
from camkd.models.cam_net import CamNet, ChannelNorm, Variant
from camkd.models.io import ModelInfo
from camkd.models.profile import profile
from camkd.runs.folder import collect_environment
from camkd.train.ema import EMA
from camkd.train.schedule import Schedule
from camkd.types import Prediction

OBJECTIVE = "ce=0.1,lskd=9:T=2,cam=1:pool=4"
HELD_OUT_EVERY = 4
Norm = Callable[[int], nn.Module]
Act = Callable[[], nn.Module]


class Pooled(nn.Module):
    """Depthwise 3x3 convolution of the image averaged over ``factor`` x ``factor`` cells, enlarged to the input."""

    def __init__(self, channels: int, factor: int, kernel: int = 3) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.avg_pool2d(x, self.factor, ceil_mode=True))
        y = F.interpolate(y, scale_factor=float(self.factor))
        return y[:, :, : x.shape[2], : x.shape[3]]


def depthwise(channels: int, kernel: int) -> nn.Module:
    """Return a depthwise convolution that keeps the resolution."""
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


MIXERS: dict[str, Callable[[int], list[nn.Module]]] = {
    "357": lambda c: [nn.Identity(), depthwise(c, 3), depthwise(c, 5), Pooled(c, 2, 7)],
    "333": lambda c: [nn.Identity(), depthwise(c, 3), Pooled(c, 2), Pooled(c, 4)],
    "3": lambda c: [nn.Identity(), depthwise(c, 3), depthwise(c, 3), depthwise(c, 3)],
}


class Gated(nn.Module):
    """CAM-Net's block with one product for gate and value, and a choice of receptive fields and normalization."""

    def __init__(self, channels: int, mixer: str, norm: Norm, expand: float = 1.0) -> None:
        super().__init__()
        hidden = int(channels * expand)
        self.groups = nn.ModuleList(MIXERS[mixer](channels // 4))
        self.norm = norm(channels)
        self.wide = nn.Conv2d(channels, 2 * hidden, 1)
        self.narrow = nn.Conv2d(hidden, channels, 1)
        self.keep = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(torch.cat([group(part) for group, part in zip(self.groups, x.chunk(4, 1), strict=True)], 1))
        gate, value = self.wide(z).chunk(2, 1)
        y: Tensor = self.narrow(F.silu(gate) * value) + self.keep.to(x.dtype).view(-1, 1, 1) * x
        return y


class Dense(nn.Module):
    """Basic residual block: two 3x3 convolutions with batch normalization."""

    def __init__(self, channels: int, act: Act) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), act(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.layers(x))
        return y


class Bottleneck(nn.Module):
    """Residual block: 1x1, 3x3 and 1x1 convolution with batch normalization, with ``middle`` channels inside."""

    def __init__(self, channels: int, middle: int, act: Act) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle), act(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), act(),
            nn.Conv2d(middle, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.layers(x))
        return y


class Inverted(nn.Module):
    """Inverted residual block with a depthwise 3x3 convolution and batch normalization."""

    def __init__(self, channels: int, wide: int, act: Act) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), act(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), act(),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


class Candidate(ImageClassifier):
    """Body, 1x1 convolution to the classes, global average pooling."""

    def __init__(self, layers: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))

    def maps(self, x: Tensor) -> Tensor:
        cams: Tensor = self.head(self.body(self.normalize(x)))
        return cams


def conv(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm, act: Act | None = None) -> nn.Module:
    """Return a convolution with normalization and activation. Patches do not overlap if kernel and stride are equal."""
    padding = 0 if kernel == stride > 1 else kernel // 2
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding), norm(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


BN: Norm = nn.BatchNorm2d
LN: Norm = ChannelNorm
SILU, RELU = nn.SiLU, nn.ReLU


def gated_net(
    stem: list[nn.Module], stages: list[tuple[int, int]], mixer: str = "333", norm: Norm = LN, expand: float = 1.0
) -> Candidate:
    """Return stages of gated blocks with 2x2 convolutions between them."""
    layers = list(stem)
    for index, (channels, blocks) in enumerate(stages):
        if index:
            layers.append(conv(stages[index - 1][0], channels, 2, 2, norm))
        layers += [Gated(channels, mixer, norm, expand) for _ in range(blocks)]
    return Candidate(layers, stages[-1][0])


def dense_net(stem: list[nn.Module], stages: list[tuple[int, int]], act: Act = RELU) -> Candidate:
    """Return stages of dense residual blocks with strided 3x3 convolutions between them."""
    layers = list(stem)
    for index, (channels, blocks) in enumerate(stages):
        if index:
            layers.append(conv(stages[index - 1][0], channels, 3, 2, BN, act))
        layers += [Dense(channels, act) for _ in range(blocks)]
    return Candidate(layers, stages[-1][0])


def hybrid_net(
    stem: list[nn.Module],
    narrow: int,
    dense: int,
    channels: int,
    gated: int,
    norm: Norm = LN,
    mixer: str = "333",
) -> Candidate:
    """Return dense residual blocks, then gated blocks at half the resolution."""
    layers = [*stem, *(Dense(narrow, RELU) for _ in range(dense)), conv(narrow, channels, 2, 2, norm)]
    return Candidate([*layers, *(Gated(channels, mixer, norm) for _ in range(gated))], channels)


def bottleneck_net(stem: list[nn.Module], stages: list[tuple[int, int, int]], act: Act) -> Candidate:
    """Return stages of bottleneck blocks with 2x2 convolutions between them."""
    layers = list(stem)
    for index, (channels, middle, blocks) in enumerate(stages):
        if index:
            layers.append(conv(stages[index - 1][0], channels, 2, 2, BN, act))
        layers += [Bottleneck(channels, middle, act) for _ in range(blocks)]
    return Candidate(layers, stages[-1][0])


def inverted_net(stem: list[nn.Module], stages: list[tuple[int, int, int]], act: Act = SILU) -> Candidate:
    """Return stages of inverted residual blocks with 2x2 convolutions between them."""
    layers = list(stem)
    for index, (channels, wide, blocks) in enumerate(stages):
        if index:
            layers.append(conv(stages[index - 1][0], channels, 2, 2, BN))
        layers += [Inverted(channels, wide, act) for _ in range(blocks)]
    return Candidate(layers, stages[-1][0])


def two_convs(middle: int, channels: int, norm: Norm = LN, act: Act = SILU) -> list[nn.Module]:
    """Return a stem to a quarter of the side: two 3x3 convolutions of stride 2."""
    return [conv(3, middle, 3, 2, norm, act), conv(middle, channels, 3, 2, norm)]


class Built(Candidate):
    """CAM-Net as the package builds it for images of ``size`` pixels. At 32 pixels it works at half the side."""

    def __init__(self, size: int, variant: Variant = "default") -> None:
        net = CamNet(10, size, variant=variant)
        super().__init__([net.body], net.head.in_channels)


def candidates(size: int) -> dict[str, Callable[[], Candidate]]:
    """Return a factory of each candidate for images of ``size`` pixels.

    Numbers are the channels of the stages, each at half the resolution of the previous one; the map of those for 64
    pixels has 8x8 or 16x16 cells. ``dense`` is a residual block of 3x3 convolutions, ``gated`` CAM-Net's block with
    receptive fields from 3x3 kernels on means of 2x2 and 4x4 locations.
    """
    built = {
        "cam-net": lambda: Built(size),
        "cam-net-lite": lambda: Built(size, "lite"),
        "cam-net-large": lambda: Built(size, "large"),
        "half the side": lambda: Built(32),
        "half the side, lite": lambda: Built(32, "lite"),
        "cam-net, map of 1/4": lambda: Built(56),
        "cam-net, map of 1/8": lambda: Built(64),
        "cam-net, map of 1/16": lambda: Built(128),
    }
    if size != 64:
        return built
    return built | {
        "blocks of 32 pixels on patches of 4": lambda: gated_net([conv(3, 64, 4, 4, LN)], [(64, 6)], "357"),
        "gated 64 on patches of 4": lambda: gated_net([conv(3, 64, 4, 4, LN)], [(64, 6)]),
        "gated 64": lambda: gated_net(two_convs(16, 64), [(64, 6)]),
        "gated 64, only 3x3": lambda: gated_net(two_convs(16, 64), [(64, 6)], "3"),
        "gated 48 80": lambda: gated_net(two_convs(16, 48), [(48, 4), (80, 2)]),
        "gated 48 80, batch norm": lambda: gated_net(two_convs(16, 48, BN), [(48, 4), (80, 2)], norm=BN),
        "dense 32": lambda: dense_net(two_convs(16, 32, BN, RELU), [(32, 4)]),
        "dense 32 44": lambda: dense_net(two_convs(16, 32, BN, RELU), [(32, 2), (44, 1)]),
        "dense 16 32 44": lambda: dense_net([conv(3, 16, 3, 2, BN, RELU)], [(16, 1), (32, 1), (44, 1)]),
        "bottleneck 64": lambda: bottleneck_net(two_convs(16, 64, BN, RELU), [(64, 32, 6)], RELU),
        "bottleneck 48 96": lambda: bottleneck_net(two_convs(16, 48, BN, RELU), [(48, 24, 3), (96, 32, 3)], RELU),
        "inverted 32 64": lambda: inverted_net(two_convs(16, 32, BN), [(32, 96, 3), (64, 144, 3)]),
        "dense 32, gated 76": lambda: hybrid_net(two_convs(16, 32, BN, RELU), 32, 1, 76, 3),
        "dense 32, gated 76, batch norm": lambda: hybrid_net(two_convs(16, 32, BN, RELU), 32, 1, 76, 3, BN),
        "dense 16 32, gated 72": lambda: hybrid_net(
            [conv(3, 16, 3, 2, BN, RELU), Dense(16, RELU), conv(16, 32, 3, 2, BN, RELU)], 32, 1, 72, 3
        ),
    }


# --- data


class Data:
    """Views and teacher outputs at one size, with every fourth training image held out.

    Args:
        folder: Folder of ``student_views.py``.
        size: Side of the images.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.images = np.load(folder / f"train-{size}.npy", mmap_mode="r")
        self.labels = torch.from_numpy(np.load(folder / "train-labels.npy"))
        self.logits = torch.from_numpy(np.load(folder / "train-logits.npy"))
        self.maps = torch.from_numpy(np.load(folder / "train-maps.npy"))
        held_out = torch.arange(len(self.labels)) % HELD_OUT_EVERY == 0
        self.train = torch.arange(len(self.labels))[~held_out]
        centered = np.load(folder / f"train-centered-{size}.npy", mmap_mode="r")[held_out.numpy(), 0]
        validation = np.load(folder / f"validation-{size}.npy", mmap_mode="r")[:, 0]
        self.val_images = np.concatenate([validation, centered])
        self.val_labels = torch.cat(
            [torch.from_numpy(np.load(folder / "validation-labels.npy")), self.labels[held_out]]
        )
        sample = np.asarray(self.images[::16, 0], np.float64) / 255
        self.mean, self.std = sample.mean((0, 1, 2)).tolist(), sample.std((0, 1, 2)).tolist()

    def batch(self, rows: Tensor, view: int) -> tuple[Tensor, Prediction, Tensor]:
        """Return images, the teacher's outputs and labels."""
        teacher = Prediction(self.logits[rows, view].float(), self.maps[rows, view].float())
        return to_tensor(self.images[rows.numpy(), view]), teacher, self.labels[rows]


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Convert images ``(N, H, W, 3) uint8`` to ``(N, 3, H, W)`` in 0..1, in channels-last memory format."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


# --- accuracy


def make(factory: Callable[[], Candidate], data: Data, seed: int) -> Candidate:
    """Build a candidate with random weights and the normalization of the data."""
    torch.manual_seed(seed)
    model = factory()
    model.set_normalization(data.mean, data.std)
    return model.to(memory_format=torch.channels_last)


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay on matrices and kernels only."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train(
    factory: Callable[[], Candidate], data: Data, seed: int, epochs: int, batch_size: int, lr: float | None, terms: str
) -> dict[str, Any]:
    """Train a candidate and return its metrics on the held-out images."""
    model = make(factory, data, seed)
    average = copy.deepcopy(model).requires_grad_(False)
    config = TrainConfig(epochs, batch_size=batch_size, optimizer="adamw", lr=lr)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), fused=True)
    objective = parse_objective(terms)
    ema = EMA(average, model, 0.995)
    schedule = Schedule(config, round(len(data.train) / batch_size))
    generator = torch.Generator().manual_seed(seed)
    step = 0
    model.train()
    for epoch in range(epochs):
        order = data.train[torch.randperm(len(data.train), generator=generator)]
        for rows in order.tensor_split(round(len(order) / batch_size)):
            x, teacher, labels = data.batch(rows, epoch % data.images.shape[1])
            cams = model.maps(x)
            loss, _ = objective(Prediction(cams.mean((2, 3)), cams), teacher, labels, 0.5)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            ema.on_optimizer_step(step)
            step += 1
    return evaluate(average.eval(), data)


def evaluate(model: Candidate, data: Data) -> dict[str, Any]:
    """Return accuracy, and cross-entropy at the temperature that is best for it."""
    with torch.inference_mode():
        logits = torch.cat(
            [model(to_tensor(data.val_images[i : i + 128])) for i in range(0, len(data.val_images), 128)]
        )
    nll = min(float(F.cross_entropy(logits * scale, data.val_labels)) for scale in 2.0 ** torch.arange(-3, 5, 0.25))
    correct = logits.argmax(1) == data.val_labels
    bits = "".join(str(int(value)) for value in correct)
    return {"accuracy": float(correct.float().mean()), "nll": nll, "correct": bits}


# --- cost


def step_rate(model: Candidate, size: int, batch_size: int = 64, steps: int = 6) -> float:
    """Return images per second of forward and backward passes per second of CPU time, on one thread."""
    x = torch.rand(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    model.train()
    best = float("inf")
    for _ in range(steps):
        started = time.process_time()
        model.maps(x).square().mean().backward()
        best = min(best, time.process_time() - started)
    return batch_size / best


def latencies(model: Candidate, size: int, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the CPU time of one image with maps in ONNX Runtime on one thread, in milliseconds, in fp32 and int8."""
    info = ModelInfo("candidate", tuple("abcdefghij"), size, 0, 0, "student", "", "", "", 0)
    x = to_input(images[:1])
    with TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        write_onnx(model.eval(), info, fp32)
        write_int8(fp32, int8, Split(images, labels))
        sessions = {"fp32": open_session(fp32), "int8": open_session(int8)}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(30):
            for name, session in sessions.items():
                for call in range(8):
                    started = time.process_time()
                    run_session(session, x)
                    if call >= 2:
                        times[name].append(time.process_time() - started)
    return {f"{name}_ms": 1e3 * float(np.quantile(values, 0.1)) for name, values in times.items()}


def cost(factory: Callable[[], Candidate], views: Path, size: int) -> dict[str, Any]:
    """Return parameters, multiply-accumulates, map size, training speed and latency of a candidate."""
    torch.manual_seed(0)
    model = factory().to(memory_format=torch.channels_last)
    result = profile(model, size)
    row: dict[str, Any] = {"params": result.params, "macs": result.macs, "map": list(result.map_size)}
    row["step_images_per_second"] = step_rate(model, size)
    images = np.load(views / f"validation-{size}.npy", mmap_mode="r")[:, 0]
    return row | latencies(model, size, images, np.load(views / "validation-labels.npy"))


def main() -> None:
    """Measure or train candidates, and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["cost", "train"])
    parser.add_argument("--views", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--terms", default=OBJECTIVE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Data(options.views, options.size) if options.action == "train" else None
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    factories = candidates(options.size)
    for name in options.only or factories:
        factory = factories[name]
        for seed in options.seeds if options.action == "train" else [0]:
            key = {"candidate": name, "size": options.size}
            if options.action == "train":
                key |= {"seed": seed, "epochs": options.epochs, "batch_size": options.batch_size}
                key |= {"lr": options.lr, "terms": options.terms}
            if any(all(row.get(field) == value for field, value in key.items()) for row in rows):
                continue
            if data is None:
                row = cost(factory, options.views, options.size)
            else:
                row = train(factory, data, seed, options.epochs, options.batch_size, options.lr, options.terms)
            rows.append(key | row)
            shown = {field: value for field, value in rows[-1].items() if field != "correct"}
            print(shown, file=sys.stderr, flush=True)
            options.out.write_text(json.dumps({"environment": collect_environment(), "rows": rows}))


if __name__ == "__main__":
    main()
