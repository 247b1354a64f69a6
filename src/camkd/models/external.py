"""Networks of timm and torchvision ("external networks") by name, wrapped with normalization.

``timm:resnet18`` and ``torchvision:resnet18`` have random weights. A tag after a dot selects pretrained weights, for
example ``timm:resnet50.a1_in1k`` or ``torchvision:resnet50.IMAGENET1K_V2``. The tag ``DEFAULT`` of torchvision selects
the best weights. The library downloads the weights once, and the model gets the normalization that the weights were
trained with. Without a tag, nothing is downloaded.

The suffix ``+patch-mean`` gives a vision transformer with a class token another input of its head: the mean of the
patch tokens after the last normalization, as in ``timm:vit_tiny_patch16_224+patch-mean``. Its maps are exact. The
weights have the names and shapes of those with a class token, so the name alone tells the two networks apart.

This is the only module that imports timm or torchvision. It imports either library only when a network of it is used.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from camkd.models.base import ImageClassifier
from camkd.types import InputError

LIBRARIES = ("timm", "torchvision")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PATCH_MEAN = "+patch-mean"
"""Suffix of the name of a vision transformer whose head receives the mean of the patch tokens."""


class PretrainedInfo(NamedTuple):
    """Description of pretrained weights.

    Attributes:
        classes: Class names in the order of the logits.
        size: Side in pixels of the images that the weights are made for.
        interpolation: Interpolation of these images, for example ``bicubic``.
    """

    classes: tuple[str, ...]
    size: int
    interpolation: str


class ExternalClassifier(ImageClassifier):
    """Classifier of timm or torchvision, preceded by normalization.

    Args:
        net: Classifier from normalized images ``(N, 3, H, W)`` to logits ``(N, K)``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(x))
        return logits


def is_external(name: str) -> bool:
    """Return True if ``name`` starts with ``timm:`` or ``torchvision:``, even if there is no such network.

    Example:
        >>> is_external("timm:resnet18"), is_external("resnet8")
        (True, False)
    """
    library, colon, _ = name.partition(":")
    return bool(colon) and library in LIBRARIES


def check_external(name: str) -> None:
    """Check that timm or torchvision has a network and its weights.

    Args:
        name: ``LIBRARY:NETWORK`` or ``LIBRARY:NETWORK.TAG``.

    Raises:
        InputError: If the library cannot be imported, has no such network, or has no such weights of the network.
    """
    library, network, tag = _split_name(name)
    if "+" in name and not name.endswith(PATCH_MEAN):
        raise InputError(f"the suffix of a model name must be {PATCH_MEAN}, got {name!r}. Leave out the suffix.")
    networks: list[str] = _timm().list_models() if library == "timm" else _torchvision_classifiers()
    if network not in networks:
        similar = difflib.get_close_matches(network, networks, 3, 0) or networks[:3]
        raise InputError(
            f"the network must be a classifier of {library}, got {network!r}. Choose another, for example "
            f"{', '.join(similar)}."
        )
    tags = _weight_tags(library, network)
    if tag and tag not in tags:
        raise InputError(
            f"the weights of {library}:{network} must be one of {', '.join(tags) or 'none at all'}, got {tag!r}. "
            "Choose another tag, or leave the tag out to start from random weights."
        )


def make_external(name: str, classes: int, size: int, pretrained: bool) -> ExternalClassifier:
    """Build a network of timm or torchvision.

    Args:
        name: ``LIBRARY:NETWORK`` or ``LIBRARY:NETWORK.TAG``.
        classes: Number of classes. If the pretrained weights have another number of classes, the last layer stays
            random.
        size: Side of the images in pixels.
        pretrained: Whether to download the weights that a tag selects. If not, or without a tag, all weights are
            random.

    Returns:
        The model in training mode.

    Raises:
        InputError: If the network or the weights are not available, or if the network does not take images of this
            size or does not return logits ``(N, classes)``.
    """
    check_external(name)
    library, network, tag = _split_name(name)
    build = _build_timm if library == "timm" else _build_torchvision
    try:
        model = build(network, tag, classes, size, bool(tag) and pretrained, name.endswith(PATCH_MEAN))
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, 3, size, size))
    except InputError:
        raise
    except Exception as error:  # constructors of other libraries raise anything for an unsupported size
        raise InputError(
            f"`--size` must be supported by {name}, got {size} pixels ({_first_line(error)}). Choose another size."
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        raise InputError(f"{name} must return one logit per class, got another output. Choose a classifier.")
    return model.train()


def pretrained_info(name: str) -> PretrainedInfo:
    """Describe pretrained weights.

    Args:
        name: ``LIBRARY:NETWORK.TAG``.

    Returns:
        The description.

    Raises:
        InputError: If the name has no tag, because random weights have no classes, or if `check_external` raises it.
    """
    check_external(name)
    library, network, tag = _split_name(name)
    if not tag:
        tags = ", ".join(_weight_tags(library, network)[:3]) or "none are available"
        raise InputError(
            f"{name} must name pretrained weights, got no tag, which stands for random weights. Add a tag after a dot, "
            f"for example {name}.TAG with TAG one of: {tags}."
        )
    if library == "torchvision":
        weights = _torchvision().get_model_weights(network)[tag]
        transforms = weights.transforms()
        interpolation = str(transforms.interpolation.value)
        return PretrainedInfo(tuple(weights.meta["categories"]), int(transforms.crop_size[0]), interpolation)
    config = _timm().get_pretrained_cfg(f"{network}.{tag}")
    return PretrainedInfo(_timm_class_names(config), int(config.input_size[-1]), str(config.interpolation))


def has_pretrained_weights(name: str) -> bool:
    """Return True if a name selects pretrained weights of timm or torchvision.

    Example:
        >>> has_pretrained_weights("timm:resnet18.a1_in1k"), has_pretrained_weights("timm:resnet18")
        (True, False)
    """
    return is_external(name) and bool(_split_name(name)[2])


def usual_normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that timm or torchvision uses for a network, ImageNet's if it names none.

    Args:
        name: ``LIBRARY:NETWORK`` or ``LIBRARY:NETWORK.TAG``.
    """
    library, network, tag = _split_name(name)
    if library == "torchvision":
        weights = _torchvision().get_model_weights(network)
        transforms = (weights[tag] if tag else weights.DEFAULT).transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    config = _timm().get_pretrained_cfg(f"{network}.{tag}" if tag else network)
    return (IMAGENET_MEAN, IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))


def _timm_class_names(config: Any) -> tuple[str, ...]:
    """Return the class names of timm's weights: their own labels, else ImageNet's descriptions, else numbers."""
    data = _import("timm.data")
    subset = data.infer_imagenet_subset(config.to_dict())
    if config.label_names or not subset:
        return tuple(config.label_names or map(str, range(config.num_classes)))
    imagenet = data.ImageNetInfo(subset)
    return tuple(imagenet.index_to_description(k).partition(",")[0] for k in range(config.num_classes))


def _split_name(name: str) -> tuple[str, str, str]:
    """Split ``LIBRARY:NETWORK.TAG``, with or without suffix; the tag may be empty."""
    library, _, full_name = name.partition("+")[0].partition(":")
    network, _, tag = full_name.partition(".")
    return library, network, tag


def _weight_tags(library: str, network: str) -> list[str]:
    if library == "timm":
        names: list[str] = _timm().list_pretrained(f"{network}.*")
        return [name.partition(".")[2] for name in names]
    return list(_torchvision().get_model_weights(network).__members__)


def _build_timm(
    network: str, tag: str, classes: int, size: int, pretrained: bool, patch_mean: bool
) -> ExternalClassifier:
    timm = _timm()
    full_name = f"{network}.{tag}" if tag else network
    config = timm.get_pretrained_cfg(full_name)
    kwargs: dict[str, Any] = {
        "num_classes": classes,
        **({"img_size": size} if config and config.fixed_input_size else {}),
    }
    if patch_mean:
        kwargs |= {"global_pool": "avg", "fc_norm": False}  # the last normalization stays before the mean
        try:
            timm.create_model(full_name, pretrained=False, **kwargs)
        except (TypeError, AssertionError) as error:
            raise _no_patch_mean(f"timm:{full_name}") from error
    model = ExternalClassifier(timm.create_model(full_name, pretrained=False, **kwargs))
    if patch_mean and not getattr(model.net, "num_prefix_tokens", 0):
        raise _no_patch_mean(f"timm:{full_name}")
    if pretrained:
        try:
            model.net = timm.create_model(full_name, pretrained=True, **kwargs)
        except Exception as error:
            raise _download_error(f"timm:{full_name}", error) from error
        model.set_normalization(config.mean, config.std)
        model.has_pretrained_normalization = True
    return model


def _build_torchvision(
    network: str, tag: str, classes: int, size: int, pretrained: bool, patch_mean: bool
) -> ExternalClassifier:
    models = _torchvision()
    net = models.get_model(network, weights=None, num_classes=classes, **_torchvision_kwargs(network, tag, size))
    if patch_mean:
        if not network.startswith("vit_"):
            raise _no_patch_mean(f"torchvision:{network}")
        net.__class__ = type("PatchMeanTransformer", (type(net),), {"forward": _patch_mean_logits})
    model = ExternalClassifier(net)
    if pretrained:
        weights = models.get_model_weights(network)[tag]
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            raise _download_error(f"torchvision:{network}.{tag}", error) from error
        _load_matching(net, _resize_position_embeddings(network, state, size))
        transforms = weights.transforms()
        model.set_normalization(transforms.mean, transforms.std)
        model.has_pretrained_normalization = True
    return model


def _patch_mean_logits(net: Any, x: Tensor) -> Tensor:
    """Compute the logits of torchvision's vision transformer with the mean of the patch tokens as input of its head."""
    tokens = net._process_input(x)
    tokens = net.encoder(torch.cat([net.class_token.expand(len(tokens), -1, -1), tokens], 1))
    logits: Tensor = net.heads(tokens[:, 1:].mean(1))
    return logits


def _no_patch_mean(name: str) -> InputError:
    return InputError(
        f"{PATCH_MEAN} must follow the name of a vision transformer with a class token, got {name}. Leave it out."
    )


def _torchvision_kwargs(network: str, tag: str, size: int) -> dict[str, Any]:
    """Return the constructor arguments for the image size, for logits as the only output, and for the weights."""
    if network.startswith("vit_"):
        return {"image_size": size}
    if network.startswith("maxvit"):
        return {"input_size": (size, size)}
    if network in ("googlenet", "inception_v3"):
        # The pretrained weights expect mean 0.5 and std 0.5. transform_input converts images that were normalized with
        # ImageNet's mean and std.
        return {"aux_logits": False, "init_weights": True, "transform_input": bool(tag)}
    return {}


def _resize_position_embeddings(network: str, state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Interpolate the position embeddings of a vision transformer for images of another size."""
    if not network.startswith("vit_"):
        return state
    vision_transformer = import_module("torchvision.models.vision_transformer")
    resized: dict[str, Tensor] = vision_transformer.interpolate_embeddings(
        size, state["conv_proj.weight"].shape[-1], state
    )
    return resized


def _load_matching(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the tensors whose shape fits. The last layer stays random if ``state`` has another number of classes."""
    own_state = net.state_dict()
    missing = [name for name in own_state if name not in state]
    if missing:
        raise InputError(f"the weights must contain {missing[0]!r}, got none. Choose another tag.")
    matching = {
        name: value for name, value in state.items() if name in own_state and own_state[name].shape == value.shape
    }
    net.load_state_dict(matching, strict=False)


def _download_error(name: str, error: Exception) -> InputError:
    return InputError(
        f"the weights of {name} cannot be downloaded ({_first_line(error)}). Connect to the network once, or leave the "
        "tag out to start from random weights."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _timm() -> Any:
    return _import("timm")


def _torchvision() -> Any:
    return _import("torchvision.models")


def _torchvision_classifiers() -> list[str]:
    models = _torchvision()
    names: list[str] = models.list_models(module=models)
    return names


def _import(module: str) -> Any:
    """Import a module of timm or torchvision.

    Raises:
        InputError: If the library is not installed, or cannot be imported, for example with another version of torch.
    """
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        is_missing = error.name == library
        reason = "is not installed" if is_missing else f"cannot be imported ({_first_line(error)})"
        raise InputError(
            f"{library} {reason}. Run pip install 'camkd[timm]', which installs timm and torchvision."
        ) from error
    except (RuntimeError, OSError) as error:  # the compiled part was built for another torch
        raise InputError(
            f"{library} cannot be imported ({_first_line(error)}). Install the torchvision that is built for torch "
            f"{torch.__version__}."
        ) from error
