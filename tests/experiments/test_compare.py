"""Comparisons: runs equal those of single commands, in one process or several, and resume."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from camkd.cli.main import main
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data.dataset import Dataset, no_progress
from camkd.data.sources import open_dataset
from camkd.distill.cache import list_stores
from camkd.distill.teacher import load_teacher
from camkd.experiments import compare, pipeline
from camkd.experiments.compare import Plan, collect, parse_methods, prepare, run_missing, slug, workers
from camkd.report.comparison_report import tables, write_comparison
from camkd.report.comparison_stats import Comparison
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.types import InputError, Interrupted
from camkd.utils.files import write_text
from support.interrupt import InterruptAt, Messages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

TRAIN = TrainConfig(epochs=1, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)
METHODS = ("plain", "kd", "ce=0.1+cam=1:pool=2")


def train_teacher(folder: Path, data_config: DataConfig, train: TrainConfig = TRAIN) -> None:
    config = RunConfig(data_config, train, model="resnet8", role="teacher")
    pipeline.train_run(folder, config, open_dataset(data_config))


@pytest.fixture(scope="module")
def teacher(easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 teacher run on `easy_folder`."""
    folder = tmp_path_factory.mktemp("teachers") / "resnet8"
    train_teacher(folder, DataConfig(data=str(easy_folder)))
    return folder


def make_plan(folder: Path, teacher: Path, easy_folder: Path) -> Plan:
    """Plan a comparison of three methods and two seeds."""
    config = RunConfig(DataConfig(data=str(easy_folder)), TRAIN, DistillConfig(str(teacher)), "resnet8")
    return Plan(folder, config, METHODS, (3, 4))


@pytest.fixture
def plan(teacher: Path, easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A new comparison with an empty teacher cache."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return make_plan(tmp_path / "out", teacher, easy_folder)


@pytest.fixture(scope="module")
def finished_plan(teacher: Path, easy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A finished comparison, made in one process. Tests only read it."""
    folder = tmp_path_factory.mktemp("comparison")
    plan = make_plan(folder / "out", teacher, easy_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMKD_CACHE", str(folder / "cache"))
        run(plan, open_dataset(plan.config.data))
    return plan


@pytest.fixture
def data(plan: Plan) -> Dataset:
    return open_dataset(plan.config.data)


def results(plan: Plan) -> dict[tuple[str, int], Any]:
    """Return the metrics of every run without times, and the checksum of its weights."""
    results_by_run = {}
    for method, seed in plan.runs:
        run = plan.run_folder(method, seed)
        metrics = {k: v for k, v in run.read_metrics().items() if k not in ("seconds", "images_per_second")}
        results_by_run[method, seed] = metrics, json.loads((run.folder / "model.json").read_text())["sha256"]
    return results_by_run


def run(plan: Plan, data: Dataset, processes: int = 1, callback: Callback | None = None) -> Comparison:
    plan = prepare(plan, data, resume=True, callback=Callback())
    assert run_missing(plan, data, processes, callback or Callback(), no_progress) == {}
    return collect(plan)


def with_config(plan: Plan, **changes: Any) -> Plan:
    return replace(plan, config=replace(plan.config, **changes))


def with_train(plan: Plan, **changes: Any) -> Plan:
    return with_config(plan, train=replace(plan.config.train, **changes))


def test_runs_equal_those_of_single_commands(finished_plan: Plan, tmp_path: Path) -> None:
    plan = finished_plan
    data = open_dataset(plan.config.data)
    assert [(arm.method, sorted(arm.runs)) for arm in collect(plan).arms] == [(method, [3, 4]) for method in METHODS]
    teacher = load_teacher(plan.teacher, data, "cpu")
    for method, seed in (*((method, 3) for method in METHODS), ("kd", 4)):
        single = replace(plan.config, train=replace(TRAIN, seed=seed), distill=DistillConfig(str(plan.teacher), method))
        teacher_with_cache, config = pipeline.prepare_teacher(teacher, single)
        folder = tmp_path / f"{slug(method)}-{seed}"
        metrics = pipeline.train_run(folder, config, data, teacher_with_cache)
        run = plan.run_folder(method, seed)
        assert run.read_metrics()["accuracy"] == metrics["accuracy"]
        assert run.read_metrics()["teacher_agreement"] == metrics["teacher_agreement"]
        checksums = [json.loads((path / "model.json").read_text())["sha256"] for path in (run.folder, folder)]
        assert checksums[0] == checksums[1]


def test_teacher_outputs_are_computed_once_and_first(
    plan: Plan, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    precompute = compare.precompute
    train_run = pipeline.train_run

    def recorded_precompute(*arguments: Any) -> Any:
        calls.append("precompute")
        return precompute(*arguments)

    def recorded_train_run(*arguments: Any, **options: Any) -> Any:
        calls.append("run")
        return train_run(*arguments, **options)

    monkeypatch.setattr(compare, "precompute", recorded_precompute)
    monkeypatch.setattr(pipeline, "train_run", recorded_train_run)
    run(replace(plan, seeds=(3,)), data)
    assert calls == ["precompute", "run", "run", "run"]
    assert len(list_stores()) == 1


def test_several_processes_make_the_same_runs(plan: Plan, data: Dataset, finished_plan: Plan) -> None:
    messages = Messages()
    comparison = run(plan, data, 2, messages)
    assert results(plan) == results(finished_plan)
    assert len(comparison.arms[0].runs) == 2
    assert messages.texts[-1].endswith("6 of 6 runs are finished")


def test_interrupted_comparison_resumes_to_the_same_results(plan: Plan, data: Dataset, finished_plan: Plan) -> None:
    with pytest.raises(Interrupted):
        run(plan, data, callback=InterruptAt(6))
    assert len(plan.missing()) == 5, "the first run was finished, the second had started"
    assert plan.run_folder(*plan.runs[1]).checkpoints
    run(plan, data)
    assert not plan.missing()
    assert results(plan) == results(finished_plan)


def test_methods_and_seeds_can_be_added(plan: Plan, data: Dataset) -> None:
    run(replace(plan, methods=METHODS[:1], seeds=(3,)), data)
    modified = plan.run_folder("plain", 3).metrics_file.stat().st_mtime_ns
    comparison = run(replace(plan, methods=METHODS[:2]), data)
    assert plan.run_folder("plain", 3).metrics_file.stat().st_mtime_ns == modified
    assert [len(arm.runs) for arm in comparison.arms] == [2, 2]
    comparison = run(replace(plan, methods=METHODS[1:2], seeds=(3,)), data)
    assert [(arm.method, sorted(arm.runs)) for arm in comparison.arms] == [("plain", [3, 4]), ("kd", [3, 4])]
    assert [(difference.method, difference.reference) for difference in comparison.differences()] == [("kd", "plain")]


def test_budget_limits_the_augmented_epochs_of_every_method(plan: Plan, data: Dataset) -> None:
    epoch_bytes = len(data.train) * (8 + 2 * 3 * 4 * 4)
    distill = replace(plan.config.distill, cache_budget=f"{epoch_bytes / 1000}kB")
    plan = with_config(plan, train=replace(TRAIN, epochs=2), distill=distill)
    comparison = run(replace(plan, methods=("plain", "kd"), seeds=(0,)), data)
    assert [arm.runs[0]["augment_epochs"] for arm in comparison.arms] == [1, 1]


def _die(*arguments: Any) -> None:
    os._exit(9)


def test_dead_worker_is_reported(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", _die)
    with pytest.raises(ChildProcessError, match="ended unexpectedly"):
        list(workers._iter_parallel(plan, plan.runs, 2, Callback()))


def test_error_of_a_worker_is_raised(plan: Plan) -> None:
    broken = with_config(plan, distill=DistillConfig(str(plan.folder / "nowhere")))
    with pytest.raises(InputError, match="nowhere"):
        list(workers._iter_parallel(broken, plan.runs[:1], 2, Callback()))


# --- the folder


def test_resumed_comparison_has_the_same_settings(plan: Plan, data: Dataset) -> None:
    def resume(plan: Plan) -> Plan:
        return prepare(plan, data, resume=True, callback=Callback())

    resolved = prepare(plan, data, resume=False, callback=Callback())
    assert resume(replace(plan, methods=("plain",), seeds=(9,))).config == resolved.config
    assert resume(with_train(plan, figure_every=7, seed=5)).config.train.figure_every == 7
    assert resume(replace(plan, threads=7)).threads == resolved.threads
    with pytest.raises(InputError, match=r"holds a comparison.*--resume"):
        prepare(plan, data, resume=False, callback=Callback())
    with pytest.raises(InputError, match=r"lr must be 0.4.*got 0.2"):
        resume(with_train(plan, lr=0.2))
    with pytest.raises(InputError, match="student must be resnet8"):
        resume(with_config(plan, model="cam-net"))
    with pytest.raises(InputError, match="The images must be those that"):
        prepare(plan, replace(data, fingerprint="0" * 64), resume=True, callback=Callback())


def test_resumed_comparison_keeps_its_precision(plan: Plan, data: Dataset) -> None:
    auto = with_train(plan, precision="auto")
    prepare(plan, data, resume=False, callback=Callback())
    assert prepare(auto, data, resume=True, callback=Callback()).config.train.precision == "fp32"


def test_replaced_teacher_is_refused(plan: Plan, data: Dataset) -> None:
    copy = Path(shutil.copytree(plan.teacher, plan.folder.parent / "teacher"))
    plan = with_config(plan, distill=DistillConfig(str(copy)))
    prepare(plan, data, resume=False, callback=Callback())
    shutil.rmtree(copy)
    train_teacher(copy, plan.config.data, replace(TRAIN, seed=8))
    with pytest.raises(InputError, match="The teacher's weights must be those that"):
        prepare(plan, data, resume=True, callback=Callback())


def test_finished_run_with_other_terms_is_refused(plan: Plan, data: Dataset) -> None:
    single = replace(plan, methods=("plain",), seeds=(3,))
    run(single, data)
    path = single.run_folder("plain", 3).folder / "environment.json"
    provenance = json.loads(path.read_text())
    write_text(path, json.dumps({**provenance, "terms": "ce=2"}))
    with pytest.raises(InputError, match=r"loss terms of the method must be .*seed-3.* got other"):
        run(single, data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.txt", "mine"),
        ("comparison.yaml", "- a list"),
        ("comparison.yaml", "a: [b"),
        ("comparison.yaml", "a: 1"),
    ],
)
def test_folder_of_something_else_is_refused(plan: Plan, data: Dataset, name: str, content: str) -> None:
    write_text(plan.folder / name, content)
    with pytest.raises(InputError, match="must be a new folder or a comparison"):
        prepare(plan, data, resume=True, callback=Callback())
    assert [path.name for path in plan.folder.iterdir()] == [name]


def test_file_instead_of_a_folder_is_refused(plan: Plan, data: Dataset) -> None:
    write_text(plan.folder, "no folder")
    with pytest.raises(InputError, match="got the file"):
        prepare(plan, data, resume=False, callback=Callback())


def test_wrong_input_leaves_no_folder(plan: Plan, data: Dataset) -> None:
    with pytest.raises(InputError, match="gone"):
        prepare(
            with_config(plan, distill=DistillConfig(str(plan.folder / "gone"))), data, resume=False, callback=Callback()
        )
    assert not plan.folder.exists()
    prepare(plan, data, resume=False, callback=Callback())


def test_diverged_run_does_not_stop_the_others(plan: Plan, data: Dataset) -> None:
    diverging = "ce=1e+39"
    mixed = prepare(replace(plan, methods=(diverging, "plain"), seeds=(3,)), data, resume=False, callback=Callback())
    failed = run_missing(mixed, data, 1, Callback(), no_progress)
    assert list(failed) == [f"{diverging}, seed 3"]
    assert "Lower --lr" in failed[f"{diverging}, seed 3"]
    assert [len(arm.runs) for arm in collect(mixed).arms] == [0, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_skipped_batches_are_reported_with_their_run(plan: Plan, data: Dataset, processes: int) -> None:
    diverging = "ce=1e+39"
    messages = Messages()
    plan = replace(with_train(plan, on_nan="skip"), methods=("plain", diverging), seeds=(3,))
    plan = prepare(plan, data, resume=False, callback=Callback())
    failed = run_missing(plan, data, processes, messages, no_progress)
    assert list(failed) == [f"{diverging}, seed 3"]
    skipped = [text for text in messages.texts if "skipped" in text]
    assert skipped == [
        f"{diverging}, seed 3: The loss must be finite, got inf in epoch 1, batch {batch}. Lower --lr. The batch is "
        "skipped."
        for batch in (1, 2, 3, 4)
    ]


def test_command_reports_finished_runs_if_one_diverges(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compare",
        "--data",
        plan.config.data.data,
        "--teacher",
        str(plan.teacher),
        "--student",
        "resnet8",
        "--json",
    ]
    arguments += ["--methods", "plain,ce=1e+39", "--seeds", "1", "--epochs", "1", "--batch-size", "24"]
    assert main([*arguments, "--out", str(plan.folder)]) == 1
    captured = capsys.readouterr()
    assert "ce=1e+39, seed 0: The loss must be finite, got inf" in captured.err
    summary = json.loads(captured.out)
    assert summary["methods"]["plain"]["accuracy"]["runs"] == 1
    assert summary["ranked_on_validation"] == ["plain"]


def test_parse_methods() -> None:
    assert parse_methods("plain, kd,ce=1+cam=1:pool=2") == ("plain", "kd", "ce=1+cam=1:pool=2")
    assert parse_methods("plain,kd=0.9+ce=0.1,ce=0.1+kd=0.9+cam=1") == ("plain", "kd", "cam-kd"), "by their names"
    assert parse_methods("ce=1.0 + cam=1: pool=2,ce=2") == ("ce=1+cam=1:pool=2", "ce=2"), "in one form"
    assert parse_methods("ce=1:label_smoothing=0+kd=1,plain", 0.1) == ("ce=1:label_smoothing=0+kd=1", "plain")
    assert parse_methods("ce=1:label_smoothing=0,plain", 0.1) == ("ce=1:label_smoothing=0", "plain"), (
        "not the same with label_smoothing"
    )
    wrong = {
        "": "got none",
        " , ": "got none",
        "kd,plain,kd": "'kd', which equals 'kd'",
        "plain,ce=1": "'ce=1', which equals 'plain'",
        "ce=1+kd=1,kd=1.0+ce=1": "which equals",
        "kd,ce=0.1+kd=0.9:T=4": "which equals 'kd'",
        "ce=0.1,kd=0.9:T=4": "ce=0.1\\+kd=0.9:T=4",
    }
    for text, message in wrong.items():
        with pytest.raises(InputError, match=message):
            parse_methods(text)


def test_slugs_are_short_and_distinct() -> None:
    methods = ["cat-kd", "cat+kd", "ce=1+cam=1:pool=2", "ce=1+cam=12"]
    methods += ["+".join(["ce=1"] * 40), "+".join(["ce=1"] * 41)]
    assert max(len(slug(method)) for method in methods) <= 100
    assert len({slug(method) for method in methods}) == len(methods)


# --- files and the command


def test_files_of_a_comparison(finished_plan: Plan, tmp_path: Path) -> None:
    plan = finished_plan
    folder = tmp_path / "page"
    comparison = collect(plan)
    data = open_dataset(plan.config.data)
    settings = {**plan.settings(data.fingerprint), "data": "<b>images</b>", "processes": 2}
    page = write_comparison(comparison, folder, settings)
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [(row["method"], int(row["seed"])) for row in rows] == [(m, s) for m in METHODS for s in (3, 4)]
    for row in rows:
        metrics = plan.run_folder(row["method"], int(row["seed"])).read_metrics()
        assert float(row["accuracy"]) == metrics["accuracy"]
        for key in (
            "cam_cosine",
            "cam_cosine_mean_map",
            "cam_cosine_center",
            "insertion_shuffled",
            "cam_disagreement_shuffled",
        ):
            assert float(row[key]) == metrics[key]
        assert float(row["cam_disagreement_shuffled"]) == metrics["cam_disagreement_shuffled"]
    summary = json.loads((folder / "comparison.json").read_text())
    assert summary["methods"]["kd"]["accuracy"]["runs"] == 2
    assert summary["methods"]["kd"]["cam_cosine_center"]["runs"] == 2
    assert summary["settings"]["student"] == "resnet8"
    html = page.read_text()
    best = summary["ranked_on_validation"][0]
    assert re.findall(r'row" class="wrap">([^<]*)</th><td class="num">2</td><td class="num highlight"', html) == [best]
    assert "&lt;b&gt;images" in html
    assert "<b>images" not in html
    assert "ce=0.1+cam=1:pool=2 − kd" in html
    center = 100 * summary["methods"]["kd"]["cam_cosine_center"]["mean"]
    assert f"<small>center {center:.1f}</small>" in html
    (_, reached, _), chance = (
        tables(comparison),
        max(level.mean for level in comparison.arms[1].chance_levels("cam_cosine").values()),
    )
    assert f"({100 * chance:.2f})" in reached[2][1][reached[1].index("CAM cosine")]
    assert not re.search(r'(src|href)="http', html)


def test_page_without_finished_runs(plan: Plan) -> None:
    page = write_comparison(collect(plan), plan.folder, {**plan.settings("0"), "processes": 1})
    assert "No run is finished yet" in page.read_text()


def test_command(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan.folder
    arguments = ["compare", "--data", plan.config.data.data, "--teacher", str(plan.teacher), "--student", "resnet8"]
    arguments += [
        "--methods",
        "plain,kd",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "24",
        "--lr",
        "0.1",
        "--out",
        str(out),
    ]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"]["kd"]["accuracy"]["runs"] == 2
    assert (out / "comparison.html").exists()
    assert Run(out / "kd" / "seed-1").finished
    assert main([*arguments, "--resume"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("kd") == 3, "three tables"
    assert "kd versus plain: " in captured.err
    assert "validation" in captured.err
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "plain,magic"], "got 'magic'"),
        (["--seeds", "0"], "seeds must be 1 or more, got 0"),
        (["--seed", "4294967295", "--seeds", "2"], "got 4294967296"),
        (
            ["--methods", "plain,reviewkd", "--batch-size", "1"],
            "batch_size must be 2 or more for reviewkd, got 1",
        ),
        (["--processes", "0"], "processes must be 1 or more, got 0"),
        (["--student", "nope"], "'nope'"),
        (["--teacher", "/nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
