"""What the tests of exported files share: one export of a trained student, and the runtime of the page."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from camkd.cli.main import main
from camkd.export.web.runtime import runtime_files
from camkd.types import InputError
from conftest import Finished


class Exported(NamedTuple):
    """An export with everything: the run it is of, the folder, the page, and what `--json` printed."""

    run: Path
    folder: Path
    page: Path
    found: dict[str, Any]


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The folder of onnxruntime-web; skips where npm cannot bring it."""
    pytest.importorskip("onnxruntime")
    try:
        return runtime_files(None)[0].parent
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def exported(finished: Finished, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`camkd export` of the student of `finished`, with int8, teacher and page; tests only read it."""
    root, out = tmp_path_factory.mktemp("exported"), io.StringIO()
    run, folder, page = finished.folder / "student", root / "files", root / "page"
    command = ["export", str(run), "--out", str(folder), "--int8", "--force", "--teacher"]
    with contextlib.redirect_stdout(out):
        assert main([*command, "--web", str(page), "--runtime", str(runtime), "--json"]) == 0
    return Exported(run, folder, page, json.loads(out.getvalue()))
