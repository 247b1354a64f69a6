"""A Hugging Face Hub in a local folder, in place of the functions of `huggingface_hub` that use the network."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from camkd.models.hub import download_model


class LocalHub:
    """Repositories as folders, and what was requested.

    Args:
        root: Folder of the repositories.
        monkeypatch: Replaces the functions of `huggingface_hub`.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.root = root
        self.commits: list[tuple[str, str, str, str | None]] = []
        self.private: dict[tuple[str, str], bool] = {}
        self.sdk: dict[str, str | None] = {}
        self.error: Exception | None = None
        hub = self

        def create_repo(
            api: Any,
            repo_id: str,
            *,
            repo_type: str,
            exist_ok: bool,
            private: bool | None,
            space_sdk: str | None = None,
        ) -> Any:
            if hub.error:
                raise hub.error
            assert exist_ok
            hub.private.setdefault((repo_id, repo_type), bool(private))
            if repo_type == "space":
                hub.sdk.setdefault(repo_id, space_sdk)
            kind = "spaces/" if repo_type == "space" else ""
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{kind}{repo_id}")

        def repo_info(api: Any, repo_id: str, *, repo_type: str) -> Any:
            return SimpleNamespace(private=hub.private[repo_id, repo_type], sdk=hub.sdk.get(repo_id))

        def upload_folder(
            api: Any,
            *,
            repo_id: str,
            folder_path: Path,
            commit_message: str,
            repo_type: str,
            delete_patterns: list[str] | None = None,
        ) -> None:
            target = hub.folder(repo_id, repo_type)
            for path in [path for path in target.rglob("*") if path.is_file()]:
                if any(fnmatch(path.relative_to(target).as_posix(), pattern) for pattern in delete_patterns or []):
                    path.unlink()
            shutil.copytree(folder_path, target, dirs_exist_ok=True)
            hub.commits.append((repo_id, repo_type, commit_message, api.token))

        def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
            if hub.error:
                raise hub.error
            snapshot = root / "cache" / repo_id
            snapshot.mkdir(parents=True, exist_ok=True)
            for path in hub.folder(repo_id).iterdir():
                if path.name in allow_patterns:
                    shutil.copy(path, snapshot)
            return str(snapshot)

        for function in (create_repo, repo_info, upload_folder):
            monkeypatch.setattr(huggingface_hub.HfApi, function.__name__, function)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
        download_model.cache_clear()

    def folder(self, repo_id: str, repo_type: str = "model") -> Path:
        """Return the folder of a repository."""
        return self.root / repo_type / repo_id

    def files(self, repo_id: str, repo_type: str = "model") -> set[str]:
        """Return the paths of the files of a repository."""
        folder = self.folder(repo_id, repo_type)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
