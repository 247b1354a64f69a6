"""Weights with their description, and both as a folder that others can load.

Nothing here pickles: weights are safetensors. The description holds their checksum, so that a flipped byte is an error
and not a worse model.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from safetensors.torch import save as serialised
from torch import nn

from camkd.models.card import card
from camkd.types import InputError
from camkd.utils.files import atomic_write, write_json, write_text

LARGEST_SIZE = 1 << 14
WEIGHTS_FILE, INFO_FILE, CARD_FILE = "model.safetensors", "model.json", "README.md"


@dataclass(frozen=True)
class ModelInfo:
    """What ``model.json`` says of the weights beside it."""

    architecture: str
    classes: tuple[str, ...]
    size: int
    params: int
    macs: int
    role: str  # teacher, control or student; model where somebody else trained it
    method: str
    data: str
    data_fingerprint: str
    seed: int
    teacher: str | None = None  # where its teacher's run lay, as an absolute path
    sha256: str = ""

    def check(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` where something is not what could have been written."""
        for name, kind in get_type_hints(ModelInfo).items():
            value = getattr(self, name)
            wanted = tuple if name == "classes" else kind
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}")
        if len(self.classes) < 2 or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes has to be two names or more")
        if not 1 <= self.size <= LARGEST_SIZE:
            raise ValueError(f"size is {self.size}")
        "".join(self.classes).encode()  # half a surrogate cannot be shown

    def portable(self) -> ModelInfo:
        """The same without what only this machine knows: no path says where pictures and teacher lay."""
        return replace(self, data=Path(self.data).name, teacher=None)


def save(model: nn.Module, folder: Path, description: ModelInfo) -> None:
    """Write weights, then the description with their checksum; each file whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = serialised(tensors)
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(content)
    write_json(folder / INFO_FILE, {**asdict(description), "sha256": hashlib.sha256(content).hexdigest()})


def save_portable(model: nn.Module, folder: Path, description: ModelInfo, figures: Mapping[str, Any]) -> None:
    """What `save` writes, without paths of this machine, and a model card."""
    said = description.portable()
    save(model, folder, said)
    write_text(folder / CARD_FILE, card(asdict(said), figures, "pytorch"))


def upload(model: nn.Module, repo_id: str, said: ModelInfo, figures: Mapping[str, Any], **how: Any) -> str:
    """Upload what `save_portable` writes to the Hugging Face Hub, as the newest commit of ``repo_id``; its address.

    Raises ``InputError`` where ``huggingface_hub`` is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError(
            "push_to_hub needs huggingface_hub, which is not installed: pip install 'camkd[hub]'."
        ) from error
    hub = HfApi(token=how.pop("token", None))
    message = how.pop("commit_message", None) or "Upload model"
    with tempfile.TemporaryDirectory() as folder:
        save_portable(model, Path(folder), said, figures)
        place = hub.create_repo(repo_id, exist_ok=True, **how)
        hub.upload_folder(repo_id=place.repo_id, folder_path=folder, commit_message=message)
    return str(place)
