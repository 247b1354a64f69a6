"""What distillation costs: the same student trained plainly, from a cold store, from a warm one, and the usual way.

    python benchmarks/bench_distill.py [--json] [--quick]

Pictures a second in training, validation aside, of: (a) plain training; (b) CAM-KD with a store that is being filled;
(c) CAM-KD with a filled one; (d) the usual loop, plain and with a teacher: DataLoader with two worker processes,
per-picture PIL transforms, fp32, the teacher asked at every step, forward hooks for the maps; (e) torchdistill's loop,
where it can be imported; (d) and (e) each in a process of its own, as camkd's memory settings are for a whole process.
Runs alternate; the figure is the median over rounds. The networks are untrained and the pictures are drawn shapes:
neither changes the work.
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
from peers import peer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset

from camkd.config import DistillConfig, TrainConfig
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.distill.cache.build import build_teacher_cache, make_teacher_fn
from camkd.distill.objective import parse_objective
from camkd.distill.teacher import Teacher, load_teacher
from camkd.experiments.pipeline import channel_statistics
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.models.profile import profile
from camkd.runs.folder import Run, collect_environment
from camkd.train.loop import fit

BATCH = 128
PAIRS = (("resnet8", "wrn-16-4"), ("cam-net", "wrn-16-4"), ("resnet8", "resnet50"))
STEPS = {"wrn-16-4": 24, "resnet50": 6}  # an epoch's batches: a big teacher takes seconds for one
LAYERS = {"cam-net": "head", "resnet8": "layer3", "resnet50": "layer4", "wrn-16-4": "relu"}
TARGETS = {
    "warm_over_plain": 0.95,
    "plain_over_usual_plain": 2.8,
    "teacher_over_usual_teacher": 3.0,
    "warm_over_usual": {"wrn-16-4": 15.0, "resnet50": 70.0},
}


TRANSFORMS = peer("torchvision.transforms")


class Bench:
    """One pair of student and teacher on ``steps`` batches of pictures."""

    def __init__(self, student: str, teacher: str, folder: Path, rounds: int, steps: int) -> None:
        self.student, self.rounds, self.steps = student, rounds, steps
        self.data = pictures(steps * BATCH)
        self.folder = folder / f"{student}-{teacher}"
        os.environ["CAMKD_CACHE"] = str(self.folder / "cache")  # a store of its own: cold is cold
        self.config = TrainConfig(epochs=2, batch_size=BATCH, device="cpu")
        self.teacher_name, self.teacher = teacher, self._teacher(teacher)

    def _teacher(self, name: str) -> Teacher:
        """A frozen network in a run folder, as a student's teacher lies there."""
        size, classes = int(self.data.train.images.shape[1]), self.data.classes
        model = build(name, len(classes), size)
        model.set_normalization(*channel_statistics(self.data.train.images))
        cost = profile(model, size)
        described = ModelInfo(name, classes, size, cost.params, cost.macs, "teacher", "plain", "shapes", "", 0)
        save(model, self.folder / "teacher", described)
        return load_teacher(self.folder / "teacher", self.data, self.config.device)

    def ours(self, method: str, seed: int, epochs: int) -> float:
        """Median over the epochs but the first; views come again after two, so that a store can be warm."""
        config = replace(self.config, augment_seed=seed, epochs=epochs, augment_epochs=2)
        goal = parse_objective(method)
        known = (
            build_teacher_cache(self.teacher, self.data, config, DistillConfig(method)) if goal.needs_teacher else None
        )
        run = Run(Path(tempfile.mkdtemp(dir=self.folder)))
        student = build(self.student, len(self.data.classes), 32)
        fit(student, self.data, goal, config, run, knowledge=known)
        return statistics.median(row["images_per_second"] for row in run.read_history()[1:])

    def measure(self) -> dict[str, float]:
        """Pictures a second by case."""
        few = min(self.steps, 12)
        cases: dict[str, Callable[[int], float | None]] = {
            "plain": lambda n: self.ours("plain", n, 6),
            "cold": lambda n: self.ours("cam-kd", n, 2),
            "warm": lambda n: self.ours("cam-kd", n, 6),
            "usual_plain": lambda n: apart(usual, self.student, None, 80),
            "usual": lambda n: apart(usual, self.student, self.teacher_name, few),
            "torchdistill": lambda n: apart(torchdistill_loop, self.student, self.teacher_name, few),
            "teacher": lambda n: forward(make_teacher_fn(self.teacher.model, 32, self.config), 3),
            "usual_teacher": lambda n: apart(usual_forward, self.teacher_name, 2),
        }
        found: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(self.rounds):
            for name, case in cases.items():
                speed = case(number)
                if speed is not None:
                    found[name].append(speed)
                    print(f"{self.folder.name} {name}: {speed:,.0f} pictures/s", file=sys.stderr)
        return {name: statistics.median(values) for name, values in found.items() if values}


def apart(case: Callable[..., float | None], *arguments: Any) -> float | None:
    """Run a case in a process of its own, where nothing of camkd's has touched the memory settings."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(case, *arguments).result()


def pictures(count: int) -> Dataset:
    """``count`` training pictures, and a few to validate with."""
    data = open_data("shapes")
    few = np.arange(100)
    train = data.train.take(np.arange(count) % len(data.train))
    return replace(data, train=train, val=data.val.take(few), test=data.test.take(few))


class UsualPictures(TorchDataset[tuple[Tensor, int]]):
    """Pictures one by one, as most programs prepare them: torchvision's transforms on PIL pictures."""

    def __init__(self, data: Dataset) -> None:
        self.images, self.labels = np.array(data.train.images), data.train.labels
        steps = TRANSFORMS.RandomCrop(32, padding=4), TRANSFORMS.RandomHorizontalFlip(), TRANSFORMS.ToTensor()
        self.prepare = TRANSFORMS.Compose([*steps, TRANSFORMS.Normalize(*channel_statistics(self.images))])

    def __len__(self) -> int:
        return 100 * BATCH  # the same pictures again: a loader's start is not what is measured

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index %= len(self.labels)
        return self.prepare(Image.fromarray(self.images[index])), int(self.labels[index])


def usual(student_name: str, teacher_name: str | None, steps: int) -> float:
    """Pictures a second of the usual loop over ``steps`` steps, after one to warm up."""
    data = pictures(24 * BATCH)
    student = build(student_name, len(data.classes), 32).train()
    teacher = None if teacher_name is None else Hooked(build(teacher_name, len(data.classes), 32).eval(), teacher_name)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    learning = Hooked(student, student_name)
    loader = DataLoader(UsualPictures(data), BATCH, shuffle=True, num_workers=2, drop_last=True)
    batches = iter(loader)
    started, done = 0.0, 0
    for step in range(steps + 1):
        x, labels = next(batches)
        if step == 1:
            started = time.perf_counter()
        if teacher:
            with torch.no_grad():
                logits, cams = teacher(x)
            own, own_cams = learning(x)
            loss = 0.1 * F.cross_entropy(own, labels) + 0.9 * 16 * F.kl_div(
                F.log_softmax(own / 4, 1), F.softmax(logits / 4, 1), reduction="batchmean"
            )
            small, large = (F.adaptive_avg_pool2d(maps, 4).flatten(2) for maps in (own_cams, cams))
            loss = loss + (F.normalize(small, dim=2) - F.normalize(large, dim=2)).square().sum(2).mean()
        else:
            loss = F.cross_entropy(student(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += step > 0
        loss.item()
    return done * BATCH / (time.perf_counter() - started)


class Hooked:
    """A network with a forward hook on what its head averages, and the maps from it."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.layer = model, LAYERS[name]
        model.get_submodule(self.layer).register_forward_hook(self.see)

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.features = output

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        if self.layer == "head":  # a convolution: its output is the map
            return logits, self.features
        return logits, torch.einsum("nchw,kc->nkhw", self.features, self.model.fc.weight)


def torchdistill_loop(student_name: str, teacher_name: str, steps: int) -> float | None:
    """Pictures a second of torchdistill's own loop (KD on logits: it has no maps); None where it cannot be imported."""
    parts = [peer(f"torchdistill.{name}") for name in ("core.distillation", "losses.mid_level", "losses.high_level")]
    if None in parts:
        return None
    side = {"forward_proc": "forward_batch_only", "sequential": [], "forward_hook": {"input": [], "output": []}}
    whole = {"student_module_path": ".", "student_module_io": "output"}
    whole |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    kd = {"criterion": {"key": "KDLoss", "kwargs": {**whole, "temperature": 4.0, "alpha": 0.1}}, "weight": 1.0}
    settings = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": BATCH, "num_workers": 2, "drop_last": True},
        },
        "teacher": {**side, "requires_grad": False},
        "student": {**side, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
    }
    data = pictures(24 * BATCH)
    student, teacher = (build(name, len(data.classes), 32) for name in (student_name, teacher_name))
    box = parts[0].get_distillation_box(
        teacher.eval(), student, {"train": UsualPictures(data)}, settings, torch.device("cpu"), None, False, 1
    )
    box.pre_epoch_process(epoch=0)
    batches, started = iter(box.train_data_loader), 0.0
    for step in range(steps + 1):
        x, labels, more = next(batches)
        if step == 1:
            started = time.perf_counter()
        box.post_forward_process(loss=box.forward_process(x, labels, more))
    return steps * BATCH / (time.perf_counter() - started)


def usual_forward(teacher_name: str, times: int) -> float:
    """Pictures a second of a teacher alone as the usual loop asks it."""
    return forward(torch.no_grad()(Hooked(build(teacher_name, 10, 32).eval(), teacher_name)), times)


def forward(ask: Callable[[Tensor], Any], times: int) -> float:
    """Pictures a second of a teacher alone, the best of a few."""
    x = torch.rand(BATCH, 3, 32, 32)
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        ask(x)
        seconds.append(time.perf_counter() - started)
    return BATCH / min(seconds[1:])


def ratios(speeds: dict[str, float]) -> dict[str, float]:
    """What the speeds say of each other."""
    return {
        "warm_over_plain": speeds["warm"] / speeds["plain"],
        "cold_over_plain": speeds["cold"] / speeds["plain"],
        "warm_over_usual": speeds["warm"] / speeds["usual"],
        "plain_over_usual_plain": speeds["plain"] / speeds["usual_plain"],
        "teacher_over_usual_teacher": speeds["teacher"] / speeds["usual_teacher"],
        **({"warm_over_torchdistill": speeds["warm"] / speeds["torchdistill"]} if "torchdistill" in speeds else {}),
    }


def main() -> None:
    """Measure every pair and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="one round of the first pair, to see that it works")
    options = parser.parse_args()
    if TRANSFORMS is None:
        raise SystemExit("the usual loop needs torchvision: run this in the environment that 'make bench' makes.")
    pairs = {}
    with tempfile.TemporaryDirectory() as folder:
        for student, teacher in PAIRS[:1] if options.quick else PAIRS:
            speeds = Bench(student, teacher, Path(folder), 1 if options.quick else 3, STEPS[teacher]).measure()
            pairs[f"{student} from {teacher}"] = {"images_per_second": speeds, "ratios": ratios(speeds)}
    first = next(iter(pairs.values()))
    if options.json:
        print(json.dumps({**first, "pairs": pairs, "targets": TARGETS, "environment": collect_environment()}))
        return
    for name, found in pairs.items():
        print(
            f"\n{name}\n" + "\n".join(f"  {k:28} {v:10,.0f} pictures/s" for k, v in found["images_per_second"].items())
        )
        for what, value in found["ratios"].items():
            wanted = TARGETS.get(what)
            wanted = wanted.get(name.split()[-1]) if isinstance(wanted, dict) else wanted
            verdict = "" if wanted is None else f"  (to reach: {wanted}: {'yes' if value >= wanted else 'NOT reached'})"
            print(f"  {what:28} {value:10.2f}{verdict}")


if __name__ == "__main__":
    main()
