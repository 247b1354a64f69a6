"""Training speed of distillation: without a teacher, with an empty cache, with a full cache, and with other libraries.

    python benchmarks/bench_distill.py [--json] [--quick]

The script measures images per second of training, without validation:

plain          training without a teacher
cold           CAM-KD while the teacher cache is filled
warm           CAM-KD with a full teacher cache
usual_plain    a usual training loop: DataLoader with two worker processes, PIL transforms per image, fp32
usual          the same loop with CAM-KD: the teacher runs at every step, forward hooks compute the maps
torchdistill   the training loop of torchdistill, if it is installed

It also measures the forward pass of the teacher in camkd (teacher) and in the usual loop (usual_teacher). The loops of
other libraries run in processes of their own, because the memory settings of camkd hold for a whole process. The cases
alternate. A result is the median over the rounds. The networks have random weights and the images are synthetic shapes,
neither of which changes the amount of work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optional_imports import import_optional
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.distill.cache.build import build_teacher_cache, make_teacher_fn
from camkd.distill.objective import parse_objective
from camkd.distill.teacher import Teacher, load_teacher
from camkd.experiments.pipeline import channel_statistics
from camkd.models import build, profile
from camkd.models.io import ModelInfo, save
from camkd.runs.folder import Run, collect_environment
from camkd.train.loop import fit

BATCH = 128
SIZE = 32
PAIRS = (("resnet8", "wrn-16-4"), ("cam-net", "wrn-16-4"), ("resnet8", "resnet50"))
"""Student and teacher."""

STEPS = {"wrn-16-4": 24, "resnet50": 6}
"""Steps per epoch by teacher; a large teacher takes seconds per step."""

LAYERS = {"cam-net": "head", "resnet8": "layer3", "resnet50": "layer4", "wrn-16-4": "relu"}
"""Layer before the global average pooling, by network."""

TARGETS = {
    "warm_over_plain": 0.95,
    "plain_over_usual_plain": 2.8,
    "teacher_over_usual_teacher": 3.0,
    "warm_over_usual": {"wrn-16-4": 15.0, "resnet50": 70.0},
}
"""Minimum of each ratio."""

TRANSFORMS = import_optional("torchvision.transforms")


class Bench:
    """Measurements of one pair of student and teacher.

    Args:
        student: Name of the student.
        teacher: Name of the teacher.
        folder: Folder for runs and caches.
        rounds: Number of rounds.
        steps: Steps per epoch.
    """

    def __init__(self, student: str, teacher: str, folder: Path, rounds: int, steps: int) -> None:
        self.student = student
        self.teacher_name = teacher
        self.rounds = rounds
        self.steps = steps
        self.data = make_data(steps * BATCH)
        self.folder = folder / f"{student}-{teacher}"
        os.environ["CAMKD_CACHE"] = str(self.folder / "cache")  # empty at first
        self.train_config = TrainConfig(epochs=2, batch_size=BATCH, device="cpu")
        self.teacher = self._make_teacher(teacher)

    def _make_teacher(self, name: str) -> Teacher:
        """Save a teacher with random weights as a run folder, and load it."""
        classes = self.data.classes
        model = build(name, len(classes), SIZE)
        model.set_normalization(*channel_statistics(self.data.train.images))
        cost = profile(model, SIZE)
        info = ModelInfo(name, classes, SIZE, cost.params, cost.macs, "teacher", "plain", "shapes", "", 0)
        save(model, self.folder / "teacher", info)
        return load_teacher(self.folder / "teacher", self.data, self.train_config.device)

    def train(self, method: str, seed: int, epochs: int) -> float:
        """Train with camkd. Augmented epochs repeat after two, so that the cache is full from the third epoch on.

        Returns:
            Images per second, the median over all epochs but the first.
        """
        train_config = replace(self.train_config, augment_seed=seed, epochs=epochs, augment_epochs=2)
        config = RunConfig(DataConfig("shapes"), train_config, DistillConfig(method=method), self.student)
        objective = parse_objective(method)
        cache = build_teacher_cache(self.teacher, config) if objective.needs_teacher else None
        run = Run(Path(tempfile.mkdtemp(dir=self.folder)))
        student = build(self.student, len(self.data.classes), SIZE)
        fit(student, self.data, objective, train_config, run, cache=cache)
        return statistics.median(row["images_per_second"] for row in run.read_history()[1:])

    def measure(self) -> dict[str, float]:
        """Return images per second by case."""
        usual_steps = min(self.steps, 12)
        cases: dict[str, Callable[[int], float | None]] = {
            "plain": lambda seed: self.train("plain", seed, 6),
            "cold": lambda seed: self.train("cam-kd", seed, 2),
            "warm": lambda seed: self.train("cam-kd", seed, 6),
            "usual_plain": lambda seed: run_in_process(train_usual, self.student, None, 80),
            "usual": lambda seed: run_in_process(train_usual, self.student, self.teacher_name, usual_steps),
            "torchdistill": lambda seed: run_in_process(
                train_torchdistill, self.student, self.teacher_name, usual_steps
            ),
            "teacher": lambda seed: forward_speed(make_teacher_fn(self.teacher.model, SIZE, self.train_config), 3),
            "usual_teacher": lambda seed: run_in_process(usual_forward_speed, self.teacher_name, 2),
        }
        speeds: dict[str, list[float]] = {name: [] for name in cases}
        for seed in range(self.rounds):
            for name, case in cases.items():
                speed = case(seed)
                if speed is not None:
                    speeds[name].append(speed)
                    print(f"{self.folder.name} {name}: {speed:,.0f} images/s", file=sys.stderr)
        return {name: statistics.median(values) for name, values in speeds.items() if values}


def run_in_process(case: Callable[..., float | None], *arguments: Any) -> float | None:
    """Run a case in a new process, whose memory settings are those of the system."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(case, *arguments).result()


def make_data(num_images: int) -> Dataset:
    """Return synthetic shapes with ``num_images`` training images, and 100 for validation and test each."""
    data = open_data("shapes")
    subset = np.arange(100)
    train = data.train.take(np.arange(num_images) % len(data.train))
    return replace(data, train=train, val=data.val.take(subset), test=data.test.take(subset))


class UsualImages(TorchDataset[tuple[Tensor, int]]):
    """Images one by one, with transforms of torchvision on PIL images."""

    def __init__(self, data: Dataset) -> None:
        self.images = np.array(data.train.images)
        self.labels = data.train.labels
        self.transform = TRANSFORMS.Compose(
            [
                TRANSFORMS.RandomCrop(SIZE, padding=4),
                TRANSFORMS.RandomHorizontalFlip(),
                TRANSFORMS.ToTensor(),
                TRANSFORMS.Normalize(*channel_statistics(self.images)),
            ]
        )

    def __len__(self) -> int:
        return 100 * BATCH  # the images repeat, so that the start of a DataLoader is not measured

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self.labels)
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def train_usual(student_name: str, teacher_name: str | None, steps: int) -> float:
    """Train with the usual loop for ``steps`` steps, after one warm-up step.

    Returns:
        Images per second.
    """
    data = make_data(24 * BATCH)
    student = build(student_name, len(data.classes), SIZE).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    student_with_cams = HookedModel(student, student_name)
    teacher = None
    if teacher_name is not None:
        teacher = HookedModel(build(teacher_name, len(data.classes), SIZE).eval(), teacher_name)
    loader = DataLoader(UsualImages(data), BATCH, shuffle=True, num_workers=2, drop_last=True)
    batches = iter(loader)
    started = 0.0
    for step in range(steps + 1):
        x, labels = next(batches)
        if step == 1:
            started = time.perf_counter()
        if teacher:
            with torch.no_grad():
                teacher_logits, teacher_cams = teacher(x)
            logits, cams = student_with_cams(x)
            log_probabilities = F.log_softmax(logits / 4, 1)
            kd = 16 * F.kl_div(log_probabilities, F.softmax(teacher_logits / 4, 1), reduction="batchmean")
            maps, teacher_maps = (F.adaptive_avg_pool2d(maps, 4).flatten(2) for maps in (cams, teacher_cams))
            difference = F.normalize(maps, dim=2) - F.normalize(teacher_maps, dim=2)
            loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * kd + difference.square().sum(2).mean()
        else:
            loss = F.cross_entropy(student(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return steps * BATCH / (time.perf_counter() - started)


class HookedModel:
    """A network whose maps are computed from the output of a forward hook."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.layer = LAYERS[name]
        model.get_submodule(self.layer).register_forward_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.features = output

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, K)`` and maps ``(N, K, h, w)``."""
        logits = self.model(x)
        if self.layer == "head":  # a convolution, whose output is the map
            return logits, self.features
        return logits, torch.einsum("nchw,kc->nkhw", self.features, self.model.fc.weight)


def train_torchdistill(student_name: str, teacher_name: str, steps: int) -> float | None:
    """Train with the loop of torchdistill, by KD on logits, as it has no class activation maps.

    Returns:
        Images per second, or None if torchdistill cannot be imported.
    """
    modules = [
        import_optional(f"torchdistill.{name}")
        for name in ("core.distillation", "losses.mid_level", "losses.high_level")
    ]
    if None in modules:
        return None
    forward = {"forward_proc": "forward_batch_only", "sequential": [], "forward_hook": {"input": [], "output": []}}
    outputs = {"student_module_path": ".", "student_module_io": "output"}
    outputs |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    kd = {"criterion": {"key": "KDLoss", "kwargs": {**outputs, "temperature": 4.0, "alpha": 0.1}}, "weight": 1.0}
    settings = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": 2, "drop_last": True},
        },
        "teacher": {**forward, "requires_grad": False},
        "student": {**forward, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
    }
    data = make_data(24 * BATCH)
    student, teacher = (build(name, len(data.classes), SIZE) for name in (student_name, teacher_name))
    box = modules[0].get_distillation_box(
        teacher.eval(), student, {"train": UsualImages(data)}, settings, torch.device("cpu"), None, False, 1
    )
    box.pre_epoch_process(epoch=0)
    batches = iter(box.train_data_loader)
    started = 0.0
    for step in range(steps + 1):
        x, labels, extra = next(batches)
        if step == 1:
            started = time.perf_counter()
        box.post_forward_process(loss=box.forward_process(x, labels, extra))
    return steps * BATCH / (time.perf_counter() - started)


def usual_forward_speed(teacher_name: str, repeats: int) -> float:
    """Return images per second of a teacher's forward pass in the usual loop."""
    teacher = HookedModel(build(teacher_name, 10, SIZE).eval(), teacher_name)
    return forward_speed(torch.no_grad()(teacher), repeats)


def forward_speed(function: Callable[[Tensor], Any], repeats: int) -> float:
    """Return images per second of a forward pass, the best of ``repeats`` after one warm-up pass."""
    x = torch.rand(BATCH, 3, SIZE, SIZE)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function(x)
        seconds.append(time.perf_counter() - started)
    return BATCH / min(seconds[1:])


def compute_ratios(speeds: dict[str, float]) -> dict[str, float]:
    """Return ratios of speeds."""
    ratios = {
        "warm_over_plain": speeds["warm"] / speeds["plain"],
        "cold_over_plain": speeds["cold"] / speeds["plain"],
        "warm_over_usual": speeds["warm"] / speeds["usual"],
        "plain_over_usual_plain": speeds["plain"] / speeds["usual_plain"],
        "teacher_over_usual_teacher": speeds["teacher"] / speeds["usual_teacher"],
    }
    if "torchdistill" in speeds:
        ratios["warm_over_torchdistill"] = speeds["warm"] / speeds["torchdistill"]
    return ratios


def show(pair: str, results: dict[str, Any]) -> None:
    """Print the results of a pair, with targets."""
    print(f"\n{pair}")
    for name, speed in results["images_per_second"].items():
        print(f"  {name:28} {speed:10,.0f} images/s")
    for name, ratio in results["ratios"].items():
        target: Any = TARGETS.get(name)
        if isinstance(target, dict):
            target = target.get(pair.split()[-1])
        verdict = "" if target is None else f"  (target {target}: {'reached' if ratio >= target else 'missed'})"
        print(f"  {name:28} {ratio:10.2f}{verdict}")


def main() -> None:
    """Measure every pair and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="one round of the first pair, to test the script")
    options = parser.parse_args()
    if TRANSFORMS is None:
        raise SystemExit("bench_distill.py needs torchvision. Run it in the environment of 'make bench'.")
    pairs = {}
    with tempfile.TemporaryDirectory() as folder:
        for student, teacher in PAIRS[:1] if options.quick else PAIRS:
            speeds = Bench(student, teacher, Path(folder), 1 if options.quick else 3, STEPS[teacher]).measure()
            pairs[f"{student} from {teacher}"] = {"images_per_second": speeds, "ratios": compute_ratios(speeds)}
    first_pair = next(iter(pairs.values()))
    if options.json:
        print(json.dumps({**first_pair, "pairs": pairs, "targets": TARGETS, "environment": collect_environment()}))
        return
    for name, results in pairs.items():
        show(name, results)


if __name__ == "__main__":
    main()
