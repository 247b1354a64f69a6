"""Load a model from a run, a checkpoint, a saved folder, or a shipped or pretrained name."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from camkd.models import ImageClassifier, build
from camkd.models.external import is_external, pretrained_info
from camkd.models.io import INFO_FILE, WEIGHTS_FILE, ModelInfo
from camkd.models.profile import profile
from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.files import load_json


def shipped_models() -> dict[str, Path]:
    """Return the folders of the trained models inside the package, by name.

    >>> sorted(shipped_models())
    ['cam-net-cifar10']
    """
    root = Path(str(resources.files("camkd"))) / "runs" / "shipped"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{INFO_FILE}"))}


def find_model_folder(source: str | Path) -> Path:
    """Return the folder that holds ``model.json`` and the weights of a trained model.

    Args:
        source: a run folder, a folder of ``camkd train`` (its student is taken), a folder of ``save_pretrained``,
            or the name of a shipped model.

    Returns:
        The folder.

    Raises:
        InputError: if ``source`` holds no trained model and is no shipped name.

    Example:
        >>> find_model_folder("cam-net-cifar10").name
        'cam-net-cifar10'
    """
    folder = Path(source)
    for candidate in (folder, folder / "student", shipped_models().get(str(source))):
        if candidate is not None and (candidate / INFO_FILE).exists():
            return candidate
    names = ", ".join(shipped_models()) or "none"
    raise InputError(
        f"{str(source)!r} must be a run folder with a trained model or a shipped name (shipped: {names}). "
        "Train a model with 'camkd train', or give the folder of a trained model."
    )


def read_model_info(source: str | Path) -> ModelInfo:
    """Read ``model.json`` of a trained model.

    Args:
        source: as for `find_model_folder`.

    Returns:
        The architecture, classes, image size and provenance of the model. Unknown entries are ignored.

    Raises:
        InputError: if there is no trained model, or its ``model.json`` is damaged.

    Example:
        >>> read_model_info("cam-net-cifar10").classes[:3]
        ('airplane', 'automobile', 'bird')
    """
    path = find_model_folder(source) / INFO_FILE
    try:
        values = load_json(path.read_text(encoding="utf-8"))
        known = {field.name: values[field.name] for field in fields(ModelInfo) if field.name in values}
        info = ModelInfo(**{**known, "classes": tuple(values["classes"])})
        info.check()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must be a valid model description ({error}). Train the run again or restore it."
        ) from error
    return info


def load(source: str | Path) -> ImageClassifier:
    """Load a trained model.

    Args:
        source: one of

            - a run folder, or a folder of ``camkd train`` (its student is loaded);
            - a folder of ``save_pretrained``;
            - the name of a shipped model, such as ``cam-net-cifar10``;
            - an unfinished run, or its folder ``checkpoints``: the best weights so far are loaded;
            - a checkpoint file, ``checkpoints/last-<step>.pt`` or ``checkpoints/best-<epoch>.pt``: of a training
              state, the averaged weights are loaded;
            - ``timm:<network>.<tag>`` or ``torchvision:<network>.<tag>``, such as ``timm:resnet50.a1_in1k``.

    Returns:
        The model on the CPU, in eval mode. ``model.info`` holds its classes, image size and provenance.

    Raises:
        InputError: if there is no such model, a checksum differs, or the weights do not fit the architecture.

    Example:
        >>> model = camkd.load("cam-net-cifar10")                                     # doctest: +SKIP
        >>> logits, cams, *_ = camkd.predict(model, torch.rand(1, 3, 32, 32))         # doctest: +SKIP
    """
    path = Path(source)
    if is_external(str(source)) and not path.exists():
        return _load_pretrained(str(source))
    if path.name == "checkpoints" and path.is_dir():
        return _load_checkpoint(Run(path.parent))
    if path.parent.name == "checkpoints" and path.suffix == ".pt":
        return _load_checkpoint(Run(path.parent.parent), path.name)
    if not (path / INFO_FILE).exists() and Run(path).checkpoints:
        return _load_checkpoint(Run(path))
    return _load_saved(source)


def _load_saved(source: str | Path) -> ImageClassifier:
    """Load weights that `camkd.models.io.save` wrote."""
    folder = find_model_folder(source)
    info = read_model_info(source)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise InputError(f"{folder} has a {INFO_FILE} but no {WEIGHTS_FILE}. Train the run again or restore it.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise InputError(f"{path} is damaged: its checksum differs. Train the run again or restore it.")
    model = build(info.architecture, len(info.classes), info.size, pretrained=False)
    try:
        model.load_state_dict(load_safetensors(content))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} does not fit the architecture {info.architecture!r} that {INFO_FILE} beside it names. "
            "Train the run again or restore it."
        ) from error
    model.info = info
    model.metrics = _read_metrics(folder)
    return model.eval()


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of the model in ``folder``; empty if the file is missing or damaged."""
    try:
        return Run(folder).read_metrics()
    except InputError:
        return {}


def _load_pretrained(name: str) -> ImageClassifier:
    """Load a pretrained network of timm or torchvision."""
    classes, size = pretrained_info(name)
    model = build(name, len(classes), size).eval()
    cost = profile(model, size)
    model.info = ModelInfo(
        architecture=name,
        classes=classes,
        size=size,
        params=cost.params,
        macs=cost.macs,
        role="model",
        method="",
        data="",
        data_fingerprint="",
        seed=0,
    )
    return model


def _load_checkpoint(run: Run, name: str | None = None) -> ImageClassifier:
    """Load the weights of a checkpoint into the architecture that the run's configuration names."""
    weights = run.checkpoints.load_weights(name)
    config = run.config()
    provenance = run.provenance()
    if "classes" not in provenance:
        raise InputError(f"{run.folder} does not record its classes. Finish the run, or choose another.")
    architecture = config.get("student") or config.get("model")
    if not architecture:
        raise InputError(f"{run.folder} does not record its architecture. Restore config.yaml, or choose another run.")
    classes = tuple(provenance["classes"])
    size = provenance["size"]
    model = build(architecture, len(classes), size, pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint in {run.folder} does not fit the architecture {architecture!r}. Choose another run."
        ) from error
    model.eval()
    cost = profile(model, size)
    model.info = ModelInfo(
        architecture=architecture,
        classes=classes,
        size=size,
        params=cost.params,
        macs=cost.macs,
        role=provenance.get("role", "student" if "student" in config else "teacher"),
        method=config.get("method", "plain"),
        data=config["data"],
        data_fingerprint=provenance["data_fingerprint"],
        seed=config["seed"],
        teacher=config.get("teacher"),
    )
    return model
