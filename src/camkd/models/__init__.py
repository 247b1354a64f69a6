"""Image classifiers by name: the built-in networks, and the networks of timm and torchvision."""

from camkd.models.base import ImageClassifier
from camkd.models.profile import Profile, profile
from camkd.models.registry import MODELS, ModelFactory, build, default_optimizer, is_model_name, model_factory

__all__ = [
    "MODELS",
    "ImageClassifier",
    "ModelFactory",
    "Profile",
    "build",
    "default_optimizer",
    "is_model_name",
    "model_factory",
    "profile",
]
