"""Networks by name."""

from camkd.models.base import Normalised
from camkd.models.profile import Profile, profile
from camkd.models.registry import MODELS, Make, build, entry, is_model, own_optimizer

__all__ = ["MODELS", "Make", "Normalised", "Profile", "build", "entry", "is_model", "own_optimizer", "profile"]
