"""Example of a model's info."""

from __future__ import annotations

from camkd.models.io import ModelInfo

INFO = ModelInfo(
    architecture="resnet8",
    classes=("Katze", "犬: or fox", "bird"),
    size=8,
    params=77_000,
    macs=2,
    role="student",
    method="cam-kd",
    data="/home/someone/pets",
    data_fingerprint="abc",
    seed=3,
    teacher="/home/someone/teacher",
)
"""Info of a student for three classes, one name of which needs quotes in YAML. Its paths name a person."""
