"""Networks of timm and torchvision by name, with our normalisation around them.

``timm:resnet18`` and ``torchvision:resnet18`` are drawn; with a tag behind a dot, ``timm:resnet50.a1_in1k`` or
``torchvision:resnet50.IMAGENET1K_V2`` (``DEFAULT`` is the newest), they come with those weights, which the library
downloads once, and with the normalisation that these were trained with. Nothing else downloads anything. This is the
only file that imports either library, and it does so when such a name is used.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from camkd.models.base import ImageClassifier
from camkd.types import InputError

LIBRARIES = ("timm", "torchvision")


class External(ImageClassifier):
    """Somebody else's classifier, ``net``, of normalised pictures."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(x))
        return logits


def is_external(name: str) -> bool:
    """Tell whether ``name`` names a network of timm or torchvision, be there such a one or not."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in LIBRARIES


def check_external(name: str) -> None:
    """Raise ``InputError`` where the library or the network is not there, or the network has no such weights."""
    library, wanted, tag = _parts(name)
    known: list[str] = _timm().list_models() if library == "timm" else _classifiers()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 3, 0) or known[:3]
        raise InputError(f"{library} has no classifier {wanted!r}: choose one like {', '.join(near)}.")
    tags = _tags(library, wanted)
    if tag and tag not in tags:
        raise InputError(
            f"{library} has no weights {tag!r} for {wanted}, but {', '.join(tags) or 'none at all'}: choose one of "
            "them, or leave the tag out to start from drawn weights."
        )


def make_external(name: str, classes: int, size: int, pretrained: bool) -> External:
    """The network ``name`` for ``classes`` classes and pictures of ``size`` pixels.

    With ``pretrained``, and a tag in the name, its weights are fetched, and its classifier is made anew where it knows
    another number of classes. Raises ``InputError`` for what cannot be had or does not take such pictures.
    """
    check_external(name)
    library, wanted, tag = _parts(name)
    make = _from_timm if library == "timm" else _from_torchvision
    try:
        model = make(wanted, tag, classes, size, bool(tag) and pretrained)
        with torch.no_grad():
            answer = model.eval()(torch.zeros(2, 3, size, size))
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's constructor says of a size it does not take
        raise InputError(
            f"{name} cannot be made for pictures of {size} pixels ({_line(error)}): give another --size."
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != (2, classes):
        raise InputError(f"{name} does not answer with one logit a class: choose a classifier.")
    return model.train()


def pretrained_info(name: str) -> tuple[tuple[str, ...], int]:
    """The classes that the weights of a name's tag know, and the side of the pictures they were trained on.

    Raises ``InputError`` for a name without a tag: drawn weights know nothing.
    """
    check_external(name)
    library, wanted, tag = _parts(name)
    if not tag:
        tags = ", ".join(_tags(library, wanted)[:3]) or "it has none"
        raise InputError(f"{name} has drawn weights, which know nothing: name trained ones behind a dot ({tags}).")
    if library == "torchvision":
        weights = _torchvision().get_model_weights(wanted)[tag]
        return tuple(weights.meta["categories"]), int(weights.transforms().crop_size[0])
    told = _timm().get_pretrained_cfg(f"{wanted}.{tag}")
    return _names(told), int(told.input_size[-1])


def _names(told: Any) -> tuple[str, ...]:
    """The classes of a network of timm: those of ImageNet, which timm lists, or else numbers."""
    data = _imported("timm.data")
    subset = data.infer_imagenet_subset(told.to_dict())
    if told.label_names or not subset:
        return tuple(told.label_names or map(str, range(told.num_classes)))
    known = data.ImageNetInfo(subset)
    return tuple(known.index_to_description(k).partition(",")[0] for k in range(told.num_classes))


def _parts(name: str) -> tuple[str, str, str]:
    library, _, rest = name.partition(":")
    wanted, _, tag = rest.partition(".")
    return library, wanted, tag


def _tags(library: str, wanted: str) -> list[str]:
    """The weights there are for a network."""
    if library == "timm":
        found: list[str] = _timm().list_pretrained(f"{wanted}.*")
        return [name.partition(".")[2] for name in found]
    return list(_torchvision().get_model_weights(wanted).__members__)


def _from_timm(wanted: str, tag: str, classes: int, size: int, fetched: bool) -> External:
    timm, full = _timm(), f"{wanted}.{tag}" if tag else wanted
    told = timm.get_pretrained_cfg(full)
    settings = {"num_classes": classes, **({"img_size": size} if told and told.fixed_input_size else {})}
    model = External(timm.create_model(full, pretrained=False, **settings))
    if fetched:
        try:
            model.net = timm.create_model(full, pretrained=True, **settings)
        except Exception as error:
            raise _unfetched(f"timm:{full}", error) from error
        model.set_normalization(told.mean, told.std)
        model.statistics_given = True
    return model


def _from_torchvision(wanted: str, tag: str, classes: int, size: int, fetched: bool) -> External:
    models = _torchvision()
    net = models.get_model(wanted, weights=None, num_classes=classes, **_settings(wanted, tag, size))
    model = External(net)
    if fetched:
        weights = models.get_model_weights(wanted)[tag]
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise _unfetched(f"torchvision:{wanted}.{tag}", error) from error
        _take(net, _resized(wanted, state, size))
        seen = weights.transforms()
        model.set_normalization(seen.mean, seen.std)
        model.statistics_given = True
    return model


def _settings(wanted: str, tag: str, size: int) -> dict[str, Any]:
    """What a network of torchvision has to be told of the pictures, and that it shall answer with logits alone."""
    if wanted.startswith("vit_"):
        return {"image_size": size}
    if wanted.startswith("maxvit"):
        return {"input_size": (size, size)}
    if wanted in ("googlenet", "inception_v3"):  # its own weights expect another normalisation inside
        return {"aux_logits": False, "init_weights": True, "transform_input": bool(tag)}
    return {}


def _resized(wanted: str, state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Weights for pictures of another size: positions of a vision transformer's patches lie between the known ones."""
    if not wanted.startswith("vit_"):
        return state
    vision = import_module("torchvision.models.vision_transformer")
    resized: dict[str, Tensor] = vision.interpolate_embeddings(size, state["conv_proj.weight"].shape[-1], state)
    return resized


def _take(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what fits; the classifier's own weights stay where the number of classes is another one."""
    own = net.state_dict()
    missing = [name for name in own if name not in state]
    if missing:
        raise InputError(f"the weights have no {missing[0]!r}: choose others.")
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    net.load_state_dict(fitting, strict=False)


def _unfetched(name: str, error: Exception) -> InputError:
    return InputError(
        f"the weights of {name} cannot be fetched ({_line(error)}): connect to the network once, or leave the tag out "
        "to start from drawn weights."
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _timm() -> Any:
    return _imported("timm")


def _torchvision() -> Any:
    return _imported("torchvision.models")


def _classifiers() -> list[str]:
    models = _torchvision()
    found: list[str] = models.list_models(module=models)
    return found


def _imported(module: str) -> Any:
    """Import a library. Raises ``InputError`` where it is missing, or does not go with this torch."""
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name == library
        reason = "is not installed" if missing else f"cannot be imported ({_line(error)})"
        raise InputError(f"{library} {reason}: pip install 'camkd[timm]' brings timm and torchvision.") from error
    except (RuntimeError, OSError) as error:  # its compiled part was made for another torch
        raise InputError(
            f"{library} cannot be imported ({_line(error)}): install the torchvision that is made for torch "
            f"{torch.__version__}."
        ) from error
