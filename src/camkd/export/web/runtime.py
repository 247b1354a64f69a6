"""Files of onnxruntime-web (MIT license) for the page, downloaded by npm or taken from a folder.

The three files take 14 MB in total and are not part of camkd. The version is pinned, and the checksum of every file is
verified.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory

from camkd.data.dataset import cache_folder
from camkd.types import InputError
from camkd.utils.files import commit_dir, sha256_of

PACKAGE = "onnxruntime-web@1.30.0"

PACKAGE_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 digest of the package in base64, as in the npm registry."""

FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 digests of the used files in the folder ``dist`` of the package."""


def runtime_files(folder: Path | None) -> list[Path]:
    """Return the paths of the files in `FILES`.

    Args:
        folder: Folder with the files, directly or in ``dist`` or ``package/dist``. None: the cache folder, into which
            npm downloads missing files.

    Returns:
        The paths, in the order of `FILES`.

    Raises:
        InputError: If a file is missing or changed, or npm fails.

    Example:
        >>> [path.name for path in runtime_files(None)]                        # doctest: +SKIP
        ['ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm']
    """
    if folder is None:
        folder = cache_folder() / "runtime" / PACKAGE
        if not _is_complete(folder):
            _download(folder)
        return [folder / name for name in FILES]
    for candidate in (folder, folder / "dist", folder / "package" / "dist"):
        if _is_complete(candidate):
            return [candidate / name for name in FILES]
    raise InputError(
        f"--runtime must be a folder with the unchanged files of {PACKAGE} ({', '.join(FILES)}), got {str(folder)!r}. "
        f"Run 'npm pack {PACKAGE}', unpack the archive and give its folder."
    )


def _is_complete(folder: Path) -> bool:
    """Return whether a folder has all files with the expected digests."""
    return all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in FILES.items())


def _download(folder: Path) -> None:
    """Download the package by npm and extract the files into ``folder``."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"npm must be installed to download {PACKAGE}, got no npm. Install Node.js, or run 'npm pack {PACKAGE}' on "
            "another machine, unpack the archive and give its folder as --runtime."
        )
    with TemporaryDirectory() as download:
        command = [npm, "pack", PACKAGE, "--ignore-scripts", "--pack-destination", download]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(download).glob("*.tgz"))
        if process.returncode or not archives:
            errors = (line.strip() for line in process.stderr.splitlines() if "error" in line.lower())
            reason = next(errors, "no error message")
            raise InputError(
                f"npm must download {PACKAGE}, got: {reason}. Try again, or download the archive on another machine, "
                "unpack it and give its folder as --runtime."
            )
        extract_runtime(archives[0], folder)


def extract_runtime(archive: Path, folder: Path) -> None:
    """Extract the files in `FILES` from the npm archive into ``folder``.

    Args:
        archive: The ``.tgz`` archive.
        folder: The folder for the files.

    Raises:
        InputError: If the archive is not the pinned package.
    """
    digest = b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != PACKAGE_SHA512:
        raise InputError(
            f"the npm package must be {PACKAGE} with sha512 {PACKAGE_SHA512}, got {digest}. Try another registry."
        )
    with commit_dir(folder) as temporary, tarfile.open(archive) as package:
        for name in FILES:
            source = package.extractfile(f"package/dist/{name}")
            assert source is not None, name
            (temporary / name).write_bytes(source.read())
