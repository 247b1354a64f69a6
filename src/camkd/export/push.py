"""Workflow of ``camkd push``: upload a model, and its page as a static Space, to the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from camkd.config import AUTO
from camkd.export.export import ExportOptions, Reporter, export
from camkd.export.web import site
from camkd.models.hub import PREFIX, check_repo_id, check_token, upload_folder
from camkd.models.io import CARD_FILE, INFO_FILE, ModelInfo, save_portable
from camkd.runs.folder import Run
from camkd.runs.loading import find_model_folder, load
from camkd.types import InputError
from camkd.utils.files import write_text
from camkd.utils.units import format_quantity

SPACE_CARD = """\
---
{metadata}---

# {title}

This page runs an image classifier in the browser, and shows its class activation maps. Images that are opened in the
page stay on the device. The model is [{repo_id}](https://huggingface.co/{repo_id}), trained with camkd. The page shows
{num_examples} test images as examples.
"""
"""``README.md`` of a Space, with the metadata of hf.co/docs/hub/spaces-config-reference."""


def push(
    source: str, repo_id: str, page: str | None, *, private: bool, dry_run: bool, reporter: Reporter
) -> dict[str, Any]:
    """Upload a trained model, and its page as a static Space of the same name.

    Only the weights, ``model.json``, ``metrics.json``, the model card and the files of the page are uploaded: no
    checkpoint, no configuration, and no image except for the test images that the page shows as examples.

    Args:
        source: A finished run folder, a saved folder or a shipped model.
        repo_id: Repository on the Hub, ``owner/name``.
        page: Folder of an exported page. ``auto``: the page is exported first. None: no Space.
        private: Whether the repositories must be private. Otherwise new repositories have the default of the user or
            organization.
        dry_run: Whether to list the files only.
        reporter: Reporter that receives progress and messages.

    Returns:
        Entries ``model`` and ``space`` with the URL (None in a dry run) and the size of each file in bytes.

    Raises:
        InputError: If an argument is invalid, the run is unfinished, there is no token, or the Hub rejects the upload
            or cannot be reached.

    Example:
        >>> with ProgressReporter() as reporter:                                              # doctest: +SKIP
        ...     push("runs/mine", "me/my-birds", None, private=True, dry_run=False, reporter=reporter)
    """
    check_repo_id(repo_id)
    if not dry_run:
        check_token()
    model_folder = _finished_folder(source)
    model = load(model_folder)
    metrics = Run(model_folder).read_metrics()
    assert model.info is not None
    with TemporaryDirectory() as temporary:
        folders = {"model": Path(temporary, "model")}
        save_portable(model, folders["model"], model.info, metrics, PREFIX + repo_id)
        if page is not None:
            folders["space"] = Path(temporary, "space")
            _write_space(folders["space"], source, model.info, repo_id, page, reporter)
        results: dict[str, Any] = {}
        for kind, folder in folders.items():
            files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
            _list_files(kind, repo_id, files, private, reporter)
            results[kind] = {"url": None, "files": files}
        for kind, folder in {} if dry_run else folders.items():
            url = upload_folder(folder, repo_id, is_space=kind == "space", private=private or None)
            results[kind]["url"] = url
            reporter.message(f"uploaded: {url}")
    if dry_run:
        reporter.message("nothing was uploaded, because of --dry-run")
    else:
        reporter.message(f"use the model with: camkd explain {PREFIX}{repo_id} IMAGES --out cams.png")
    return {"repo": repo_id, "dry_run": dry_run, **results}


def _finished_folder(source: str) -> Path:
    """Return the folder of a model, after a check that its run is finished."""
    for folder in (Path(source), Path(source) / "student"):
        run = Run(folder)
        if (run.config() or run.checkpoints) and not run.finished:
            raise InputError(
                f"RUN must be a finished run, got {folder}, which is unfinished. Add --resume to its training."
            )
        if (folder / INFO_FILE).exists():
            break
    return find_model_folder(source)


def _write_space(folder: Path, source: str, info: ModelInfo, repo_id: str, page: str, reporter: Reporter) -> None:
    """Write the files of a Space: the page of a model, and the description of the Space."""
    if page == AUTO:
        export(source, None, folder, ExportOptions(), None, reporter)
    else:
        _copy_page(Path(page), folder, info)
    config = site.read_config(folder)
    metadata = {
        "title": config["title"],
        "emoji": "🔍",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "models": [repo_id],
        "tags": ["image-classification", "class-activation-map", "camkd"],
    }
    card = SPACE_CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        title=config["title"],
        repo_id=repo_id,
        num_examples=len(config["examples"]),
    )
    write_text(folder / CARD_FILE, card)
    classes = ", ".join(example["true_class"] for example in config["examples"])
    reporter.message(f"the page shows {len(config['examples'])} test images as examples, of the classes {classes}")


def _copy_page(page: Path, folder: Path, info: ModelInfo) -> None:
    """Copy the files of an exported page, and no others in its folder."""
    files = site.page_files(page)
    if site.read_config(page)["classes"] != list(info.classes):
        raise InputError(
            f"--space must be the page of RUN, got {page}, a page with other classes. Export the page of RUN with "
            "'camkd export RUN --web DIR'."
        )
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page / name, folder / name)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _list_files(kind: str, repo_id: str, files: dict[str, int], private: bool, reporter: Reporter) -> None:
    """Print the files of an upload with their sizes."""
    title = f"{'Space' if kind == 'space' else 'model repository'} {repo_id}{', private' if private else ''}"
    reporter.message(f"{title}: {len(files)} files, {format_quantity(sum(files.values()))}")
    for name, size in files.items():
        reporter.message(f"  {format_quantity(size):>9}  {name}")
