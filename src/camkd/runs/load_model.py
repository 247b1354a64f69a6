"""Load a model from a run, a checkpoint, a shipped name or the name of a pretrained network."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as deserialised

from camkd.models import ImageClassifier, build
from camkd.models.external import is_external, pretrained_info
from camkd.models.io import INFO_FILE, WEIGHTS_FILE, ModelInfo
from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.files import load_json


def shipped_models() -> dict[str, Path]:
    """The trained models inside the package, by name."""
    root = Path(str(resources.files("camkd"))) / "runs" / "shipped"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{INFO_FILE}"))}


def find_model_folder(source: str | Path) -> Path:
    """The folder with the weights of ``source``: a run, a ``camkd train`` folder (its student), or a shipped name.

    Raises ``InputError`` where there is no such model.
    """
    folder = Path(source)
    for candidate in (folder, folder / "student", shipped_models().get(str(source))):
        if candidate is not None and (candidate / INFO_FILE).exists():
            return candidate
    names = ", ".join(shipped_models()) or "none"
    raise InputError(
        f"{str(source)!r} is neither a run folder with a trained model nor a shipped one (shipped: {names}): "
        "train one with 'camkd train' or name its folder."
    )


def read_model_info(source: str | Path) -> ModelInfo:
    """Read ``model.json`` of a run folder or a shipped name. Raises ``InputError`` where it is not whole."""
    path = find_model_folder(source) / INFO_FILE
    try:
        values = load_json(path.read_text(encoding="utf-8"))
        known = {field.name: values[field.name] for field in fields(ModelInfo) if field.name in values}
        said = ModelInfo(**{**known, "classes": tuple(values["classes"])})
        said.check()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a model ({error}): train the run again or restore it.") from error
    return said


def load(source: str | Path) -> ImageClassifier:
    """Load a trained model, in evaluation mode, from a run folder or a shipped name.

    Raises ``InputError`` where there is none, where its weights are not what was written, or do not fit.

    >>> model = camkd.load("cam-net-cifar10")                              # doctest: +SKIP
    >>> logits, cams, *_ = camkd.predict(model, torch.rand(1, 3, 32, 32))   # doctest: +SKIP
    """
    folder, description = find_model_folder(source), read_model_info(source)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise InputError(f"{folder} has a {INFO_FILE} but no {WEIGHTS_FILE}: train the run again or restore it.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != description.sha256:
        raise InputError(f"{path} is not what was written (its checksum differs): train the run again or restore it.")
    model = build(description.architecture, len(description.classes), description.size, pretrained=False)
    try:
        model.load_state_dict(deserialised(content))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} does not fit the {description.architecture} that {INFO_FILE} beside it describes: "
            "train the run again or restore it."
        ) from error
    model.info, model.figures = description, _figures(folder)
    return model.eval()


def _figures(folder: Path) -> dict[str, Any]:
    """What was measured of the model in ``folder``; nothing where that is not there or damaged."""
    try:
        return Run(folder).read_metrics()
    except InputError:
        return {}


def subject(source: str) -> ImageClassifier:
    """The network that ``source`` names, in evaluation mode, with its ``description``.

    ``source`` is what `camkd.load` takes, an unfinished run or its folder ``checkpoints`` (its best weights so far), a
    file in there, or a name like ``timm:resnet50.a1_in1k``. Raises ``InputError`` where there is no such network.
    """
    path = Path(source)
    if is_external(source):
        return _external(source)
    if path.name == "checkpoints" and path.is_dir():
        return _begun(Run(path.parent), None)
    if path.parent.name == "checkpoints" and path.suffix == ".pt":
        return _begun(Run(path.parent.parent), path.name)
    if not (path / INFO_FILE).exists() and Run(path).checkpoints:
        return _begun(Run(path), None)
    return load(source)


def _external(name: str) -> ImageClassifier:
    classes, size = pretrained_info(name)
    model = build(name, len(classes), size).eval()
    model.info = ModelInfo(name, classes, size, 0, 0, "model", "", "", "", 0)
    return model


def _begun(run: Run, name: str | None) -> ImageClassifier:
    """A network on its way: the run's configuration, and the weights of a checkpoint."""
    weights, told, origin = run.checkpoints.weights(name), run.config(), run.provenance()
    if "classes" not in origin:
        raise InputError(f"{run.folder} does not say which classes it knows: finish the run, or name another.")
    architecture = told.get("student") or told.get("model")
    if not architecture:
        raise InputError(f"{run.folder} does not say which network it trains: bring config.yaml back, or name another.")
    classes, method = tuple(origin["classes"]), told.get("method", "plain")
    role = origin.get("role", "student" if "student" in told else "teacher")
    model = build(architecture, len(classes), origin["size"], pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the checkpoint in {run.folder} is of another {architecture}: name another run.") from error
    model.info = ModelInfo(
        architecture=architecture,
        classes=classes,
        size=origin["size"],
        params=0,
        macs=0,
        role=role,
        method=method,
        data=told["data"],
        data_fingerprint=origin["pictures"],
        seed=told["seed"],
        teacher=told.get("teacher"),
    )
    return model.eval()
