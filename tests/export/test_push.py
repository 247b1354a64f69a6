"""``camkd push``: the uploaded files, the model loaded from the Hub, and errors. The Hub is a local folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import camkd
from camkd.export import export as export_module
from camkd.export.web import site
from camkd.export.web.runtime import FILES
from camkd.models import build
from camkd.models.hub import check_repo_id
from camkd.models.io import INFO_FILE, save
from camkd.types import InputError
from support.cli import camkd as command
from support.hub import LocalHub
from support.model_info import INFO

MODEL_FILES = {"README.md", "metrics.json", "model.json", "model.safetensors"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder with files that must not be uploaded."""
    folder = tmp_path / "run"
    save(build("resnet8", 3, 8, seed=5), folder, INFO)
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.8125, "test_images": 1200}))
    (folder / "config.yaml").write_text("data: /home/someone/pets\nteacher: /home/someone/teacher\n")
    for name in ("checkpoints/last-00000008.pt", "figures/cams.png", "gallery.json", "per_image.npz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"private")
    return folder


def test_pushed_model_is_loaded_from_the_hub(run: Path, hub: LocalHub) -> None:
    output = command("push", str(run), "me/pets", "--json")
    assert output.status == 0
    assert hub.files("me/pets") == MODEL_FILES
    assert hub.commits == [("me/pets", "model", "Upload model", None)]
    result = json.loads(output.out)
    assert result["model"]["url"] == "https://huggingface.co/me/pets"
    assert result["model"]["files"] == {
        name: (hub.folder("me/pets") / name).stat().st_size for name in sorted(MODEL_FILES)
    }
    assert "camkd explain hf:me/pets" in output.err
    loaded = camkd.load("hf:me/pets")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(camkd.predict(loaded, x).logits, camkd.predict(camkd.load(run), x).logits)
    assert loaded.metrics == {"accuracy": 0.8125, "test_images": 1200}
    assert loaded.info is not None
    assert loaded.info.classes == INFO.classes


def test_upload_has_no_paths_of_this_machine(run: Path, hub: LocalHub) -> None:
    assert command("push", str(run), "me/pets").status == 0
    for path in hub.folder("me/pets").iterdir():
        content = path.read_bytes()
        assert b"someone" not in content
        assert b"private" not in content


def test_card_has_the_measured_accuracy_and_loads_the_model(run: Path, hub: LocalHub) -> None:
    command("push", str(run), "me/pets")
    text = (hub.folder("me/pets") / "README.md").read_text(encoding="utf-8")
    assert "| accuracy | 81.2 % |" in text
    assert 'camkd.load("hf:me/pets")' in text


def test_model_is_explained_by_its_name_on_the_hub(run: Path, hub: LocalHub, tmp_path: Path) -> None:
    from PIL import Image

    command("push", str(run), "me/pets")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    out = tmp_path / "cams.json"
    output = command("explain", "hf:me/pets", str(tmp_path / "red.png"), "--out", str(out))
    assert output.status == 0, output.err
    assert json.loads(out.read_text(encoding="utf-8"))


def test_dry_run_uploads_nothing_and_needs_no_token(run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.error = AssertionError("a request")
    output = command("push", str(run), "me/pets", "--dry-run", "--json")
    assert output.status == 0
    assert hub.commits == []
    result = json.loads(output.out)
    assert result["dry_run"] is True
    assert set(result["model"]["files"]) == MODEL_FILES
    size = result["model"]["files"]["model.safetensors"]
    assert f"{size / 1000:.1f} kB  model.safetensors" in output.err
    assert "nothing was uploaded" in output.err


@pytest.mark.parametrize(("flags", "private"), [((), False), (("--private",), True)])
def test_private_repository(run: Path, hub: LocalHub, flags: tuple[str, ...], private: bool) -> None:
    assert command("push", str(run), "me/pets", *flags).status == 0
    assert hub.private == {("me/pets", "model"): private}


def test_public_repository_is_refused_for_a_private_upload(run: Path, hub: LocalHub) -> None:
    hub.private["me/pets", "model"] = False
    output = command("push", str(run), "me/pets", "--private")
    assert output.status == 2
    assert "me/pets must be private with --private, got an existing public repository" in output.err
    assert hub.commits == []


# --- errors


@pytest.mark.parametrize(
    "name", ["pets", "me/my/pets", "/pets", "me/", "me/.pets", "me/pets.git", "me/a--b", "me/a b", "me/" + 97 * "a"]
)
def test_invalid_repository_name(name: str, run: Path, hub: LocalHub) -> None:
    output = command("push", str(run), name)
    assert output.status == 2
    assert f"REPO must be owner/name with letters, digits, '-', '_' and '.', got {name!r}" in output.err
    assert hub.commits == []


@pytest.mark.parametrize(
    "name",
    ["me/pets", "Me-2/my_pets.v1", "a/b", "me/.pets", "me/a--b", "me/a..b", "me/b.git", "me/" + 97 * "a", "pets/é"],
)
def test_repository_names_are_those_of_the_library(name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError:
        with pytest.raises(InputError, match="REPO must be owner/name"):
            check_repo_id(name)
    else:
        check_repo_id(name)


def test_missing_token(run: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    output = command("push", str(run), "me/pets")
    assert output.status == 2
    assert "must be set for an upload, got none. Run 'hf auth login', or set HF_TOKEN." in output.err
    assert hub.commits == []


def _http_error(status: int) -> Exception:
    """Return the error of the library for a response of the Hub."""
    from huggingface_hub import errors

    error = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    Exception.__init__(error, f"{status} Client Error for url: https://huggingface.co/api")
    error.response = type("Response", (), {"status_code": status})()
    return error


def _network_error() -> Exception:
    """Return the error of the library's HTTP client without a network."""
    import importlib

    from huggingface_hub.errors import HfHubHTTPError

    client = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
    error: Exception = getattr(client, "ConnectError", getattr(client, "ConnectionError", None))("no route to host")
    return error


@pytest.mark.parametrize("action", ["push", "load"])
@pytest.mark.parametrize(
    ("make_error", "message"),
    [
        (_network_error, "the Hugging Face Hub must be reachable, got: no route to host. Check the network"),
        (lambda: ConnectionError("offline mode is enabled."), "must be reachable, got: offline mode is enabled. Check"),
        (lambda: _http_error(401), "me/pets must be a repository of the Hub that the token may use, got status 401"),
        (lambda: _http_error(403), "got status 403"),
        (lambda: _http_error(404), "got status 404"),
        (lambda: _http_error(500), "the Hub must accept the request for me/pets, got: 500 Client Error"),
    ],
)
def test_error_of_the_hub_is_one_sentence(action: str, make_error: Any, message: str, run: Path, hub: LocalHub) -> None:
    hub.error = make_error()
    if action == "push":
        output = command("push", str(run), "me/pets")
        assert output.status == 2
        assert message in output.err.splitlines()[-1]
        assert hub.commits == []
    else:
        with pytest.raises(InputError) as caught:
            camkd.load("hf:me/pets")
        assert message in str(caught.value)


def test_full_disk_is_not_reported_as_the_network(run: Path, hub: LocalHub) -> None:
    hub.error = OSError(28, "No space left on device", "/cache/model.safetensors")
    output = command("push", str(run), "me/pets")
    assert output.status == 1
    assert "/cache/model.safetensors must be accessible, got: No space left on device" in output.err


@pytest.mark.parametrize("subfolder", [".", "student"])
def test_unfinished_run(run: Path, hub: LocalHub, tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(run, folder / subfolder)
    (folder / subfolder / "metrics.json").unlink()
    output = command("push", str(folder), "me/pets")
    assert output.status == 2
    assert f"RUN must be a finished run, got {folder / subfolder}, which is unfinished" in output.err
    assert hub.commits == []


def test_folder_without_a_model(hub: LocalHub, tmp_path: Path) -> None:
    output = command("push", str(tmp_path / "nowhere"), "me/pets")
    assert output.status == 2
    assert "nowhere' must be a run folder with a trained model" in output.err


def test_repository_without_a_model(hub: LocalHub) -> None:
    hub.folder("me/other").mkdir(parents=True)
    with pytest.raises(InputError, match=f"hf:me/other must be a model of camkd, got a repository without {INFO_FILE}"):
        camkd.load("hf:me/other")


def test_name_after_the_prefix_is_checked(hub: LocalHub) -> None:
    with pytest.raises(InputError, match=r"the name after hf: must be owner/name .* got 'pets'"):
        camkd.load("hf:pets")


# --- the Space


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page of the classes of `run`, with a file that is not part of it."""
    folder = tmp_path / "page"
    config = {
        "title": "resnet8 for pets: café",
        "classes": list(INFO.classes),
        "runtime": "runtime/1",
        "examples": [{"file": f"examples/{k}.png", "true_class": name} for k, name in enumerate(INFO.classes)],
    }
    static = Path(site.__file__).parent / "static"
    shutil.copytree(static, folder)
    for name in ("model.onnx", *(f"runtime/1/{name}" for name in FILES), *(e["file"] for e in config["examples"])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "page.json").write_text(json.dumps(config))
    (folder / "notes.txt").write_text("private")
    return folder


def test_page_is_uploaded_as_a_static_space(run: Path, page: Path, hub: LocalHub) -> None:
    output = command("push", str(run), "me/pets", "--space", str(page), "--private", "--json")
    assert output.status == 0, output.err
    uploaded = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()} - {"notes.txt"}
    assert hub.files("me/pets", "space") == uploaded | {"README.md"}
    assert hub.files("me/pets") == MODEL_FILES
    assert hub.private == {("me/pets", "model"): True, ("me/pets", "space"): True}
    assert hub.sdk == {"me/pets": "static"}
    assert json.loads(output.out)["space"]["url"] == "https://huggingface.co/spaces/me/pets"
    assert "3 test images as examples, of the classes Katze, 犬: or fox, bird" in output.err


def test_metadata_of_the_space(run: Path, page: Path, hub: LocalHub) -> None:
    import huggingface_hub

    command("push", str(run), "me/pets", "--space", str(page))
    path = hub.folder("me/pets", "space") / "README.md"
    card = huggingface_hub.SpaceCard.load(path)
    assert (card.data.title, card.data.sdk, card.data.app_file) == ("resnet8 for pets: café", "static", "index.html")
    assert card.data.models == ["me/pets"]
    metadata = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # those that the Hub accepts
    assert {metadata["colorFrom"], metadata["colorTo"]} <= colors
    assert "https://huggingface.co/me/pets" in card.text
    assert "3 test images" in " ".join(card.text.split())


def test_next_page_replaces_examples_and_runtime_only(run: Path, page: Path, hub: LocalHub) -> None:
    space = hub.folder("me/pets", "space")
    for name in ("examples/7.png", "runtime/0/old.wasm", "mine.txt"):
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_text(name)
    assert command("push", str(run), "me/pets", "--space", str(page)).status == 0
    assert hub.files("me/pets", "space") >= {"mine.txt", "examples/0.png"}
    assert not {"examples/7.png", "runtime/0/old.wasm"} & hub.files("me/pets", "space")


def test_space_of_another_kind_is_refused(run: Path, page: Path, hub: LocalHub) -> None:
    hub.sdk["me/pets"] = "gradio"
    output = command("push", str(run), "me/pets", "--space", str(page))
    assert output.status == 2
    assert "the Space me/pets must be static, got an existing Space of gradio" in output.err
    assert not hub.files("me/pets", "space")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: (page / "page.json").unlink(), "must be a page of camkd, got none"),
        (lambda page: (page / "examples/1.png").unlink(), "got none of the file examples/1.png"),
        (
            lambda page: (page / "page.json").write_text((page / "page.json").read_text().replace("Katze", "Hund")),
            "--space must be the page of RUN, got",
        ),
    ],
)
def test_wrong_page(change: Any, message: str, run: Path, page: Path, hub: LocalHub) -> None:
    change(page)
    output = command("push", str(run), "me/pets", "--space", str(page))
    assert output.status == 2
    assert message in output.err
    assert hub.commits == []


def test_page_is_exported_without_a_folder(
    finished: Any, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    runtime = [tmp_path / name for name in FILES]
    for path in runtime:
        path.write_text(path.name)
    monkeypatch.setattr(export_module, "runtime_files", lambda folder: runtime)
    output = command("push", str(finished.folder), "me/easy", "--space")
    assert output.status == 0, output.err
    space = hub.folder("me/easy", "space")
    assert set(site.page_files(space)) | {"README.md"} == hub.files("me/easy", "space")
    assert len(list((space / "examples").iterdir())) == 8
    assert hub.files("me/easy") == MODEL_FILES
    assert camkd.load("hf:me/easy").metrics == camkd.load(finished.folder).metrics
