"""Load a trained model: from a run, a checkpoint, a saved folder or the Hub, or by the name of another model."""

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
from camkd.models.hub import PREFIX, download_model, is_hub_name
from camkd.models.io import INFO_FILE, WEIGHTS_FILE, ModelInfo
from camkd.models.profile import profile
from camkd.runs.folder import Run
from camkd.types import InputError
from camkd.utils.files import load_json


def shipped_models() -> dict[str, Path]:
    """Return the folder of each trained model that the package contains, by name.

    Example:
        >>> sorted(shipped_models())
        ['cam-net-cifar10']
    """
    root = Path(str(resources.files("camkd"))) / "runs" / "shipped"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{INFO_FILE}"))}


def find_model_folder(source: str | Path) -> Path:
    """Return the folder that holds ``model.json`` and the weights of a trained model.

    Args:
        source: A run folder, a folder of ``camkd train`` (the folder of its student is returned), a folder of
            ``save_pretrained``, the name of a shipped model, or a model of the Hugging Face Hub, ``hf:owner/name``,
            which is downloaded.

    Returns:
        The folder.

    Raises:
        InputError: If ``source`` is neither a folder with a trained model nor the name of a shipped model, or if the
            model cannot be downloaded.

    Example:
        >>> find_model_folder("cam-net-cifar10").name
        'cam-net-cifar10'
    """
    if is_hub_name(source):
        return download_model(str(source))
    folder = Path(source)
    for candidate in (folder, folder / "student", shipped_models().get(str(source))):
        if candidate is not None and (candidate / INFO_FILE).exists():
            return candidate
    names = ", ".join(shipped_models()) or "none"
    raise InputError(
        f"{str(source)!r} must be a run folder with a trained model, a shipped name (shipped: {names}) or "
        f"{PREFIX}owner/name. "
        "Train a model with 'camkd train', or give the folder of a trained model."
    )


def find_run_folder(source: str | Path) -> Path | None:
    """Return the folder of a model that `load` accepts.

    Args:
        source: A run folder, one of its checkpoints, a saved folder, or the name of a shipped or pretrained model or of
            a model of the Hugging Face Hub.

    Returns:
        The run folder, which may be unfinished. None for a pretrained network of timm or torchvision.

    Raises:
        InputError: If there is no such model.

    Example:
        >>> find_run_folder("runs/mine/checkpoints/last-00000100.pt")                 # doctest: +SKIP
        PosixPath('runs/mine')
    """
    path = Path(source)
    if is_external(str(source)) and not path.exists():
        return None
    if path.name == "checkpoints" and path.is_dir():
        return path.parent
    if path.parent.name == "checkpoints" and path.suffix == ".pt":
        return path.parent.parent
    if not (path / INFO_FILE).exists() and Run(path).checkpoints:
        return path
    return find_model_folder(source)


def read_model_info(source: str | Path) -> ModelInfo:
    """Read ``model.json`` of a trained model.

    Args:
        source: A folder or the name of a shipped model, see `find_model_folder`.

    Returns:
        The model info. Unknown entries of the file are ignored.

    Raises:
        InputError: If there is no trained model, or its ``model.json`` is corrupt.

    Example:
        >>> read_model_info("cam-net-cifar10").classes[:3]
        ('airplane', 'automobile', 'bird')
    """
    path = find_model_folder(source) / INFO_FILE
    try:
        values = load_json(path.read_text(encoding="utf-8"))
        entries = {field.name: values[field.name] for field in fields(ModelInfo) if field.name in values}
        pair = entries.get("value_range")
        value_range = pair if pair is None else tuple(pair)
        info = ModelInfo(**{**entries, "classes": tuple(values["classes"]), "value_range": value_range})
        info.check()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must be a valid model description, got an error: {error}. Train the run again or restore the file."
        ) from error
    return info


def load(source: str | Path) -> ImageClassifier:
    """Load a trained model.

    Args:
        source: One of

            - a run folder, or a folder of ``camkd train`` (its student is loaded);
            - a folder of ``save_pretrained``;
            - the name of a shipped model, such as ``cam-net-cifar10``;
            - ``hf:owner/name``, a model of the Hugging Face Hub that ``camkd push`` or ``push_to_hub`` uploaded (needs
              ``camkd[hub]``). It is downloaded once;
            - an unfinished run, or the folder ``checkpoints`` of any run. The best weights so far are loaded, or the
              averaged weights before the first validation;
            - a checkpoint file, ``checkpoints/last-<step>.pt`` or ``checkpoints/best-<epoch>.pt``. The averaged weights
              of a training state ``last-<step>.pt`` are loaded;
            - ``timm:<network>.<tag>`` or ``torchvision:<network>.<tag>``, such as ``timm:resnet50.a1_in1k``. The
              library downloads the pretrained weights once.

    Returns:
        The model on the CPU, in evaluation mode. ``model.info`` is its `ModelInfo`.

    Raises:
        InputError: If there is no such model, if a file is corrupt, or if the weights do not fit the network.

    Example:
        >>> model = camkd.load("cam-net-cifar10")                                     # doctest: +SKIP
        >>> logits, cams, *_ = camkd.predict(model, torch.rand(1, 3, 32, 32))         # doctest: +SKIP
    """
    folder = find_run_folder(source)
    if folder is None:
        return _load_pretrained(str(source))
    path = Path(source)
    if path.parent.name == "checkpoints" and path.suffix == ".pt":
        return _load_checkpoint(Run(folder), path.name)
    if path.name == "checkpoints" or not (folder / INFO_FILE).exists():
        return _load_checkpoint(Run(folder))
    return _load_saved(folder)


def _load_saved(folder: Path) -> ImageClassifier:
    """Load a model from a folder that `camkd.models.io.save` wrote."""
    info = read_model_info(folder)
    path = folder / WEIGHTS_FILE
    if not path.exists():
        raise InputError(
            f"{folder} must hold {WEIGHTS_FILE}, got only {INFO_FILE}. Train the run again or restore the file."
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise InputError(f"{path} must be intact, got another checksum. Train the run again or restore the file.")
    model = build(info.architecture, len(info.classes), info.size, pretrained=False)
    try:
        model.load_state_dict(load_safetensors(content))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} must hold weights of {info.architecture!r}, the architecture in {INFO_FILE}, got other weights. "
            "Train the run again or restore the file."
        ) from error
    model.info = info
    model.metrics = _read_metrics(folder)
    return model.eval()


def _read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of the model in ``folder``; empty if the file is missing or corrupt."""
    try:
        return Run(folder).read_metrics()
    except InputError:
        return {}


def _load_pretrained(name: str) -> ImageClassifier:
    """Load a pretrained network of timm or torchvision."""
    classes, size, _ = pretrained_info(name)
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
    """Load the weights of a checkpoint into the network that the configuration of the run names."""
    weights = run.checkpoints.load_weights(name)
    config = run.config()
    provenance = run.provenance()
    if "classes" not in provenance:
        raise InputError(f"{run.folder} must record its classes, got none. Finish the run, or choose another run.")
    architecture = config.get("student") or config.get("model")
    if not architecture:
        raise InputError(
            f"{run.folder} must record its architecture, got none. Restore config.yaml, or choose another run."
        )
    classes = tuple(provenance["classes"])
    size = provenance["size"]
    model = build(architecture, len(classes), size, pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint in {run.folder} must hold weights of {architecture!r}, got other weights. Choose another "
            "run."
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
        source_fingerprint=provenance.get("source_fingerprint", ""),
        teacher=config.get("teacher"),
        value_range=tuple(provenance["value_range"]) if provenance.get("value_range") else None,
        fit=config.get("fit", "crop"),
        interpolation=config.get("interpolation", "bicubic"),
    )
    return model
