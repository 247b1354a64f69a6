"""Upload folders to the Hugging Face Hub, and download models from the Hub. Needs ``camkd[hub]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from camkd.models.io import INFO_FILE, METRICS_FILE, WEIGHTS_FILE
from camkd.types import InputError

PREFIX = "hf:"
"""Start of the name of a model on the Hub, such as ``hf:me/my-birds``."""

REPO_ID = r"[\w](?:[\w.-]*[\w])?/[\w](?:[\w.-]*[\w])?"
"""Pattern of ``owner/name``, without the further rules of `check_repo_id`."""

MAX_REPO_ID_LENGTH = 96


def is_hub_name(source: str | Path) -> bool:
    """Return whether a model is on the Hub.

    Example:
        >>> is_hub_name("hf:me/my-birds"), is_hub_name("runs/mine")
        (True, False)
    """
    return str(source).startswith(PREFIX)


def check_repo_id(repo_id: str, name: str = "REPO") -> None:
    """Check the form of a repository name, ``owner/name``.

    Args:
        repo_id: The name.
        name: Name of the setting, for the error message.

    Raises:
        InputError: If the name is not that of a repository on the Hub.
    """
    is_valid = re.fullmatch(REPO_ID, repo_id, re.ASCII) and len(repo_id) <= MAX_REPO_ID_LENGTH
    if not is_valid or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise InputError(
            f"{name} must be owner/name with letters, digits, '-', '_' and '.', got {repo_id!r}. Write it like "
            "me/my-birds."
        )


def check_token(token: str | None = None) -> None:
    """Check that there is an access token of the Hub.

    Args:
        token: The token. None: the token that ``hf auth login`` stored, or that of the variable ``HF_TOKEN``.

    Raises:
        InputError: If ``huggingface_hub`` is not installed, or if there is no token.
    """
    if (token or _import_hub().get_token()) is None:
        raise InputError(
            "an access token of the Hugging Face Hub with write permission must be set for an upload, got none. Run "
            "'hf auth login', or set HF_TOKEN."
        )


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    is_space: bool = False,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Upload all files of a folder to a repository of the Hub, as one commit. The repository is created if needed.

    Files of other names stay in the repository, except for those of an earlier page in a Space.

    Args:
        folder: The folder.
        repo_id: The repository, ``owner/name``.
        is_space: Whether to upload to a static Space instead of a model repository.
        private: Whether a new repository is private (default: the default of the user or organization). With True, an
            existing repository must be private.
        token: Access token (default: the stored token).
        commit_message: Message of the commit.

    Returns:
        The URL of the repository.

    Raises:
        InputError: If ``huggingface_hub`` is not installed, if there is no token, if the Hub rejects the upload or
            cannot be reached, or if the repository exists but is public or another kind of Space.
    """
    check_repo_id(repo_id)
    check_token(token)
    kind: dict[str, Any] = {"repo_type": "space" if is_space else "model"}
    with _readable_errors(repo_id):
        api = _import_hub().HfApi(token=token)
        space = {"space_sdk": "static"} if is_space else {}
        repo_url = api.create_repo(repo_id, exist_ok=True, private=private, **kind, **space)
        repo_info = api.repo_info(repo_url.repo_id, **kind)
        if private and not repo_info.private:
            raise InputError(
                f"{repo_id} must be private with --private, got an existing public repository. Make it private on the "
                "Hub, or choose another REPO."
            )
        if is_space and repo_info.sdk not in (None, "static"):
            raise InputError(
                f"the Space {repo_id} must be static, got an existing Space of {repo_info.sdk}. Choose another REPO."
            )
        earlier = {"delete_patterns": ["examples/*", "runtime/*"]} if is_space else {}
        api.upload_folder(
            repo_id=repo_url.repo_id, folder_path=folder, commit_message=commit_message, **kind, **earlier
        )
    return str(repo_url)


@lru_cache
def download_model(name: str) -> Path:
    """Download a model from the Hub, once per process. Files that have not changed are taken from the cache of the Hub.

    Args:
        name: Name of the model, such as ``hf:me/my-birds``.

    Returns:
        The folder of the model, with ``model.json``.

    Raises:
        InputError: If ``huggingface_hub`` is not installed, if the repository does not exist or holds no model of
            camkd, or if the Hub cannot be reached and the model is not in the cache.
    """
    repo_id = name.removeprefix(PREFIX)
    check_repo_id(repo_id, f"the name after {PREFIX}")
    with _readable_errors(repo_id):
        files = [INFO_FILE, WEIGHTS_FILE, METRICS_FILE]
        folder = Path(_import_hub().snapshot_download(repo_id, allow_patterns=files))
    if not (folder / INFO_FILE).exists():
        raise InputError(
            f"{name} must be a model of camkd, got a repository without {INFO_FILE}. Choose a repository that 'camkd "
            "push' wrote."
        )
    return folder


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            "the Hugging Face Hub needs huggingface_hub, which is not installed. Run pip install 'camkd[hub]'."
        ) from error
    return huggingface_hub


@contextmanager
def _readable_errors(repo_id: str) -> Iterator[None]:
    """Convert errors of the Hub and of the network to ``InputError``."""
    _import_hub()
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of requests, httpx or httpx2, depending on the version
    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            raise InputError(
                f"{repo_id} must be a repository of the Hub that the token may use, got status {status}. Check the "
                "name, and run 'hf auth login' with a token that has the permission."
            ) from error
        raise InputError(f"the Hub must accept the request for {repo_id}, got: {_line(error)}. Try again.") from error
    except (OSError, http_error) as error:
        if getattr(error, "filename", None):
            raise  # a file on this machine
        raise InputError(
            f"the Hugging Face Hub must be reachable, got: {_line(error)}. Check the network, and try again."
        ) from error


def _line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
