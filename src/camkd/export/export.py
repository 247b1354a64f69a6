"""Workflow of ``camkd export``: write, compare, measure and describe the files of a model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from torch import nn

from camkd.config import AUTO
from camkd.data.dataset import Dataset
from camkd.data.files import BadImages
from camkd.distill.teacher import choose_teacher
from camkd.experiments.finished_runs import open_model_data
from camkd.explain.explain import example_rows
from camkd.export import checks
from camkd.export.benchmark import median_latencies
from camkd.export.int8 import write_int8
from camkd.export.onnx_graph import write_onnx
from camkd.export.sessions import check_installed
from camkd.export.web import site
from camkd.export.web.runtime import runtime_files
from camkd.models.card import render_card
from camkd.models.io import CARD_FILE, ModelInfo
from camkd.runs.folder import Run
from camkd.runs.loading import find_model_folder, load, read_model_info
from camkd.types import InputError
from camkd.utils.files import commit_dir, write_text

FP32, INT8, TEACHER = "model.onnx", "model.int8.onnx", "teacher.onnx"
"""Names of the exported files."""

NUM_CHECKED_IMAGES = 64
"""Number of test images on which an fp32 file is compared with PyTorch."""

MIN_CAM_COSINE = 0.98
"""Smallest allowed mean cosine similarity of the int8 maps to the fp32 maps."""


class Reporter(Protocol):
    """Receiver of progress and messages, such as `camkd.cli.progress.ProgressReporter`."""

    def message(self, text: str, /) -> None:
        """Show a line of text."""

    def progress(self, done: int, total: int, description: str, /) -> None:
        """Show that ``done`` of ``total`` steps are complete."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Args:
        data: Images of the model's dataset. None: the images of its run.
        bad_images: Treatment of unreadable images of a folder. None: as in the training.
        int8: Whether to write ``model.int8.onnx`` too, calibrated on training images, and measure its accuracy.
        max_drop: Largest allowed loss of test accuracy by int8, in percentage points.
        force: Whether to write the int8 model at any loss of accuracy and any similarity of the maps.
        teacher: Run of a teacher to write as ``teacher.onnx``. ``auto``: the recorded teacher. None: no file.
        any_size: Whether to export for images of any size, if the network allows it.
    """

    data: str | None = None
    bad_images: BadImages | None = None
    int8: bool = False
    max_drop: float = 0.5
    force: bool = False
    teacher: str | None = None
    any_size: bool = False


def export(
    source: str, out: Path | None, web: Path | None, options: ExportOptions, runtime: Path | None, reporter: Reporter
) -> dict[str, Any]:
    """Write a model as ONNX, and a web page that runs it.

    The fp32 files are compared with PyTorch, and the int8 file with the fp32 file, on test images before they are kept.
    If writing or comparing a file fails, both folders are unchanged. The page shows the maps of the teacher for its
    examples if there is a teacher, whether or not ``options.teacher`` is set.

    Args:
        source: A run folder or the name of a shipped model.
        out: Folder for the ONNX files and the model card, or None.
        web: Folder for the web page, or None.
        options: Optional files and limits.
        runtime: Folder with the files of onnxruntime-web. None: the files are downloaded by npm.
        reporter: Reporter that receives progress and messages.

    Returns:
        Name, size in bytes and measurements of each ONNX file, under the keys ``model``, ``int8`` and ``teacher``.

    Raises:
        InputError: If an argument is invalid, the network cannot be exported, or the int8 model fails the limits of
            accuracy and map similarity.
        FloatingPointError: If an fp32 file differs from PyTorch.

    Example:
        >>> with ProgressReporter() as reporter:                                              # doctest: +SKIP
        ...     export("cam-net-cifar10", Path("out"), None, ExportOptions(int8=True), None, reporter)
    """
    check_installed()
    if not 0 <= options.max_drop <= 100:
        raise InputError(
            f"max_drop must be between 0 and 100 percentage points, got {options.max_drop}. Choose another value."
        )
    info = read_model_info(source)
    model = load(source)
    teacher = choose_teacher(info, source, None if options.teacher == AUTO else options.teacher, reporter.message)
    if options.teacher is not None and teacher is None:
        raise InputError(f"the teacher of {source!r} must exist, got none. Give --teacher its run, or leave it out.")
    if web:
        site.check_folder(web)
    runtime_paths = runtime_files(runtime) if web else []
    dataset = open_model_data(source, options.data, reporter.progress, reporter.message, options.bad_images)
    if options.data is not None or options.bad_images is not None:
        for note in dataset.notes:
            reporter.message(f"  {note}")
    with ExitStack() as stack:
        folder = stack.enter_context(commit_dir(out)) if out else Path(stack.enter_context(TemporaryDirectory()))
        results: dict[str, Any] = {
            "model": _export_fp32(model, info, folder / FP32, dataset, options.any_size, reporter)
        }
        if options.int8:
            results["int8"] = _export_int8(folder, dataset, options, reporter)
        if teacher and out and options.teacher is not None:
            teacher_info = read_model_info(teacher)
            teacher_data = dataset.at_size(teacher_info.size, teacher_info.interpolation)
            results["teacher"] = _export_fp32(
                load(teacher), teacher_info, folder / TEACHER, teacher_data, False, reporter
            )
        metrics = Run(find_model_folder(source)).read_metrics()
        card = render_card(asdict(info.portable()), metrics, "onnx", results_table(results))
        write_text(folder / CARD_FILE, card)
        if web:
            exported = folder / (INT8 if options.int8 else FP32)
            site.build(stack.enter_context(commit_dir(web)), exported, source, teacher, dataset, runtime_paths)
    return results


def default_export_folder(source: str) -> Path:
    """Return the default folder of an export: ``RUN/export``, or ``runs/NAME/export`` for a model given by name.

    Example:
        >>> default_export_folder("cam-net-cifar10").as_posix()
        'runs/cam-net-cifar10/export'
    Example:
        >>> default_export_folder("hf:me/my-birds").as_posix()
        'runs/hf-me/my-birds/export'
    """
    return Path(source if Path(source).is_dir() else Path("runs", source.replace(":", "-")), "export")


def results_table(results: dict[str, Any]) -> str:
    """Return the results of an export as Markdown tables for the model card.

    Args:
        results: Result of `export`.
    """
    rows = [
        f"| `{result['file']}` | {result['bytes']:,} | {result['largest_difference']['logits']:.1g} |"
        for result in results.values()
        if "largest_difference" in result
    ]
    text = "\n| file | bytes | largest difference to PyTorch |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    if cost := results.get("int8"):
        text += (
            f"\n| on {cost['test_images']:,} test images | fp32 | int8 |\n|---|---|---|\n"
            f"| accuracy | {cost['before']:.2%} | {cost['after']:.2%} |\n"
            f"| same predicted class, cosine similarity of the maps | | {cost['agreement']:.2%}, "
            f"{cost['cam_cosine']:.4f} |\n"
            f"| bytes | {results['model']['bytes']:,} | {cost['bytes']:,} |\n"
            f"| median latency of one image on one thread of the exporting machine | "
            f"{1e3 * cost['latency_before']:.2f} ms | {1e3 * cost['latency']:.2f} ms |\n"
        )
    return text


def _export_fp32(
    model: nn.Module, info: ModelInfo, path: Path, dataset: Dataset, any_size: bool, reporter: Reporter
) -> dict[str, Any]:
    """Write a model in fp32 and compare the file with PyTorch."""
    reporter.message(f"{path.name}: tracing")
    write_onnx(model, info, path, any_size=any_size)
    images = dataset.test.images[example_rows(dataset.test, NUM_CHECKED_IMAGES)]
    differences = checks.compare_with_pytorch(model, path, images)
    if any_size:
        try:
            checks.compare_with_pytorch(model, path, checks.enlarge(images))
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no narrower common base class
            raise InputError(
                f"--any-size must be given for a network that accepts images of any size, got {info.architecture}. "
                "Leave out --any-size."
            ) from error
    size = path.stat().st_size
    reporter.message(
        f"{path.name}: {size:,} bytes; largest difference to PyTorch on {len(images)} test images: "
        f"logits {differences.logits:.1e}, cam {differences.cam:.1e}"
    )
    return {"file": path.name, "bytes": size, "largest_difference": differences._asdict()}


def _export_int8(folder: Path, dataset: Dataset, options: ExportOptions, reporter: Reporter) -> dict[str, Any]:
    """Quantize the fp32 file in ``folder``, and measure accuracy and latency of both files."""
    reporter.message(f"{INT8}: calibrating and measuring")
    write_int8(folder / FP32, folder / INT8, dataset.train)
    cost = checks.measure_int8(folder / FP32, folder / INT8, dataset.test)
    summary = (
        f"accuracy {cost.before:.2%} in fp32 and {cost.after:.2%} in int8, cosine similarity of the maps "
        f"{cost.cam_cosine:.4f} on {len(dataset.test):,} test images"
    )
    drop = 100 * (cost.before - cost.after)
    if (drop > options.max_drop or cost.cam_cosine < MIN_CAM_COSINE) and not options.force:
        raise InputError(
            f"int8 must lose at most {options.max_drop:g} points of accuracy and keep a cosine similarity of "
            f"{MIN_CAM_COSINE} or more, got {summary}. Leave out --int8, raise --max-drop, or add --force."
        )
    latency_before, latency = median_latencies([folder / FP32, folder / INT8], dataset.test.images[:1])
    size = (folder / INT8).stat().st_size
    reporter.message(
        f"{INT8}: {size:,} bytes; {summary}; latency {1e3 * latency_before:.2f} ms in fp32 and {1e3 * latency:.2f} ms "
        "in int8"
    )
    return {
        "file": INT8,
        "bytes": size,
        "test_images": len(dataset.test),
        **cost._asdict(),
        "latency_before": latency_before,
        "latency": latency,
    }
