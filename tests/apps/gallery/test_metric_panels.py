"""Curves of `metrics.csv`: downsampled, grouped into panels, with NaN/Inf counted but not sent."""

import json
import math
import random

from sdft.apps.gallery.metric_panels import (
    MAX_CURVE_POINTS,
    build_panels,
    downsample_points,
    read_last_step,
)
from sdft.runs.metrics_file import read_metric_columns


def write_metrics(folder, *lines: str):
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_few_points_are_unchanged():
    points = [(n, n * n) for n in range(MAX_CURVE_POINTS)]
    assert downsample_points(points) == points


def test_downsampling_keeps_peaks():
    rng = random.Random(0)
    points = [(n, rng.random()) for n in range(100_000)]
    points[12_345], points[54_321] = (12_345, 9.0), (54_321, -9.0)
    few = downsample_points(points)
    assert len(few) <= MAX_CURVE_POINTS + 2 and (12_345, 9.0) in few and (54_321, -9.0) in few
    assert few[0] == points[0] and few[-1] == points[-1] and [x for x, _ in few] == sorted(x for x, _ in few)
    assert set(few) <= set(points)


def test_a_hundred_thousand_rows_are_sent_as_a_few_hundred_points(tmp_path):
    rows = (f"{n},{math.sin(n / 5000)},{0.001}" for n in range(100_000))
    panels = build_panels(write_metrics(tmp_path, "step,train/loss,train/lr_unet", *rows))
    assert len(json.dumps(panels)) < 60_000
    (loss, rate) = panels
    assert [line["name"] for line in loss["lines"]] == ["each step", "smoothed"]
    assert all(len(line["points"]) <= MAX_CURVE_POINTS + 2 for panel in panels for line in panel["lines"])
    assert rate["lines"][0]["points"][-1] == [99_999, 0.001]


def test_nan_and_inf_are_counted_and_not_sent(tmp_path):
    panels = build_panels(write_metrics(tmp_path, "step,train/loss", "0,1.0", "1,nan", "2,inf", "3,0.5"))
    assert panels[0]["lines"][0]["points"] == [[0, 1.0], [3, 0.5]] and panels[0]["lines"][0]["bad"] == 2
    json.dumps(panels, allow_nan=False)


def test_quarters_are_normalized_to_their_first_value(tmp_path):
    head = "step,validation/loss," + ",".join(f"validation/loss_quarter_{n}" for n in (1, 2, 3, 4))
    panels = build_panels(write_metrics(tmp_path, head, "0,2,8,4,2,0", "5,1,4,1,2,3"))
    assert [panel["title"] for panel in panels] == ["Loss at fixed noise", "Loss at fixed noise by timestep, first = 1"]
    assert [line["points"][-1][1] for line in panels[1]["lines"]] == [0.5, 0.25, 1.0, 1.0]


def test_an_incomplete_line_is_skipped(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n1,2\n2,3")
    assert read_metric_columns(tmp_path) == {"a": [(1.0, 2.0)]} and read_last_step(tmp_path) == 1


def test_the_last_step_is_read_from_the_end_of_the_file(tmp_path):
    assert read_last_step(write_metrics(tmp_path, "step,a", *(f"{n},0.{n}8765432109" for n in range(5000)))) == 4999
    assert read_last_step(write_metrics(tmp_path, "step,a", "7,1")) == 7
    assert read_last_step(write_metrics(tmp_path, "step,a")) is None
    assert read_last_step(write_metrics(tmp_path, "step,a", "9" * 5000 + ",1")) is None
    assert read_last_step(write_metrics(tmp_path, "a,step", "1,2")) is None


def test_scores_and_other_metrics_have_separate_panels(tmp_path):
    panels = build_panels(
        write_metrics(tmp_path, "step,train/memory_gb,scores/CLIP-T,scores/controls/drift", "1,2,3,4")
    )
    assert [(panel["title"], panel["more"]) for panel in panels] == [
        ("CLIP-T", False),
        ("controls/drift", False),
        ("train/memory_gb", True),
    ]
