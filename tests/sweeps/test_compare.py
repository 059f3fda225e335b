"""Comparison of runs: table, page, and a verdict with its lower bound."""

import csv
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from sdft.apps.compare import main
from sdft.evaluation.plots.svg_charts import create_figure, label_points, plot_pareto_scatter
from sdft.sweeps.compare import compare_runs, describe_cheapest, recommend_setting, seed_differences
from sdft.sweeps.compare_page import plot_by_option
from sdft.sweeps.optuna_search import objective_directions
from sdft.sweeps.results import FinishedRun, comparable_metrics, group_by_setting, metric_info, read_finished_run
from sdft.sweeps.sweep import run_sweep


def make_run(rank: int, seed: int, values: list[float], trainable: int | None = None) -> FinishedRun:
    """A run with one score per image."""
    score = {"value": sum(values) / len(values), "per_image": values}
    report = {
        "images": 1,
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
    assert "\nmethod=lora lr=0.001 " in printed and "best       method=lora" in printed
    metrics = metric_info(read_finished_run(folders[0]))
    assert all(info["higher_is_better"] == objective_directions([name], {})[name] for name, info in metrics.items())
    page = (output / "compare.html").read_text()
    assert page.count("<svg") == 3 and page.count("data:image/png") == 18  # base and two settings, six prompts
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["method"] for row in rows] == ["lora", "sft"] and float(rows[0]["CLIP-I"]) < 1


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
