"""Comparison of runs: table, page, and a verdict with its lower bound."""

import csv
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_optuna_search import build_report, write_finished_run

from sdft.apps.compare import main
from sdft.evaluation.plots.svg_charts import create_figure, label_points, plot_pareto_scatter
from sdft.sweeps.compare import (
    compare_runs,
    describe_cheapest,
    recommend_setting,
    seed_differences,
    write_runs_table,
)
from sdft.sweeps.compare_page import plot_by_option
from sdft.sweeps.jobs import Job
from sdft.sweeps.optuna_search import objective_directions
from sdft.sweeps.results import (
    FinishedRun,
    comparable_metrics,
    default_metric,
    group_by_setting,
    metric_info,
    read_finished_run,
    read_finished_runs,
)
from sdft.sweeps.sweep import run_sweep


def make_run(rank: int, seed: int, values: list[float], trainable: int | None = None) -> FinishedRun:
    """A run with one score per image."""
    score = {"value": sum(values) / len(values), "per_image": values}
    report = {
        "images": 1,
        "scorers": {},
        "groups": {"prompts": [str(i) for i in range(len(values))]},
        "sampling": {"seed": 0},
        "metrics": {"prompts": {"CLIP-I": {"number_format": "{:.3f}", "higher_is_better": True}}},
        "states": [{"label": "x", "scores": {"prompts": {"CLIP-I": value}}} for value in ({"value": 0.0}, score)],
    }
    costs = {
        "trainable": trainable or rank,
        "seconds": 9.0,
        "s/it": 1.0,
        "memory GB": 1.0,
        "file MB": 1.0,
        "validation/loss": 1.0,
    }
    return FinishedRun(ROOT, {"rank": rank, "alpha": rank, "seed": seed}, costs, 1.0, "cpu", report)


def test_runs_that_differ_only_by_seed_are_one_setting():
    runs = [make_run(rank, seed, [float(rank + seed)] * 3) for rank in (1, 2) for seed in (0, 1)]
    settings = group_by_setting(runs)
    assert [s.label for s in settings] == ["rank=1", "rank=2"]  # alpha follows rank
    assert settings[1].mean("CLIP-I") == 2.5 and settings[1].std("CLIP-I") == pytest.approx(0.5**0.5)
    assert settings[1].per_image_means("CLIP-I").tolist() == [2.5] * 3


def make_noisy_scores(level: float, step: int) -> list[float]:
    return [level + ((i * step) % 11 - 5) / 100 for i in range(24)]


def test_the_cheapest_setting_keeps_most_of_the_gain_at_the_lower_bound():
    runs = [
        make_run(r, s, make_noisy_scores(level, 37 + r))
        for r, level in {1: 0.30, 4: 0.59, 16: 0.61}.items()
        for s in (0, 1)
    ]
    best, cheapest = recommend_setting(group_by_setting(runs), "CLIP-I")
    assert best.startswith("best       rank=16: CLIP-I 0.6") and ", 2 seeds " in best
    pattern = r"cheapest   rank=4: 4x fewer trainable parameters, 9\d % of the gain \(95 % lower bound 9\d %\)"
    assert re.fullmatch(pattern, cheapest)
    assert 0.5 < group_by_setting(runs)[1].mean("CLIP-I") < 0.6
    runs = [make_run(r, 0, make_noisy_scores(level, 37)) for r, level in ((1, 0.3), (16, 0.6))]
    _, cheapest = recommend_setting(group_by_setting(runs), "CLIP-I")
    assert cheapest.startswith("cheapest   none: ") and "90 %" in cheapest and "rank=1 with 50 %" in cheapest
    assert recommend_setting(group_by_setting(runs[:1]), "CLIP-I") == []


def test_the_closest_setting_is_one_with_an_interval():
    settings = group_by_setting([make_run(rank, 0, [0.5]) for rank in (1, 4, 16)])
    best, cheaper = settings[-1], settings[:-1]
    fractions = {cheaper[0].label: (0.2, None), cheaper[1].label: (0.1, 0.0)}
    text = describe_cheapest(best, cheaper, fractions)
    assert text.startswith("none: ") and f"closest is {cheaper[1].label} with 10 %" in text


def test_a_seed_that_failed_is_not_averaged_away():
    runs = [
        make_run(r, s, make_noisy_scores(level, 37))
        for r, s, level in ((1, 0, 0.75), (1, 1, 0.40), (16, 0, 0.6), (16, 1, 0.61))
    ]
    _, cheapest = recommend_setting(group_by_setting(runs), "CLIP-I")
    assert cheapest.startswith("cheapest   none: ") and "90 %" in cheapest


def test_wide_intervals_give_no_cheapest_setting():
    """Six images with widely varying scores: indistinguishable is not equal."""
    runs = [make_run(1, 0, [0.1, 0.9, 0.6, 0.7, 0.2, 0.9]), make_run(16, 0, [0.9, 0.2, 0.8, 0.6, 0.9, 0.1])]
    assert recommend_setting(group_by_setting(runs), "CLIP-I")[1].startswith("cheapest   none: ")
    single_image_runs = [make_run(1, 0, [0.5]), make_run(16, 0, [0.6])]
    for run, loss in zip(single_image_runs, (0.8, 0.7), strict=True):
        run.costs["validation/loss"] = loss
    assert "undetermined: " in recommend_setting(group_by_setting(single_image_runs), "validation/loss")[1]


def test_a_setting_with_a_missing_score_is_not_recommended():
    runs = [
        make_run(r, s, make_noisy_scores(level, 37))
        for r, s, level in ((1, 0, 0.6), (1, 1, 0.6), (4, 0, 0.5), (4, 1, 0.5), (16, 0, 0.61))
    ]
    runs[1].report["states"][1]["scores"]["prompts"]["CLIP-I"]["value"] = None
    assert not any("rank=1:" in line for line in recommend_setting(group_by_setting(runs), "CLIP-I"))


def test_options_of_one_method_define_settings_when_they_vary():
    runs = [make_run(r, 0, make_noisy_scores(0.5, 37)) for r in (4, 64)]
    for run in runs:
        run.options = {"method": "lora", "rank": run.options["rank"], "seed": 0}
    other = make_run(1, 0, make_noisy_scores(0.5, 37))
    other.options = {"method": "sft", "seed": 0}
    assert [s.label for s in group_by_setting([*runs, other])] == [
        "method=lora rank=4",
        "method=lora rank=64",
        "method=sft",
    ]
    assert [s.label for s in group_by_setting([runs[0], other])] == ["method=lora", "method=sft"]
    (plot,) = plot_by_option(group_by_setting([*runs, other]), [*runs, other], "CLIP-I")  # only of runs with a rank
    assert plot["option"] == "rank" and "<svg" in plot["plot"]


def test_different_evaluations_are_not_compared():
    runs = [make_run(r, 0, make_noisy_scores(0.5, 37)) for r in (1, 4)]
    assert set(comparable_metrics(runs)) == {"CLIP-I", "validation/loss"}
    runs[1].report["scorers"] = {"clip": "another"}
    assert set(comparable_metrics(runs)) == {"validation/loss"}
    runs[1].loss_key = "other data"
    assert comparable_metrics(runs) == {} and default_metric(runs) is None


def test_equal_settings_have_no_best_one():
    runs = [make_run(r, s, [0.00001 * r] * 3) for r in (1, 4) for s in (0, 1)]
    (line,) = recommend_setting(group_by_setting(runs), "CLIP-I")
    assert line.startswith("equal      ") and "best" not in line.partition(";")[0]


def test_runs_on_different_data_are_tabulated_without_a_verdict(tmp_path, capsys):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, options in zip(folders, ({"data": "digits"}, {f"option{n}": n for n in range(20)}), strict=True):
        job = Job(folder, [], "")
        write_finished_run(job, 0.5)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"options": options, "digests": {"data": folder.name}}))
    compare_runs(folders, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "loss       not compared" in printed and "best" not in printed
    assert (
        "setting 2: " in printed
        and "option19=19" in printed
        and max(map(len, printed.split("setting 1:")[0].split("\n"))) < 140
    )
    assert "not ranked" in (tmp_path / "out" / "compare.html").read_text()
    with pytest.raises(ValueError, match="metric=validation/loss: not comparable"):
        compare_runs(folders, tmp_path / "out", "validation/loss")


def test_alike_evaluations_are_compared(tmp_path):
    scores = {"CLIP-I": {"value": 0.5}}
    metrics = {"CLIP-I": {"higher_is_better": True}}
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        write_finished_run(Job(folder, [], ""), 0.5, **{"CLIP-I": 0.5})
    (folders[1] / "evaluation").rename(folders[1] / "evaluation-2")  # b was evaluated with more images first
    for folder, name in ((folders[0], "evaluation-2"), (folders[1], "evaluation")):
        (folder / name).mkdir()
        images = 16 if folder is folders[1] else 4
        (folder / name / "scores.json").write_text(json.dumps(build_report(scores, metrics, images=images)))
    runs = read_finished_runs(folders)
    assert [run.report["path"].name for run in runs] == ["evaluation", "evaluation-2"]
    assert set(comparable_metrics(runs)) == {"CLIP-I", "validation/loss"}
    assert read_finished_runs(folders[1:])[0].report["images"] == 16


def test_scores_of_an_earlier_result_are_named(tmp_path, capsys):
    job = Job(tmp_path / "0", [], "")
    write_finished_run(job, 1.0, **{"CLIP-I": 0.5})
    for file, facts in (
        ("run.json", {"steps": 40, "result_digest": "later"}),
        ("evaluation/scores.json", {"result": {"steps": 20, "weights": "earlier"}}),
    ):
        (job.folder / file).write_text(json.dumps(json.loads((job.folder / file).read_text()) | facts))
    compare_runs([job.folder], tmp_path / "out")
    line = f"{job.folder}: scores of step 20, before training was resumed"
    assert line in capsys.readouterr().out and line in (tmp_path / "out" / "compare.html").read_text()


def test_text_in_tables_is_no_formula(tmp_path):
    run = make_run(1, 0, [0.5])
    run.options |= {"name": "=cmd|'/C calc'!A0", "@x": "+1", "lr": -1.0}
    write_runs_table([run], tmp_path / "table.csv")
    (row,) = csv.DictReader((tmp_path / "table.csv").open())
    assert row["name"] == "'=cmd|'/C calc'!A0" and row["'@x"] == "'+1" and row["lr"] == "-1.0"


def test_labels_are_not_rendered_as_formulas():
    assert "$a$" in plot_pareto_scatter(
        {"caption_template=$a$ and $b_": (1.0, 2.0), "b": (2.0, 3.0)}, "trainable", "CLIP-I", True, False
    )


def test_labels_of_settings_with_equal_cost_do_not_overlap():
    figure, (axes,) = create_figure(1, 1, 3.2)
    points = {"rank=4 alpha=16": (15.7, 0.435), "rank=16 alpha=16": (15.8, 0.4349), "rank=1": (14.0, 0.35)}
    for point in points.values():
        axes.plot(*point, "o")
    figure.draw_without_rendering()
    assert label_points(axes, points) == [(6, 3), (6, -6), (6, 3)]


def test_training_seeds_are_paired_by_number():
    one = [make_run(1, s, make_noisy_scores(level, 37)) for s, level in ((0, 0.5), (1, 0.6))]
    other = [make_run(2, s, make_noisy_scores(level, 37)) for s, level in ((1, 0.6), (0, 0.5), (7, 0.9))]
    assert seed_differences(*group_by_setting(one + other), "CLIP-I") == pytest.approx([0, 0])


@pytest.mark.slow
def test_the_table_and_page_compare_methods_as_in_the_lab_report(run, capsys):  # S1-14..16
    folders = []
    for method in ("lora", "sft"):
        overrides = [
            "steps=2",
            f"method={method}",
            "method.text_encoder=false",
            "validation_split=10",
            "log_every=2",
            "metrics=digits",
        ]
        _, folder = run(*overrides, "protocol.images=1", "model.weights=pretrained", name=method)
        folders.append(folder)
        record = json.loads((folder / "run.json").read_text())
        assert 0 < record["seconds_per_step"] < record["seconds"] and record["result_mb"] > 0.1
    capsys.readouterr()
    output = folders[0].parent / "both"
    compare_runs(folders, output)
    printed = capsys.readouterr().out
    for column in (
        "trainable",
        "seconds",
        "s/it",
        "memory GB",
        "file MB",
        "validation/loss",
        "style and digit",
        "CLIP-I",
    ):
        assert column in printed
    assert "66,304" in printed and "2,380,516" in printed and "\ndevice     cpu (" in printed and "; s/it" in printed
    assert "\nmethod=lora lr=0.001 " in printed
    assert "equal      all settings: style and digit 0.0000" in printed and "best" not in printed.partition(";")[0]
    metrics = metric_info(read_finished_run(folders[0]))
    assert all(info["higher_is_better"] == objective_directions([name], {})[name] for name, info in metrics.items())
    page = (output / "compare.html").read_text()
    assert page.count("<svg") == 3 and page.count("data:image/png") == 18  # base and two settings, six prompts
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["method"] for row in rows] == ["lora", "sft"] and float(rows[0]["CLIP-I"]) < 1


@pytest.mark.slow
def test_compare_is_a_program(fake_train_script, tmp_path, monkeypatch, capsys):
    assert run_sweep(None, ["rank=1,2", "seed=0,1"]) == 0
    (folder,) = tmp_path.glob("multirun/lora/*")
    for file in ("table.csv", "compare.html"):
        (folder / file).unlink()
    command = [sys.executable, "-m", "sdft", "compare"]
    done = subprocess.run([*command, folder, "metric=validation/loss"], capture_output=True, text=True)
    assert done.returncode == 0 and "best       rank=2" in done.stdout, done.stderr
    assert "Scores by rank" in (folder / "compare.html").read_text()
    for arguments, error in (
        (["nowhere"], "nowhere: "),
        ([folder, "metric=x"], "metric=x: "),
    ):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        message = capsys.readouterr().err
        assert exit_info.value.code == 1 and message.startswith(f"error: {error}") and message.count("\n") == 1
