"""Distil a network of timm, with its trained weights, into CAM-Net on a folder of pictures.

    pip install 'camkd[timm]'
    python examples/timm_teacher.py FOLDER             # FOLDER/<class>/*.jpg

The teacher is first fine-tuned on the pictures. ``timm:resnet18`` without a tag starts from random weights; one with a
tag, such as ``timm:resnet18.a1_in1k``, downloads the weights of that tag once.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.sources import open_data
from camkd.distill.teacher import load_teacher
from camkd.experiments.pipeline import prepare_teacher_cache, train_run
from camkd.report.report import write_report
from camkd.runs.load_model import load


def main(
    pictures: str,
    teacher_name: str = "timm:resnet18.a1_in1k",
    folder: str = "runs/examples/timm-teacher",
    epochs: int = 15,
    size: int = 64,
) -> float:
    """Fine-tune the teacher, train the student with its maps, write the report. Returns the student's accuracy."""
    out, data_config = Path(folder), DataConfig(pictures, size=size)
    data, config = open_data(pictures, size=size), TrainConfig(epochs=epochs, figure_every=0)

    tuning = replace(config, optimizer="adamw", lr=5e-4)  # trained weights want small steps
    place, lesson = out / "teacher", DistillConfig("cam-kd")
    train_run(
        place, data, teacher_name, "teacher", (data_config, tuning), DistillConfig("plain"), resume=place.exists()
    )
    teacher = load_teacher(place, data, config.device)

    knowledge, config = prepare_teacher_cache(teacher, data, config, lesson)
    configs, resume = (data_config, config), (out / "student").exists()
    figures = train_run(out / "student", data, "cam-net", "student", configs, lesson, teacher, knowledge, resume=resume)
    write_report([place, out / "student"], out / "report.html")

    params = sum(parameter.numel() for parameter in load(out / "student").parameters())
    print(f"{params:,} parameters, {figures['accuracy']:.1%} right; its teacher {figures['teacher_accuracy']:.1%}")
    return float(figures["accuracy"])


if __name__ == "__main__":
    main(sys.argv[1])
