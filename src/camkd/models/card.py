"""Model cards: Markdown with metadata, in the format of the Hugging Face Hub (hf.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import yaml

from camkd.types import CHANCE_LEVELS, Preprocessing

Kind = Literal["pytorch", "onnx"]

USAGE = {
    "pytorch": """\
import camkd, torch

model = camkd.load("{source}")
prediction = camkd.predict(model, torch.rand(1, 3, {size}, {size}))  # RGB in 0..1
prediction.logits, prediction.cams  # (1, {num_classes}) and (1, {num_classes}, h, w)
""",
    "onnx": """\
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
image = np.random.rand(1, 3, {size}, {size}).astype(np.float32)  # RGB in 0..1, channels first
logits, cam = session.run(None, {{"image": image}})  # (1, {num_classes}) and (1, {num_classes}, h, w)
""",
}
"""Example code by file format."""

MAP_DESCRIPTIONS = {
    "exact": "For each class it returns a class activation map in the same forward pass: the evidence for the class at "
    "each location, in units of its logit.",
    "gradient": "Each class has a gradient-based class activation map: the evidence for the class at each location. It "
    "takes one backward pass per class.",
    "partial": "Each class has a gradient-based class activation map of a part of its evidence: a class token or "
    "another branch bypasses the locations. It takes one backward pass per class.",
    None: "Each class has a class activation map: the evidence for the class at each location.",
}
"""Description of the maps by ``cam_form`` in ``metrics.json``. Exported files have exact maps only."""

METRIC_LABELS = {
    "accuracy": "accuracy",
    "teacher_accuracy": "accuracy of the teacher",
    "teacher_agreement": "agreement with the teacher (same predicted class)",
    "cam_cosine": "similarity of the maps to the teacher's (cosine)",
}
"""Label of each metric in the card, by its key in ``metrics.json``."""


def render_card(
    info: Mapping[str, Any],
    metrics: Mapping[str, Any],
    kind: Kind,
    extra_results: str = "",
    source: str = "FOLDER",
) -> str:
    """Render the model card.

    Args:
        info: Fields of a `ModelInfo` by name.
        metrics: Content of ``metrics.json``; it may be empty.
        kind: Format of the model file.
        extra_results: Markdown below the table of metrics, for example the measurements of an export.
        source: Argument of ``camkd.load`` in the example.

    Returns:
        The card as Markdown with YAML metadata.
    """
    num_classes = len(info["classes"])
    form = "exact" if kind == "onnx" else metrics.get("cam_form")
    metadata = yaml.safe_dump(front_matter(info, metrics, kind), sort_keys=False, allow_unicode=True)
    usage = USAGE[kind].format(size=info["size"], num_classes=num_classes, source=source)
    preprocessing = Preprocessing(info["size"], info["fit"], info["interpolation"], info["value_range"])
    parts = [
        f"---\n{metadata}---",
        f"# {title(info)}",
        f"A `{info['architecture']}` with {info['params']:,} parameters. It classifies images of {info['size']} x "
        f"{info['size']} pixels into {num_classes} classes. {MAP_DESCRIPTIONS[form]} Trained with camkd.",
        f"## Use\n\n```python\n{usage}```\n\n"
        f"Images: {preprocessing.description}. Normalization is part of the model. If the head "
        "is linear, `logits = mean of the map + bias` holds exactly.",
        f"## Classes\n\n{', '.join(info['classes'])}",
        f"## Results\n\n{_results_table(metrics)}{extra_results}",
        "## Training\n\n"
        f"Role: {info['role']}. Method: `{info['method']}`. Dataset: `{info['data']}` (fingerprint "
        f"`{info['data_fingerprint'][:16]}`). Seed: {info['seed']}.{_training_budget(metrics)}",
        "## Limitations\n\nA map shows where the model found evidence, not whether the prediction is correct. The "
        "model also predicts a class for images unlike its training images, and its confidence does not reveal them."
        + _threshold_note(info.get("threshold")),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def title(info: Mapping[str, Any]) -> str:
    """Return the title of the card: the names of the network and of the dataset."""
    return f"{info['architecture']} for {info['data']}"


def front_matter(info: Mapping[str, Any], metrics: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return the metadata of the card. An accuracy in ``metrics`` becomes an evaluation result (``model-index``)."""
    metadata: dict[str, Any] = {
        "library_name": "camkd" if kind == "pytorch" else "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "class-activation-map", "knowledge-distillation", "camkd"],
    }
    if "accuracy" in metrics:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": info["data"], "name": info["data"], "split": "test"},
            "metrics": [{"type": "accuracy", "value": metrics["accuracy"]}],
        }
        metadata["model-index"] = [{"name": title(info), "results": [result]}]
    return metadata


def _threshold_note(threshold: float | None) -> str:
    if not threshold:
        return ""
    return (
        f" The confidence, the largest softmax probability of the logits, is calibrated. Below {threshold:.3f} the "
        "answer counts as unsure."
    )


def _training_budget(metrics: Mapping[str, Any]) -> str:
    """Return a sentence on epochs and training time, or an empty string if they are unknown."""
    if not {"epochs", "augment_epochs", "seconds"} <= metrics.keys():
        return ""
    return (
        f" Epochs: {metrics['epochs']}, with {metrics['augment_epochs']} different augmentations of each image. "
        f"Training time: {metrics['seconds'] / 60:,.0f} minutes."
    )


def _results_table(metrics: Mapping[str, Any]) -> str:
    rows = [f"| {label} | {100 * metrics[name]:.1f} % |" for name, label in METRIC_LABELS.items() if name in metrics]
    chance_keys = [level.key("cam_cosine") for level in CHANCE_LEVELS]
    baselines = [metrics[key] for key in chance_keys if key in metrics]
    if baselines:
        rows.append(
            f"| similarity of maps that are independent of the image (chance level) | {100 * max(baselines):.1f} % |"
        )
    if not rows:
        return "No metrics were saved with the model.\n"
    count = f"{metrics['test_images']:,} " if "test_images" in metrics else ""
    return f"| on {count}test images | |\n|---|---|\n" + "\n".join(rows) + "\n"
