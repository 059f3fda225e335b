"""Evaluation during training: logging, the best result, early stopping and resuming."""

import csv
import json
from shutil import copytree

import pytest
from hydra.errors import InstantiationException

from sdft.methods.lora import LoRA
from sdft.training.callbacks.evaluation import PeriodicEvaluation

OVERRIDES = ["metrics=digits", "evaluate_every=1", "evaluate_images=1", "model.weights=pretrained", "lr=0.02"]
OVERRIDES += [
    "data.digits=[0,1,2,3,4,5,6,7,8]",
    "data.per_digit=1",
    "protocol.images=1",
    "protocol.controls=[a handwritten one]",
]


def read_rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("scores/CLIP-T")]


def test_every_evaluation_is_logged_and_saved(shared_run):
    _, folder = shared_run(*OVERRIDES, "steps=3")
    timeline = json.loads((folder / "evaluation" / "timeline.json").read_text())
    assert [entry["step"] for entry in timeline] == [0, 1, 2, 3] == [int(row["step"]) for row in read_rows(folder)]
    assert (
        float(read_rows(folder)[2]["scores/controls/drift"]) == timeline[2]["scores"]["controls"]["drift"]["value"] > 0
    )
    for step in range(4):
        images = folder / "evaluation" / "steps" / f"step-{step:06d}"
        assert len(list(images.glob("prompts/*.png"))) == len(list(images.glob("controls/*.png"))) == 1
    assert 'id="timeline"' in (folder / "evaluation" / "report.html").read_text()


def test_intermediate_seeds_differ_from_final_ones(shared_run):
    _, folder = shared_run(*OVERRIDES, "steps=3")
    intermediate = (folder / "evaluation/steps/step-000000/prompts/0000.png").read_bytes()
    final = [path.read_bytes() for path in folder.parent.glob("outputs/cache/images/*/*.png")]
    assert final and intermediate not in final


def patch_scores(monkeypatch, values):
    """Replace the monitored score by `values` at steps 1, 2 and so on."""
    original, remaining = PeriodicEvaluation.update_best, list(values)

    def update_best(self, step, scores, module):
        scores["prompts"]["CLIP-T"]["value"] = remaining.pop(0)
        original(self, step, scores, module)

    monkeypatch.setattr(PeriodicEvaluation, "update_best", update_best)


@pytest.mark.slow
def test_the_best_result_is_saved_and_a_missing_score_is_the_worst(run, monkeypatch):  # S3-40
    saved, save = [], LoRA.save
    monkeypatch.setattr(
        LoRA, "save", lambda m, model, folder, name: saved.append(folder.name) or save(m, model, folder, name)
    )
    patch_scores(monkeypatch, [None, -0.5, -0.2, None, -0.3])
    _, folder = run(*OVERRIDES, "steps=5", "checkpoint_metric=CLIP-T")
    assert saved == ["best", "best", "adapter"]
    record = json.loads((folder / "run.json").read_text())
    assert record["best"] == {"step": 3, "metric": "CLIP-T", "value": -0.2} and "stopped_at" not in record
    assert (folder / "best" / "pytorch_lora_weights.safetensors").is_file()
    states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
    assert [state["label"] for state in states] == ["base", "best", "fine-tuned"]


@pytest.mark.slow
def test_a_run_stops_early_without_improvement(run, monkeypatch, capsys):
    patch_scores(monkeypatch, [0.5, 0.4, 0.3, 0.9])
    _, folder = run(*OVERRIDES, "steps=9", "checkpoint_metric=CLIP-T", "patience=2")
    record = json.loads((folder / "run.json").read_text())
    assert record["stopped_at"] == 3 and record["best"]["step"] == 1 and record["state"] == "finished"
    assert "at step 3: 2 evaluations" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_keeps_its_best_and_its_base(run, monkeypatch):
    patch_scores(monkeypatch, [0.5, 0.4, 0.3, 0.2])
    overrides = [*OVERRIDES, "checkpoint_metric=CLIP-T", "save_every=2"]
    _, folder = run(*overrides, "steps=2")
    patch_scores(monkeypatch, [0.4, 0.3])
    _, resumed_folder = run(*overrides, "steps=4", f"resume={folder}", name="again")
    record = json.loads((resumed_folder / "run.json").read_text())
    assert record["best"]["step"] == 1
    timeline = json.loads((resumed_folder / "evaluation" / "timeline.json").read_text())
    assert [entry["step"] for entry in timeline] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_resumed_run_with_another_evaluation(run):
    overrides = [*OVERRIDES, "save_every=1"]
    _, folder = run(*overrides, "steps=1", "checkpoint_metric=CLIP-I")
    resumed = [*overrides, "steps=2", f"resume={folder}"]
    _, resumed_folder = run(*resumed, "checkpoint_metric=controls/drift", name="again")
    best = json.loads((resumed_folder / "run.json").read_text())["best"]
    assert best["metric"] == "controls/drift" and best["step"] == 2  # the best by another metric is discarded
    with pytest.raises(ValueError, match="evaluate_every: images, sampling "):
        run(*resumed, "evaluate_images=2", name="more")
    with pytest.raises(ValueError, match="evaluate_every: groups "):
        run(*resumed, "protocol.controls=[a handwritten two]", name="others")


def test_frames_are_labeled_with_their_own_prompts(shared_run, tmp_path, monkeypatch):
    from test_evaluate import run_evaluation

    monkeypatch.chdir(tmp_path)
    folder = copytree(shared_run(*OVERRIDES, "steps=3")[1], tmp_path / "run")
    (report,) = run_evaluation(f"run={folder}", "prompts=[a thing unlike those]", "images=1")
    page = (folder / report["folder"] / "report.html").read_text()
    frames = page[page.index('class="frame') : page.index('id="copies"')]
    assert "a handwritten nine in neon light" in frames and "a thing unlike those" not in frames


def test_invalid_options_are_rejected_before_training(run):
    with pytest.raises(ValueError, match=r"checkpoint_metric=DINO: choose one of .*CLIP-T.*controls/drift"):
        run(*OVERRIDES, "steps=1", "checkpoint_metric=DINO")
    with pytest.raises(ValueError, match="evaluate_every=1: .*metrics=clip"):
        run("evaluate_every=1", name="two")
    with pytest.raises(InstantiationException, match="patience=2: .*checkpoint_metric"):
        run("metrics=digits", "evaluate_every=1", "patience=2", name="three")
    with pytest.raises(InstantiationException, match="checkpoint_metric=CLIP-T patience=0: .*evaluate_every=N"):
        run("metrics=digits", "checkpoint_metric=CLIP-T", name="four")
