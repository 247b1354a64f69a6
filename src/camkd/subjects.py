"""Whom one can ask where it looks: a run, a checkpoint, a shipped model, a trained network of timm or torchvision."""

from __future__ import annotations

from pathlib import Path

from camkd.models import Normalised, build
from camkd.models.external import is_external, made_for
from camkd.models.saved import DESCRIPTION, Description
from camkd.objectives import objective
from camkd.runs import Run, load
from camkd.types import InputError


def subject(source: str) -> Normalised:
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
    if not (path / DESCRIPTION).exists() and Run(path).checkpoints:
        return _begun(Run(path), None)
    return load(source)


def _external(name: str) -> Normalised:
    classes, size = made_for(name)
    model = build(name, len(classes), size).eval()
    model.description = Description(name, classes, size, 0, 0, "model", "", "", "", 0)
    return model


def _begun(run: Run, name: str | None) -> Normalised:
    """A network on its way: the run's configuration, and the weights of a checkpoint."""
    weights, told, origin = run.checkpoints.weights(name), run.config(), run.origin()
    if "classes" not in origin:
        raise InputError(f"{run.folder} does not say which classes it knows: finish the run, or name another.")
    architecture = told.get("student") or told.get("model")
    if not architecture:
        raise InputError(f"{run.folder} does not say which network it trains: bring config.yaml back, or name another.")
    classes, method = tuple(origin["classes"]), told.get("method", "plain")
    role = "teacher" if "student" not in told else "student" if objective(method).asks_teacher else "control"
    model = build(architecture, len(classes), origin["size"], pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the checkpoint in {run.folder} is of another {architecture}: name another run.") from error
    model.description = Description(
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
