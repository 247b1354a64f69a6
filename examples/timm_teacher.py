"""Distill a pretrained network of timm into CAM-Net on a folder of images.

    pip install 'camkd[timm]'
    python examples/timm_teacher.py FOLDER             # FOLDER/<class>/*.jpg

The teacher is first fine-tuned on the images. A name with a tag, like ``timm:resnet18.a1_in1k``, has pretrained
weights, which are downloaded once. A name without a tag, like ``timm:resnet18``, has random weights.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.sources import open_dataset
from camkd.distill.teacher import load_teacher
from camkd.experiments.pipeline import prepare_teacher, train_run
from camkd.report.report import write_report
from camkd.runs.loading import read_model_info
from camkd.runs.resume import Resume


def main(
    data: str,
    teacher_name: str = "timm:resnet18.a1_in1k",
    out: str = "runs/examples/timm-teacher",
    epochs: int = 15,
    size: int = 64,
) -> float:
    """Fine-tune the teacher, distill the student, write the report. Return the student's test accuracy."""
    folder = Path(out)
    train = TrainConfig(epochs=epochs, figure_every=0)
    config = RunConfig(DataConfig(data, size=size), train, DistillConfig(method="cam-kd"), model="cam-net")
    dataset = open_dataset(config.data)

    fine_tuning = replace(train, optimizer="adamw", lr=5e-4)  # pretrained weights need a small learning rate
    teacher_config = replace(config, model=teacher_name, role="teacher", train=fine_tuning)
    train_run(folder / "teacher", teacher_config, dataset, resume=Resume())

    teacher = load_teacher(folder / "teacher", dataset, train.device)
    teacher_with_cache, config = prepare_teacher(teacher, config)
    metrics = train_run(folder / "student", config, dataset, teacher_with_cache, resume=Resume())
    write_report([folder / "teacher", folder / "student"], folder / "report.html")

    params = read_model_info(folder / "student").params
    print(f"{params:,} parameters, accuracy {metrics['accuracy']:.1%}; teacher {metrics['teacher_accuracy']:.1%}")
    return float(metrics["accuracy"])


if __name__ == "__main__":
    main(sys.argv[1])
