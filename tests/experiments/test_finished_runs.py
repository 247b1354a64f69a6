"""Looking where a trained model looks, in picture files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import camkd
from camkd.experiments.finished_runs import explain_files
from camkd.types import InputError


def explained(source: Path, files: list[str], out: Path, **how: Any) -> dict[str, dict[str, Any]]:
    return explain_files(str(source), files, out, None, lambda *done: None, **how)


def test_explaining_files_shows_teacher_and_student(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    folder = easy_folder / "test" / "leaf"
    answers = explained(finished.folder / "student", [str(folder)], tmp_path / "cams.png")
    assert list(answers) == sorted(str(path) for path in folder.iterdir())
    assert [set(answer) for answer in answers.values()] == [{"teacher", "student"}] * 8
    assert (tmp_path / "cams.png").read_bytes().startswith(b"\x89PNG")
    alone = explained(finished.folder / "teacher", [str(folder)], tmp_path / "own.png")
    assert [set(answer) for answer in alone.values()] == [{"teacher"}] * 8
    assert [one["teacher"] for one in alone.values()] == [one["teacher"] for one in answers.values()]


def test_maps_of_files_are_those_of_the_model(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    file = next((easy_folder / "test" / "leaf").iterdir())
    answers = explained(finished.folder / "student", [str(file)], tmp_path / "maps.npz", top=3)
    x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255
    with np.load(tmp_path / "maps.npz") as found:
        for role in ("teacher", "student"):
            with torch.no_grad():
                answer = camkd.predict(camkd.load(finished.folder / role), x)
            assert answer.cams is not None
            np.testing.assert_allclose(found[f"{role}_maps"], answer.cams[:, found["shown"][0]], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found[f"{role}_probabilities"], answer.logits.softmax(1), rtol=1e-4)
            shown = answers[str(file)][role]["shown"]
            assert [place["class"] for place in shown] == [found["classes"][k] for k in found["shown"][0]]


def test_overlays_are_of_the_models_own_answer(finished: Any, easy_folder: Path, tmp_path: Path) -> None:
    answers = explained(finished.folder / "student", [str(easy_folder / "test")], tmp_path / "overlays")
    assert all(one["student"]["shown"][0]["class"] == one["student"]["class"] for one in answers.values())
    assert all(set(one) == {"student"} for one in answers.values())
    drawn = sorted(path for path in (tmp_path / "overlays").rglob("*") if path.is_file())
    assert [f"{path.relative_to(tmp_path / 'overlays')}" for path in drawn] == [
        f"{Path(path).relative_to(easy_folder / 'test')}.png" for path in answers
    ]


@pytest.mark.parametrize("top", [0, 4])
def test_more_classes_than_there_are_cannot_be_shown(finished: Any, tmp_path: Path, top: int) -> None:
    with pytest.raises(InputError, match=f"--top is {top}, but .* knows 3 classes"):
        explained(finished.folder, ["x.png"], tmp_path / "cams.png", top=top)
    assert not list(tmp_path.iterdir())
