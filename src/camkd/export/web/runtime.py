"""The three files of onnxruntime-web (MIT licence) that a page needs: from npm, once, or from a folder.

They are 14 MB, so they do not come with camkd. The version is pinned, and every file has to have the checksum it had
when the page was tested with it, wherever it comes from.
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
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The sha512 of the package, as the registry states it."""

FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files in its folder ``dist``, with their sha256."""


def runtime_files(folder: Path | None) -> list[Path]:
    """The files of ``FILES`` in ``folder`` (or ``dist`` in it); without a folder from the cache, or else by npm.

    Raises ``InputError`` where they are not there, not what they have to be, or npm cannot bring them.
    """
    if folder is None:
        folder = cache_folder() / "runtime" / PACKAGE
        if not _whole(folder):
            _fetch(folder)
        return [folder / name for name in FILES]
    for place in (folder, folder / "dist", folder / "package" / "dist"):
        if _whole(place):
            return [place / name for name in FILES]
    raise InputError(
        f"{str(folder)!r} has not the files of {PACKAGE}, {', '.join(FILES)}, unchanged: "
        f"unpack what 'npm pack {PACKAGE}' brings and name its folder."
    )


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() and sha256_of(folder / name) == known for name, known in FILES.items())


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"the page needs {PACKAGE}, which npm brings, and npm is not here: install Node.js, or run "
            f"'npm pack {PACKAGE}' elsewhere, unpack it and give --runtime its folder."
        )
    with TemporaryDirectory() as download:
        command = [npm, "pack", PACKAGE, "--ignore-scripts", "--pack-destination", download]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(download).glob("*.tgz"))
        if done.returncode or not archives:
            reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no reason given")
            raise InputError(
                f"npm could not bring {PACKAGE} ({reason.strip()}): try again, or unpack it from elsewhere and give "
                "--runtime its folder."
            )
        unpack(archives[0], folder)


def unpack(archive: Path, folder: Path) -> None:
    """Put the files of ``FILES`` from the package ``archive`` into ``folder``, if it is the package that is pinned."""
    if b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != INTEGRITY:
        raise InputError(f"what npm brought is not {PACKAGE} (its sha512 differs): try again with another registry.")
    with commit_dir(folder) as temporary, tarfile.open(archive) as package:
        for name in FILES:
            source = package.extractfile(f"package/dist/{name}")
            assert source is not None, name
            (temporary / name).write_bytes(source.read())
