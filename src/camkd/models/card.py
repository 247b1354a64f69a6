"""Model cards: a page of text with front matter, as the Hugging Face Hub reads it (hf.co/docs/hub/model-cards)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import yaml

Kind = Literal["pytorch", "onnx"]

LOADING = {
    "pytorch": """\
import camkd, torch

model = camkd.load("FOLDER")                              # this folder
answer = camkd.predict(model, torch.rand(1, 3, {size}, {size}))  # RGB in 0..1
answer.logits, answer.cams                                # (1, {count}) and (1, {count}, h, w)
""",
    "onnx": """\
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
picture = np.random.rand(1, 3, {size}, {size}).astype(np.float32)  # RGB in 0..1, channels first
logits, cam = session.run(None, {{"image": picture}})       # (1, {count}) and (1, {count}, h, w)
""",
}


MAPS = {
    "exact": "returns, in the same forward pass, a class activation map for each: the evidence for the class at each "
    "place, in units of its logit",
    "gradient": "has a class activation map for each, by gradients: the evidence for the class at each place, for one "
    "backward pass a class",
    None: "has a class activation map for each: the evidence for the class at each place",
}
"""What the maps are, by ``cam_form``; only exact ones are exported."""


def card(said: Mapping[str, Any], figures: Mapping[str, Any], kind: Kind, measured: str = "") -> str:
    """The card of the model that ``said`` (a ``ModelInfo`` as a dict) describes.

    ``figures`` are those of its ``metrics.json``; ``measured`` is text, a table of an export say, that goes below them.
    """
    classes = ", ".join(said["classes"])
    parts = [
        f"---\n{yaml.safe_dump(front_matter(said, figures, kind), sort_keys=False, allow_unicode=True)}---",
        f"# {title(said)}",
        f"A `{said['architecture']}` of {said['params']:,} parameters that sorts pictures of {said['size']} x "
        f"{said['size']} pixels into {len(said['classes'])} classes and "
        f"{MAPS['exact' if kind == 'onnx' else figures.get('cam_form')]}. Made with camkd.",
        f"## Use\n\n```python\n{LOADING[kind].format(size=said['size'], count=len(said['classes']))}```\n\n"
        "The network normalises by itself. Where the head is linear, `logits = mean of the map + bias` holds exactly.",
        f"## Classes\n\n{classes}",
        f"## Figures\n\n{_figures(figures)}{measured}",
        "## Where it comes from\n\n"
        f"Trained as {said['role']} with the method `{said['method']}` on `{said['data']}` (fingerprint of the "
        f"pictures `{said['data_fingerprint'][:16]}`), seed {said['seed']}.{_budget(figures)}",
        "## Limits\n\nA map says where the network found evidence, not whether it is right. Pictures unlike those it "
        "was trained on get an answer too, and the confidence does not tell them apart.",
    ]
    return "\n\n".join(parts) + "\n"


def title(said: Mapping[str, Any]) -> str:
    """What to call the model: its network and its pictures."""
    return f"{said['architecture']} for {said['data']}"


def front_matter(said: Mapping[str, Any], figures: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The card's metadata; with the accuracy as an evaluation result where it was measured."""
    found: dict[str, Any] = {
        "library_name": "camkd" if kind == "pytorch" else "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "class-activation-map", "knowledge-distillation", "camkd"],
    }
    if "accuracy" in figures:
        metrics = [{"type": "accuracy", "value": figures["accuracy"]}]
        task = {"type": "image-classification"}
        data = {"type": said["data"], "name": said["data"], "split": "test"}
        found["model-index"] = [{"name": title(said), "results": [{"task": task, "dataset": data, "metrics": metrics}]}]
    return found


def _budget(figures: Mapping[str, Any]) -> str:
    """What the training took, as far as it is known."""
    if not {"epochs", "augment_epochs", "seconds"} <= figures.keys():
        return ""
    views = f"{figures['augment_epochs']} different views of each picture"
    return f" {figures['epochs']} epochs over {views}, {figures['seconds'] / 60:,.0f} minutes of training."


def _figures(figures: Mapping[str, Any]) -> str:
    named = {
        "accuracy": "accuracy",
        "teacher_accuracy": "accuracy of its teacher",
        "teacher_agreement": "same answer as its teacher",
        "cam_cosine": "likeness of its maps to the teacher's (cosine)",
    }
    rows = [f"| {words} | {100 * figures[name]:.1f} % |" for name, words in named.items() if name in figures]
    levels = [figures[name] for name in ("cam_cosine_shuffled", "cam_cosine_centre") if name in figures]
    if levels:
        rows.append(f"| likeness of maps that know nothing of the picture (chance) | {100 * max(levels):.1f} % |")
    if not rows:
        return "None came with the model.\n"
    count = f"{figures['test_images']:,} " if "test_images" in figures else ""
    return f"| on {count}test pictures | |\n|---|---|\n" + "\n".join(rows) + "\n"
