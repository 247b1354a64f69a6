"""``camkd export``: the files, checked, measured and described, all of them or none."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from torch import nn

from camkd.data.dataset import Dataset
from camkd.experiments.finished_runs import matching_teacher, open_model_data
from camkd.explain.explain import example_rows
from camkd.export import checks
from camkd.export.benchmark import latency
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_graph
from camkd.export.sessions import check_installed
from camkd.export.web import site
from camkd.export.web.runtime import runtime_files
from camkd.models.card import card
from camkd.models.io import CARD_FILE, ModelInfo
from camkd.runs.folder import Run
from camkd.runs.load_model import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.files import commit_dir, write_text

FP32, INT8, TEACHER = "model.onnx", "model.int8.onnx", "teacher.onnx"
CHECKED = 64
"""Test pictures on which a written file has to answer as PyTorch does."""

SMALLEST_COSINE = 0.98
"""Likeness to the fp32 maps below which int8 is refused."""


class Reporter(Protocol):
    """Whoever is told what happens."""

    def message(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str) -> None: ...


@dataclass(frozen=True)
class ExportOptions:
    """What to export beside ``model.onnx``, and on which terms.

    Args:
        data: the pictures the model was made for (default: where its run found them).
        int8: also write model.int8.onnx, calibrated on training pictures, and say what it costs.
        max_drop: points of accuracy on test pictures that int8 may cost.
        force: write int8 whatever it costs.
        teacher: also write teacher.onnx, of this run; "" for the run that the student learnt from.
        any_size: leave the size of the pictures open, where the network allows it.
    """

    data: str | None = None
    int8: bool = False
    max_drop: float = 0.5
    force: bool = False
    teacher: str | None = None
    any_size: bool = False


def export(
    source: str, out: Path | None, web: Path | None, wishes: ExportOptions, runtime: Path | None, watch: Reporter
) -> dict[str, Any]:
    """Write the model of ``source`` to the folder ``out``, and the page that runs it to ``web``.

    Returns what was measured. Each file appears when all of them are found right: a failure leaves both folders as they
    were. Raises ``InputError`` for wrong input and for an int8 that costs too much, ``FloatingPointError`` where a file
    does not answer as PyTorch does.
    """
    check_installed()
    if not 0 <= wishes.max_drop <= 100:
        raise InputError(f"max_drop is {wishes.max_drop}, but has to be between 0 and 100 points: give such a number.")
    said, model = read_model_info(source), load(source)
    teacher = matching_teacher(said, wishes.teacher or None)
    if wishes.teacher is not None and teacher is None:
        raise InputError(f"the teacher of {source!r} is not here: give --teacher its run, or leave it out.")
    if web:
        site.check_folder(web)
    parts = runtime_files(runtime) if web else None
    pictures = open_model_data(source, wishes.data, watch.progress)
    with ExitStack() as stack:
        folder = stack.enter_context(commit_dir(out)) if out else Path(stack.enter_context(TemporaryDirectory()))
        found: dict[str, Any] = {"model": _checked(model, said, folder / FP32, pictures, wishes.any_size, watch)}
        if wishes.int8:
            found["int8"] = _int8(folder, pictures, wishes, watch)
        if teacher and out and wishes.teacher is not None:
            found["teacher"] = _checked(
                load(teacher), read_model_info(teacher), folder / TEACHER, pictures, False, watch
            )
        figures = Run(find_model_folder(source)).read_metrics()
        write_text(folder / CARD_FILE, card(asdict(said.portable()), figures, "onnx", measured(found)))
        if web:
            assert parts is not None
            file = folder / (INT8 if wishes.int8 else FP32)
            site.build(stack.enter_context(commit_dir(web)), file, source, teacher, pictures, parts)
    return found


def default_export_folder(source: str) -> Path:
    """Where the export of ``source`` goes that is given no place: its own folder; under runs/ for a shipped model."""
    return Path(source if Path(source).is_dir() else Path("runs", source), "export")


def measured(found: dict[str, Any]) -> str:
    """What an export measured, as a table for the model card."""
    rows = [
        f"| `{part['file']}` | {part['bytes']:,} | {part['largest_difference']['logits']:.1g} |"
        for part in found.values()
        if "largest_difference" in part
    ]
    text = "\n| file | bytes | largest difference to PyTorch |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    if cost := found.get("int8"):
        text += (
            f"\n| on {cost['test_images']:,} test pictures | fp32 | int8 |\n|---|---|---|\n"
            f"| accuracy | {cost['before']:.2%} | {cost['after']:.2%} |\n"
            f"| same answer, likeness of maps (cosine) | | {cost['agreement']:.2%}, {cost['cam_cosine']:.4f} |\n"
            f"| bytes | {found['model']['bytes']:,} | {cost['bytes']:,} |\n"
            f"| median latency of one picture on one thread, where it was exported | "
            f"{1e3 * cost['latency_before']:.2f} ms | {1e3 * cost['latency']:.2f} ms |\n"
        )
    return text


def _checked(
    model: nn.Module, said: ModelInfo, path: Path, pictures: Dataset, any_size: bool, watch: Reporter
) -> dict[str, Any]:
    watch.message(f"{path.name}: tracing")
    write_graph(model, said, path, any_size=any_size)
    images = pictures.test.images[example_rows(pictures.test, CHECKED)]
    differences = checks.compare(model, path, images)
    if any_size:
        try:
            checks.compare(model, path, checks.widened(images))
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's own have no other class in common
            raise InputError("the file of this network takes pictures of one size: leave out --any-size.") from error
    size = path.stat().st_size
    watch.message(
        f"{path.name}: {size:,} bytes; largest difference to PyTorch on {len(images)} test pictures: "
        f"logits {differences.logits:.1e}, cam {differences.cam:.1e}"
    )
    return {"file": path.name, "bytes": size, "largest_difference": differences._asdict()}


def _int8(folder: Path, pictures: Dataset, wishes: ExportOptions, watch: Reporter) -> dict[str, Any]:
    watch.message(f"{INT8}: calibrating and measuring")
    write_int8(folder / FP32, folder / INT8, pictures.train)
    toll = checks.measure_int8(folder / FP32, folder / INT8, pictures.test)
    said = (
        f"accuracy {toll.before:.2%} in fp32, {toll.after:.2%} in int8; likeness of their maps {toll.cam_cosine:.4f} "
        f"on {len(pictures.test):,} test pictures"
    )
    drop = 100 * (toll.before - toll.after)
    if (drop > wishes.max_drop or toll.cam_cosine < SMALLEST_COSINE) and not wishes.force:
        raise InputError(
            f"int8 may cost {wishes.max_drop:g} points and its maps have to be {SMALLEST_COSINE} like those in fp32, "
            f"but there is {said}: leave out --int8, raise --max-drop, or add --force."
        )
    before, after = latency([folder / FP32, folder / INT8], pictures.test.images[:1])
    size = (folder / INT8).stat().st_size
    watch.message(f"{INT8}: {size:,} bytes; {said}; {1e3 * before:.2f} ms and {1e3 * after:.2f} ms a picture")
    times = {"latency_before": before, "latency": after}
    return {"file": INT8, "bytes": size, "test_images": len(pictures.test), **toll._asdict(), **times}
