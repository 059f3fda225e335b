"""Scores on the way: logged, kept, chosen by, stopped by."""

import csv
import json
from shutil import copytree

import pytest
from hydra.errors import InstantiationException

from sdft.methods.lora import LoRA
from sdft.training.callbacks.evaluation import PeriodicEvaluation

WORDS = ["metrics=digits", "evaluate_every=1", "evaluate_images=1", "model.weights=pretrained", "lr=0.02"]
WORDS += [
    "data.digits=[0,1,2,3,4,5,6,7,8]",
    "data.per_digit=1",
    "protocol.images=1",
    "protocol.controls=[a handwritten one]",
]


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("scores/CLIP-T")]


def test_every_evaluation_is_logged_and_written_down(shared):
    _, folder = shared(*WORDS, "steps=3")
    timeline = json.loads((folder / "evaluation" / "timeline.json").read_text())
    assert [entry["step"] for entry in timeline] == [0, 1, 2, 3] == [int(row["step"]) for row in rows(folder)]
    assert float(rows(folder)[2]["scores/controls/drift"]) == timeline[2]["scores"]["controls"]["drift"]["value"] > 0
    for step in range(4):
        place = folder / "evaluation" / "steps" / f"step-{step:06d}"
        assert len(list(place.glob("prompts/*.png"))) == len(list(place.glob("controls/*.png"))) == 1
    assert 'id="timeline"' in (folder / "evaluation" / "report.html").read_text()


def test_seeds_on_the_way_are_not_those_at_the_end(shared):
    _, folder = shared(*WORDS, "steps=3")
    on_the_way = (folder / "evaluation/steps/step-000000/prompts/0000.png").read_bytes()
    at_the_end = [path.read_bytes() for path in folder.parent.glob("outputs/cache/images/*/*.png")]
    assert at_the_end and on_the_way not in at_the_end


def evaluations(monkeypatch, values):
    """Let the score that chooses take `values` at steps 1, 2 and so on."""
    whole, left = PeriodicEvaluation.compare, list(values)

    def compare(self, step, found, module):
        found["prompts"]["CLIP-T"]["value"] = left.pop(0)
        whole(self, step, found, module)

    monkeypatch.setattr(PeriodicEvaluation, "compare", compare)


def test_the_best_result_is_kept_and_the_worst_is_one_that_has_no_score(run, monkeypatch):  # S3-40
    saved, save = [], LoRA.save
    monkeypatch.setattr(
        LoRA, "save", lambda m, model, folder, name: saved.append(folder.name) or save(m, model, folder, name)
    )
    evaluations(monkeypatch, [None, -0.5, -0.2, None, -0.3])
    _, folder = run(*WORDS, "steps=5", "checkpoint_metric=CLIP-T")
    assert saved == ["best", "best", "adapter"]
    told = json.loads((folder / "run.json").read_text())
    assert told["best"] == {"step": 3, "metric": "CLIP-T", "value": -0.2} and "stopped_at" not in told
    assert (folder / "best" / "pytorch_lora_weights.safetensors").is_file()
    states = json.loads((folder / "evaluation" / "scores.json").read_text())["states"]
    assert [state["label"] for state in states] == ["base", "best", "fine-tuned"]


def test_a_run_stops_when_nothing_gets_better(run, monkeypatch, capsys):
    evaluations(monkeypatch, [0.5, 0.4, 0.3, 0.9])
    _, folder = run(*WORDS, "steps=9", "checkpoint_metric=CLIP-T", "patience=2")
    told = json.loads((folder / "run.json").read_text())
    assert told["stopped_at"] == 3 and told["best"]["step"] == 1 and told["state"] == "finished"
    assert "stopped  at step 3: 2 evaluations" in capsys.readouterr().out


def test_a_resumed_run_remembers_its_best_and_its_base(run, monkeypatch):
    evaluations(monkeypatch, [0.5, 0.4, 0.3, 0.2])
    words = [*WORDS, "checkpoint_metric=CLIP-T", "save_every=2"]
    _, folder = run(*words, "steps=2")
    evaluations(monkeypatch, [0.4, 0.3])
    _, again = run(*words, "steps=4", f"resume={folder}", name="again")
    told = json.loads((again / "run.json").read_text())
    assert told["best"]["step"] == 1
    timeline = json.loads((again / "evaluation" / "timeline.json").read_text())
    assert [entry["step"] for entry in timeline] == [0, 1, 2, 3, 4]


def test_a_resumed_run_that_asks_for_something_else(run):
    words = [*WORDS, "save_every=1"]
    _, folder = run(*words, "steps=1", "checkpoint_metric=CLIP-I")
    resumed = [*words, "steps=2", f"resume={folder}"]
    _, again = run(*resumed, "checkpoint_metric=controls/drift", name="again")
    best = json.loads((again / "run.json").read_text())["best"]
    assert best["metric"] == "controls/drift" and best["step"] == 2  # what was best by another score is not
    with pytest.raises(ValueError, match="evaluated with other images, sampling; give the same words as then"):
        run(*resumed, "evaluate_images=2", name="more")
    with pytest.raises(ValueError, match="evaluated with other groups"):
        run(*resumed, "protocol.controls=[a handwritten two]", name="others")


def test_frames_say_what_they_were_drawn_for(shared, tmp_path, monkeypatch):
    from test_evaluate import evaluated

    monkeypatch.chdir(tmp_path)
    folder = copytree(shared(*WORDS, "steps=3")[1], tmp_path / "run")
    evaluated(f"run={folder}", "prompts=[a thing unlike those]", "images=1")
    page = (folder / "evaluation" / "report.html").read_text()
    frames = page[page.index('class="frame') : page.index('id="copies"')]
    assert "a handwritten nine in neon light" in frames and "a thing unlike those" not in frames


def test_words_that_cannot_be_are_refused_before_training(run):
    with pytest.raises(ValueError, match=r"checkpoint_metric=DINO: choose one of .*CLIP-T.*controls/drift"):
        run(*WORDS, "steps=1", "checkpoint_metric=DINO")
    with pytest.raises(ValueError, match="evaluate_every=1: no judge; choose metrics=clip"):
        run("evaluate_every=1", name="two")
    with pytest.raises(InstantiationException, match="patience=2: give checkpoint_metric"):
        run("metrics=digits", "evaluate_every=1", "patience=2", name="three")
    with pytest.raises(InstantiationException, match="checkpoint_metric=CLIP-T patience=0: give evaluate_every=N too"):
        run("metrics=digits", "checkpoint_metric=CLIP-T", name="four")
