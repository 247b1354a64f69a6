"""Recognize folders and files that hold no images of a dataset: those of operating systems, tools and camkd itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

SYSTEM_FOLDERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@__thumb",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__macosx",
        "__pycache__",
        "_svn",
        "_thumbnails",
        "cvs",
        "lightning_logs",
        "lost+found",
        "lost.dir",
        "mlruns",
        "network trash folder",
        "node_modules",
        "recycled",
        "recycler",
        "resource.frk",
        "system volume information",
        "temporary items",
        "thevolumesettingsfolder",
        "wandb",
        "~snapshot",
    }
)
"""Names of folders of operating systems, network drives and tools, in lower case. Hidden folders are not listed."""

SYSTEM_PATTERN = re.compile(r"found\.\d{3}|_vti_[a-z]+")
"""Further names of such folders in lower case: files that a disk check recovered, and folders of FrontPage."""

SYSTEM_FILES = frozenset({"desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "thumbs.db"})
"""Names of files of operating systems, in lower case. Hidden files are not listed."""

OUTPUT_MARKER = ".camkd"
"""Name of an empty file that marks a folder of images that camkd wrote and that has no other marker."""

OWN_FOLDERS = (
    ("config.yaml", "environment.json"),
    ("model.json", "model.safetensors"),
    ("dataset.json", "train_images.npy"),
    ("page.json", "index.html"),
    (OUTPUT_MARKER,),
)
"""Files that identify a run, a saved model, a cached dataset, a web page and a folder of overlays."""

FIGURES = "figures"
"""Name of the folder of figures in a run folder."""


def is_system_name(name: str) -> bool:
    """Return whether a folder or file of this name belongs to the operating system or a tool.

    Hidden names start with a dot, such as the names ``._*`` of AppleDouble files. Upper and lower case are equal.

    Args:
        name: Name without the path.

    Example:
        >>> [is_system_name(name) for name in ("@eaDir", ".git", "._cat.jpg", "cat")]
        [True, True, True, False]
    """
    lower_name = name.strip().lower()
    is_system_folder = lower_name in SYSTEM_FOLDERS or SYSTEM_PATTERN.fullmatch(lower_name) is not None
    return name.startswith(".") or is_system_folder or name.lower() in SYSTEM_FILES


def is_own_folder(folder: str | Path) -> bool:
    """Return whether camkd wrote a folder. Such a folder is identified by the names of its files.

    The figures of a run are also identified by the run folder around them, which may be the folder of images itself.

    Args:
        folder: The folder.
    """
    parent, name = os.path.split(folder)
    if name == FIGURES and _has_files(parent, OWN_FOLDERS[0]):
        return True
    return any(_has_files(folder, names) for names in OWN_FOLDERS)


def _has_files(folder: str | Path, names: tuple[str, ...]) -> bool:
    return all(os.path.exists(os.path.join(folder, name)) for name in names)
