"""Render augmented views of photographs at several sizes, with the outputs of one fixed teacher on the largest.

    python benchmarks/student_views.py clothing-224 --out views --sizes 64 96 128

Each training image has ``--views`` random resized crops (scale 0.35 to 1) with random flips. A view is one geometry,
rendered at each size from the photograph. The teacher is a frozen ``timm:tf_efficientnet_lite0.in1k`` at 224 pixels
with a linear head, trained on the features of all views; weight decay and epochs are chosen on the validation images.
Its logits and maps of 7x7 cells are stored. Test images are only rendered and labeled, for the final table.
``student_plans.py`` reads the arrays.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

TEACHER = "tf_efficientnet_lite0.in1k"
TEACHER_SIZE = 224
SPLITS = ("train", "validation", "test")

Box = tuple[float, float, float, float]


def center_square(image: Image.Image) -> Box:
    """Return the largest centered square of an image: left, top, right, bottom."""
    side = min(image.size)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    return left, top, left + side, top + side


def random_crop(square: Box, generator: random.Random) -> Box:
    """Draw a random resized crop of a square: scale 0.35 to 1, aspect ratio 3/4 to 4/3."""
    side = square[2] - square[0]
    for _ in range(10):
        area = generator.uniform(0.35, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if max(width, height) <= 1:
            left = square[0] + side * generator.uniform(0, 1 - width)
            top = square[1] + side * generator.uniform(0, 1 - height)
            return left, top, left + side * width, top + side * height
    return square


def render(image: Image.Image, box: Box, flip: bool, size: int) -> NDArray[np.uint8]:
    """Render a region of an image at ``size`` x ``size`` pixels."""
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


def list_images(folder: Path) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the files of a split in sorted order, and their labels."""
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    return files, np.array([classes.index(file.parent.name) for file in files])


def write_centered(data: Path, out: Path, sizes: list[int]) -> None:
    """Write ``train-centered-<size>.npy``, ``(N, 1, size, size, 3) uint8``: images without augmentation."""
    files, _ = list_images(data / "train")
    arrays = {size: np.empty((len(files), 1, size, size, 3), np.uint8) for size in sizes}
    for index, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        for size, array in arrays.items():
            array[index, 0] = render(image, center_square(image), False, size)
    for size, array in arrays.items():
        np.save(out / f"train-centered-{size}.npy", array)


def write_views(data: Path, out: Path, sizes: list[int], num_views: int) -> None:
    """Write ``<split>-<size>.npy``, ``(N, views, size, size, 3) uint8``, and ``<split>-labels.npy``."""
    for split in SPLITS:
        files, labels = list_images(data / split)
        views = num_views if split == "train" else 1
        np.save(out / f"{split}-labels.npy", labels)
        arrays = {
            size: np.lib.format.open_memmap(
                out / f"{split}-{size}.npy", "w+", np.uint8, (len(files), views, size, size, 3)
            )
            for size in sizes
        }
        for index, file in enumerate(files):
            image = Image.open(file).convert("RGB")
            square = center_square(image)
            for view in range(views):
                generator = random.Random(f"{split} {index} {view}")
                box = square
                flip = False
                if split == "train":
                    box = random_crop(square, generator)
                    flip = generator.random() < 0.5
                for size, array in arrays.items():
                    array[index, view] = render(image, box, flip, size)


def write_features(out: Path, split: str) -> None:
    """Write the backbone's features of the views at the teacher's size, ``(N * views, 1280, 7, 7) float16``."""
    session = backbone_session(out)
    images = np.load(out / f"{split}-{TEACHER_SIZE}.npy", mmap_mode="r").reshape(-1, TEACHER_SIZE, TEACHER_SIZE, 3)
    features = np.lib.format.open_memmap(out / f"{split}-features.npy", "w+", np.float16, (len(images), 1280, 7, 7))
    started = time.perf_counter()
    for row, image in enumerate(images):
        x = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1
        features[row] = session.run(None, {"x": x})[0][0]
        if row % 1000 == 999:
            rate = row / (time.perf_counter() - started)
            print(f"{split}: {row + 1} of {len(images)}, {rate:.0f} images/s", file=sys.stderr, flush=True)


def backbone_session(out: Path) -> onnxruntime.InferenceSession:
    """Return the backbone in ONNX Runtime on one thread, which is faster than PyTorch for one image at a time."""
    file = out / "backbone.onnx"
    if not file.exists():
        import timm  # an optional library, so that --help works without it

        backbone = timm.create_model(TEACHER, pretrained=True, num_classes=0, global_pool="").eval()
        x = torch.rand(1, 3, TEACHER_SIZE, TEACHER_SIZE)
        torch.onnx.export(backbone, (x,), file, input_names=["x"], output_names=["features"], dynamo=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, settings)


def load_pooled_features(out: Path, split: str) -> Tensor:
    """Return the pooled features of a split, ``(N, views, 1280)``."""
    features = np.load(out / f"{split}-features.npy", mmap_mode="r")
    rows = [
        torch.from_numpy(features[i : i + 256].astype(np.float32)).mean((2, 3)) for i in range(0, len(features), 256)
    ]
    labels = np.load(out / f"{split}-labels.npy")
    return torch.cat(rows).unflatten(0, (len(labels), -1))


def train_head(out: Path) -> nn.Linear:
    """Train the linear head on the pooled features of all views. Validation images choose weight decay and epoch."""
    x = load_pooled_features(out, "train")
    labels = torch.from_numpy(np.load(out / "train-labels.npy"))
    val_x = load_pooled_features(out, "validation")[:, 0]
    val_labels = torch.from_numpy(np.load(out / "validation-labels.npy"))
    best: tuple[float, float, dict[str, Tensor]] = (0.0, -math.inf, {})
    for weight_decay in (0.01, 0.1, 0.5):
        torch.manual_seed(0)
        head = nn.Linear(x.shape[2], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=weight_decay)
        epochs = 24
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                logits = head(x[rows, epoch % x.shape[1]])
                F.cross_entropy(logits, labels[rows], label_smoothing=0.1).backward()
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = head(val_x)
        accuracy = float((logits.argmax(1) == val_labels).float().mean())
        nll = float(F.cross_entropy(logits, val_labels))
        print(f"weight decay {weight_decay}: {accuracy:.2%}, NLL {nll:.3f}", file=sys.stderr, flush=True)
        best = max(best, (accuracy, -nll, head.state_dict()), key=lambda row: row[:2])
    head.load_state_dict(best[2])
    return head


def write_outputs(out: Path, head: nn.Linear) -> dict[str, float]:
    """Write ``<split>-logits.npy`` and ``<split>-maps.npy``, float16. Return the accuracy of the held-out splits."""
    accuracy = {}
    for split in SPLITS:
        features = np.load(out / f"{split}-features.npy", mmap_mode="r")
        labels = np.load(out / f"{split}-labels.npy")
        maps = []
        with torch.no_grad():
            for i in range(0, len(features), 256):
                part = torch.from_numpy(features[i : i + 256].astype(np.float32))
                maps.append(torch.einsum("kc,nchw->nkhw", head.weight, part))
            cams = torch.cat(maps).unflatten(0, (len(labels), -1))
            logits = cams.mean((3, 4)) + head.bias
        np.save(out / f"{split}-maps.npy", cams.half().numpy())
        np.save(out / f"{split}-logits.npy", logits.half().numpy())
        accuracy[split] = float((logits[:, 0].argmax(1).numpy() == labels).mean())
    return accuracy


def main() -> None:
    """Write the views, the teacher's head and the teacher's outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--views", type=int, default=8)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_views(options.data, options.out, [*options.sizes, TEACHER_SIZE], options.views)
    write_centered(options.data, options.out, options.sizes)
    for split in SPLITS:
        write_features(options.out, split)
    accuracy = write_outputs(options.out, train_head(options.out))
    (options.out / "teacher.json").write_text(json.dumps({"teacher": TEACHER, "accuracy": accuracy}))
    print(json.dumps(accuracy))


if __name__ == "__main__":
    main()
