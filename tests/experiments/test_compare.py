"""Comparing methods: the runs are those of the single commands, in one process or several, and it goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from camkd.cli.main import main
from camkd.config import DataConfig, DistillConfig, TrainConfig
from camkd.data.dataset import Dataset, no_progress
from camkd.data.sources import open_dataset
from camkd.distill.cache import list_stores
from camkd.distill.teacher import load_teacher
from camkd.experiments import compare, pipeline
from camkd.experiments.compare import Plan, collect, methods_of, prepare, run_missing, slug, workers
from camkd.report.comparison_report import tables, write_comparison
from camkd.report.comparison_stats import Comparison
from camkd.runs.folder import Run
from camkd.train.callbacks import Callback
from camkd.train.loop import Interrupted
from camkd.types import InputError
from camkd.utils.files import write_text

TRAIN = TrainConfig(epochs=1, batch_size=24, optimizer="sgd", lr=0.4, precision="fp32", device="cpu", figure_every=0)
METHODS = ("plain", "kd", "ce=0.1+cam=1:pool=2")


@pytest.fixture
def plan(easy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A comparison of three methods and two seeds, with a small trained teacher and a store of its own."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pipeline, "_draw", lambda *arguments: None)
    data_config = DataConfig(data=str(easy_folder))
    data = open_dataset(data_config)
    pipeline.train_run(tmp_path / "teacher", data, "resnet8", "teacher", (data_config, TRAIN), DistillConfig("plain"))
    return Plan(tmp_path / "out", tmp_path / "teacher", "resnet8", METHODS, (3, 4), data_config, TRAIN, DistillConfig())


@pytest.fixture
def data(plan: Plan) -> Dataset:
    return open_dataset(plan.data)


class Notes(Callback):
    """Remembers what is said, and may stop after so many steps."""

    def __init__(self, stop_at: int = 0) -> None:
        self.said: list[str] = []
        self.left = stop_at

    def note(self, text: str) -> None:
        self.said.append(text)

    def step(self, pictures: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def timeless(plan: Plan) -> dict[tuple[str, int], Any]:
    """What the runs came to, without how long they took, and their weights' checksums."""
    found = {}
    for method, seed in plan.runs:
        run = plan.place(method, seed)
        metrics = {k: v for k, v in run.read_metrics().items() if k not in ("seconds", "images_per_second")}
        found[method, seed] = metrics, json.loads((run.folder / "model.json").read_text())["sha256"]
    return found


def run(plan: Plan, data: Dataset, processes: int = 1, watch: Callback | None = None) -> Comparison:
    plan = prepare(plan, data, resume=True, watch=Callback())
    assert run_missing(plan, data, processes, watch or Callback(), no_progress) == {}
    return collect(plan)


def test_every_run_is_that_of_the_single_command(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    found = run(plan, data)
    assert [(arm.method, sorted(arm.runs)) for arm in found.arms] == [(method, [3, 4]) for method in METHODS]
    teacher = load_teacher(plan.teacher, data, "cpu")
    for method, seed in plan.runs:
        lesson, config = DistillConfig(method), replace(TRAIN, seed=seed)
        knowledge, config = pipeline.prepare_teacher_cache(teacher, data, config, lesson)
        alone = tmp_path / "alone" / slug(method) / str(seed)
        configs = (plan.data, config)
        metrics = pipeline.train_run(alone, data, "resnet8", "student", configs, lesson, teacher, knowledge)
        ours = plan.place(method, seed)
        assert ours.read_metrics()["accuracy"] == metrics["accuracy"]
        assert ours.read_metrics()["teacher_agreement"] == metrics["teacher_agreement"]
        weights = [json.loads((place / "model.json").read_text())["sha256"] for place in (ours.folder, alone)]
        assert weights[0] == weights[1]


def test_one_store_is_asked_once_and_first(plan: Plan, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fill, train_run = compare.precompute, pipeline.train_run
    monkeypatch.setattr(compare, "precompute", lambda *given: (order.append("precompute"), fill(*given))[1])
    monkeypatch.setattr(
        pipeline, "train_run", lambda *given, **more: (order.append("run"), train_run(*given, **more))[1]
    )
    run(plan, data)
    assert order == ["precompute"] + ["run"] * 6
    assert len(list_stores()) == 1


def test_several_processes_make_the_same_runs(plan: Plan, data: Dataset) -> None:
    notes = Notes()
    found = run(replace(plan, folder=plan.folder / "two"), data, 2, notes)
    run(replace(plan, folder=plan.folder / "one"), data)
    assert timeless(replace(plan, folder=plan.folder / "two")) == timeless(replace(plan, folder=plan.folder / "one"))
    assert len(found.arms[0].runs) == 2
    assert notes.said[-1].endswith("6 of 6 runs are done")


def test_it_goes_on_where_it_stopped(plan: Plan, data: Dataset) -> None:
    whole = replace(plan, folder=plan.folder.parent / "whole")
    run(whole, data)
    with pytest.raises(Interrupted):
        run(plan, data, watch=Notes(stop_at=6))
    assert len(plan.missing()) == 5, "the first run was finished, the second was on its way"
    assert plan.place(*plan.runs[1]).checkpoints
    run(plan, data)
    assert not plan.missing()
    assert timeless(plan) == timeless(whole)


def test_more_methods_and_seeds_are_added(plan: Plan, data: Dataset) -> None:
    run(replace(plan, methods=METHODS[:1], seeds=(3,)), data)
    before = plan.place("plain", 3).metrics.stat().st_mtime_ns
    found = run(plan, data)
    assert plan.place("plain", 3).metrics.stat().st_mtime_ns == before
    assert [len(arm.runs) for arm in found.arms] == [2, 2, 2]


def test_what_was_asked_for_before_stays_in_the_table(plan: Plan, data: Dataset) -> None:
    run(replace(plan, methods=METHODS[:1], seeds=(3, 4)), data)
    found = run(replace(plan, methods=METHODS[1:2], seeds=(3,)), data)
    assert [(arm.method, sorted(arm.runs)) for arm in found.arms] == [("plain", [3, 4]), ("kd", [3])]
    assert [(one.one, one.other) for one in found.differences()] == [("kd", "plain")]


def test_a_budget_brings_the_views_again_for_every_method(plan: Plan, data: Dataset) -> None:
    epoch = len(data.train) * (8 + 2 * 3 * 4 * 4)
    tight = replace(
        plan,
        methods=("plain", "kd"),
        seeds=(0,),
        train=replace(TRAIN, epochs=2),
        lesson=DistillConfig(cache_budget=f"{epoch / 1000}kB"),
    )
    found = run(tight, data)
    assert [arm.runs[0]["augment_epochs"] for arm in found.arms] == [1, 1]


def _die(*arguments: Any) -> None:
    os._exit(9)


def test_a_process_that_dies_is_said(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_serve", _die)
    with pytest.raises(ChildProcessError, match="a process of the comparison died"):
        list(workers.in_parallel(plan, plan.runs, 2, Callback()))


def test_what_is_wrong_in_a_process_is_said_here(plan: Plan) -> None:
    broken = replace(plan, teacher=plan.folder / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        list(workers.in_parallel(broken, plan.runs[:1], 2, Callback()))


# --- the folder


def test_a_folder_belongs_to_one_comparison(plan: Plan, data: Dataset) -> None:
    def again(**changes: Any) -> Plan:
        return prepare(replace(plan, **changes), data, resume=True, watch=Callback())

    settled = prepare(plan, data, resume=False, watch=Callback())
    assert again(methods=("plain",), seeds=(9,)).train == settled.train
    assert again(train=replace(TRAIN, figure_every=7, seed=5)).train.figure_every == 7
    assert again(threads=7).threads == settled.threads, "results depend on them to the bit"
    with pytest.raises(InputError, match="holds a comparison: add --resume"):
        prepare(plan, data, resume=False, watch=Callback())
    with pytest.raises(InputError, match=r"started with lr = 0.4, now it is 0.2"):
        again(train=replace(TRAIN, lr=0.2))
    with pytest.raises(InputError, match="started with student = resnet8"):
        again(student="cam-net")
    with pytest.raises(InputError, match="started with pictures"):
        prepare(plan, replace(data, fingerprint="0" * 64), resume=True, watch=Callback())


def test_it_goes_on_in_the_number_format_it_was_begun_with(plan: Plan, data: Dataset) -> None:
    auto = replace(plan, train=replace(TRAIN, precision="auto"))
    prepare(plan, data, resume=False, watch=Callback())
    assert prepare(auto, data, resume=True, watch=Callback()).train.precision == "fp32"


def test_another_teacher_at_the_same_place_is_refused(plan: Plan, data: Dataset) -> None:
    prepare(plan, data, resume=False, watch=Callback())
    shutil.rmtree(plan.teacher)
    configs = (plan.data, replace(TRAIN, seed=8))
    pipeline.train_run(plan.teacher, data, "resnet8", "teacher", configs, DistillConfig("plain"))
    with pytest.raises(InputError, match="started with teacher_weights"):
        prepare(plan, data, resume=True, watch=Callback())


def test_a_finished_run_of_another_origin_is_refused(plan: Plan, data: Dataset) -> None:
    one = replace(plan, methods=("plain",), seeds=(3,))
    run(one, data)
    place = one.place("plain", 3).folder / "environment.json"
    said = json.loads(place.read_text())
    write_text(place, json.dumps({**said, "terms": "ce=2"}))
    with pytest.raises(InputError, match="the method's terms are not those"):
        run(one, data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.txt", "mine"),
        ("comparison.yaml", "- a list"),
        ("comparison.yaml", "a: [b"),
        ("comparison.yaml", "a: 1"),
    ],
)
def test_a_folder_of_something_else_is_refused(plan: Plan, data: Dataset, name: str, content: str) -> None:
    write_text(plan.folder / name, content)
    with pytest.raises(InputError, match="holds something else than a comparison"):
        prepare(plan, data, resume=True, watch=Callback())
    assert [path.name for path in plan.folder.iterdir()] == [name]


def test_a_file_in_its_place_is_refused(plan: Plan, data: Dataset) -> None:
    write_text(plan.folder, "no folder")
    with pytest.raises(InputError, match="is a file"):
        prepare(plan, data, resume=False, watch=Callback())


def test_wrong_input_leaves_the_folder_free(plan: Plan, data: Dataset) -> None:
    with pytest.raises(InputError, match="gone"):
        prepare(replace(plan, teacher=plan.folder / "gone"), data, resume=False, watch=Callback())
    assert not plan.folder.exists()
    prepare(plan, data, resume=False, watch=Callback())


def test_a_run_that_diverges_is_named_and_the_others_go_on(plan: Plan, data: Dataset) -> None:
    wild = "ce=1e+39"
    mixed = prepare(replace(plan, methods=(wild, "plain"), seeds=(3,)), data, resume=False, watch=Callback())
    failed = run_missing(mixed, data, 1, Callback(), no_progress)
    assert list(failed) == [f"{wild}, seed 3"]
    assert "lower --lr" in failed[f"{wild}, seed 3"]
    assert [len(arm.runs) for arm in collect(mixed).arms] == [0, 1]


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_that_are_passed_over_are_said_with_the_name_of_their_run(
    plan: Plan, data: Dataset, processes: int
) -> None:
    wild, notes = "ce=1e+39", Notes()
    plan = replace(plan, methods=("plain", wild), seeds=(3,), train=replace(TRAIN, on_nan="skip"))
    failed = run_missing(prepare(plan, data, resume=False, watch=Callback()), data, processes, notes, no_progress)
    assert list(failed) == [f"{wild}, seed 3"]
    said = [note for note in notes.said if "passed over" in note]
    assert said == [
        f"{wild}, seed 3: the loss is inf in epoch 1, batch {batch}: lower --lr; the batch is passed over"
        for batch in (1, 2, 3, 4)
    ]


def test_the_command_prints_what_there_is_where_a_run_diverges(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--data", plan.data.data, "--teacher", str(plan.teacher), "--student", "resnet8", "--json"]
    arguments += ["--methods", "plain,ce=1e+39", "--seeds", "1", "--epochs", "1", "--batch-size", "24"]
    assert main([*arguments, "--out", str(plan.folder)]) == 1
    said = capsys.readouterr()
    assert said.err.endswith("ce=1e+39, seed 0: the loss is inf in epoch 1, batch 1: lower --lr.\n")
    found = json.loads(said.out)
    assert found["methods"]["plain"]["accuracy"]["runs"] == 1
    assert found["ranked_on_validation"] == ["plain"]


def test_methods_are_separated_by_commas_and_terms_by_plus() -> None:
    assert methods_of("plain, kd,ce=1+cam=1:pool=2") == ("plain", "kd", "ce=1+cam=1:pool=2")
    assert methods_of("plain,kd=0.9+ce=0.1,ce=0.1+kd=0.9+cam=1") == ("plain", "kd", "cam-kd"), "by their names"
    assert methods_of("ce=1.0 + cam=1: pool=2,ce=2") == ("ce=1+cam=1:pool=2", "ce=2"), "in one form"
    assert methods_of("ce=1:label_smoothing=0+kd=1,plain", 0.1) == ("ce=1:label_smoothing=0+kd=1", "plain")
    assert methods_of("ce=1:label_smoothing=0,plain", 0.1) == ("ce=1:label_smoothing=0", "plain"), (
        "not the same with label_smoothing"
    )
    wrong = {
        "": "needs methods",
        " , ": "needs methods",
        "kd,plain,kd": "'kd' is the same method as 'kd'",
        "plain,ce=1": "'ce=1' is the same method as 'plain'",
        "ce=1+kd=1,kd=1.0+ce=1": "is the same method as",
        "kd,ce=0.1+kd=0.9:T=4": "is the same method as 'kd'",
        "ce=0.1,kd=0.9:T=4": "write the sum as ce=0.1\\+kd=0.9:T=4",
    }
    for text, said in wrong.items():
        with pytest.raises(InputError, match=said):
            methods_of(text)


def test_slugs_of_different_methods_differ() -> None:
    methods = ["cat-kd", "cat+kd", "ce=1+cam=1:pool=2", "ce=1+cam=12"]
    methods += ["+".join(["ce=1"] * 40), "+".join(["ce=1"] * 41)]
    assert max(len(slug(method)) for method in methods) <= 100
    assert len({slug(method) for method in methods}) == len(methods)


# --- files and the command


def test_the_files(plan: Plan, data: Dataset) -> None:
    found = run(plan, data)
    settings = {**plan.settings(data.fingerprint), "data": "<b>pictures</b>", "processes": 2}
    page = write_comparison(found, plan.folder, settings)
    rows = list(csv.DictReader((plan.folder / "comparison.csv").read_text().splitlines()))
    assert [(row["method"], int(row["seed"])) for row in rows] == [(m, s) for m in METHODS for s in (3, 4)]
    for row in rows:
        metrics = plan.place(row["method"], int(row["seed"])).read_metrics()
        assert float(row["accuracy"]) == metrics["accuracy"]
        for key in ("cam_cosine", "cam_cosine_shuffled", "cam_cosine_centre", "insertion_shuffled"):
            assert float(row[key]) == metrics[key]
    said = json.loads((plan.folder / "comparison.json").read_text())
    assert said["methods"]["kd"]["accuracy"]["runs"] == 2
    assert said["methods"]["kd"]["cam_cosine_centre"]["runs"] == 2
    assert said["settings"]["student"] == "resnet8"
    html = page.read_text()
    best = said["ranked_on_validation"][0]
    assert re.findall(r'row" class="wrap">([^<]*)</th><td class="num">2</td><td class="num mine"', html) == [best]
    assert "&lt;b&gt;pictures" in html
    assert "<b>pictures" not in html
    assert "ce=0.1+cam=1:pool=2 − kd" in html
    centre = 100 * said["methods"]["kd"]["cam_cosine_centre"]["mean"]
    assert f"<small>centre {centre:.1f}</small>" in html
    (reached, _), chance = tables(found), max(level.mean for level in found.arms[1].levels("cam_cosine").values())
    assert f"({100 * chance:.2f})" in reached[2][1][reached[1].index("CAM cosine")]
    assert not re.search(r'(src|href)="http', html)


def test_a_comparison_that_has_only_begun_has_a_page_too(plan: Plan) -> None:
    page = write_comparison(collect(plan), plan.folder, {**plan.settings("0"), "processes": 1})
    assert "No run is finished yet" in page.read_text()


def test_the_command(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    out = plan.folder
    arguments = ["compare", "--data", plan.data.data, "--teacher", str(plan.teacher), "--student", "resnet8"]
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
    found = json.loads(capsys.readouterr().out)
    assert found["methods"]["kd"]["accuracy"]["runs"] == 2
    assert (out / "comparison.html").exists()
    assert Run(out / "kd" / "seed-1").finished
    assert main([*arguments, "--resume"]) == 0
    said = capsys.readouterr()
    assert said.out.count("kd") == 2, "two tables"
    assert "kd and plain: " in said.err
    assert "validation pictures" in said.err
    assert main(arguments) == 2
    assert "add --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "plain,magic"], "got 'magic'"),
        (["--seeds", "0"], "seeds is 0"),
        (["--seed", "4294967295", "--seeds", "2"], "seed is 4294967296"),
        (
            ["--methods", "plain,reviewkd", "--batch-size", "1"],
            "reviewkd needs several pictures in a batch: give a --batch-size",
        ),
        (["--processes", "0"], "processes is 0"),
        (["--student", "nope"], "'nope'"),
        (["--teacher", "/nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_named_before_any_work(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
