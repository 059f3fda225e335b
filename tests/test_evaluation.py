"""Base against fine-tuned: the table, the file, the picture."""

import json

import pytest
from omegaconf import OmegaConf
from PIL import Image

from sdft.evaluation import config_of, evaluate, newest_run, table


@pytest.fixture
def trained(run):
    _, folder = run("steps=1", "lr=0.05", "model.weights=pretrained")
    return folder


def test_scores_of_base_and_fine_tuned(trained, capsys):
    metrics = OmegaConf.create({"_target_": "sdft.evaluation.Scoring", "clip": "tiny-clip", "images": 2})
    cfg = config_of(trained, metrics, None)
    report = evaluate(trained, cfg)
    written = json.loads((trained / "evaluation" / "scores.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert set(written["scores"]) == {"base", "fine-tuned"}
    for scores in written["scores"].values():
        assert set(scores) == {"style", "digit", "style and digit", "CMMD", "CLIP-T", "CLIP-I"}
    assert -1 <= written["reference"]["CLIP-I"] <= 1
    assert "fine-tuned" in capsys.readouterr().out
    assert Image.open(trained / "evaluation" / "base_and_fine-tuned.png").width > 300


def test_given_prompts_are_scored_without_questions(trained):
    metrics = OmegaConf.create({"_target_": "sdft.evaluation.Scoring", "clip": "tiny-clip", "images": 1})
    report = evaluate(trained, config_of(trained, metrics, None), ["a handwritten one"])
    assert report["prompts"] == ["a handwritten one"] and set(report["scores"]["base"]) == {"CLIP-T", "CLIP-I"}


def test_a_run_without_a_judge_says_how_to_choose_one(trained):
    with pytest.raises(ValueError, match="choose metrics=clip"):
        config_of(trained, None, None)


def test_the_newest_finished_run_is_taken(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        newest_run(tmp_path)
    for stamp, state in (("1", "finished"), ("2", "failed")):
        (tmp_path / "lora" / stamp).mkdir(parents=True)
        (tmp_path / "lora" / stamp / "run.json").write_text(json.dumps({"state": state}))
    assert newest_run(tmp_path) == tmp_path / "lora" / "1"


def test_the_table_has_shares_cosines_and_the_reference():
    text = table(
        {"base": {"style": 0.04, "CLIP-I": 0.5}, "fine-tuned": {"style": 0.97, "CLIP-I": 0.75}},
        {"CLIP-I": 0.9},
        {"style": "{:.0%}", "CLIP-I": "{:.3f}"},
    )
    assert [line.split() for line in text.splitlines()] == [
        ["base", "fine-tuned", "real"],
        ["style", "4%", "97%"],
        ["CLIP-I", "0.500", "0.750", "0.900"],
    ]


def test_a_template_words_what_is_sampled_and_the_judge_is_asked_plainly(run):
    _, folder = run("steps=1", "model.weights=pretrained", "method=textual_inversion")
    metrics = OmegaConf.create({"_target_": "sdft.evaluation.Scoring", "clip": "tiny-clip", "images": 1})
    report = evaluate(folder, config_of(folder, metrics, None))
    assert all(prompt.endswith(" <mine>") for prompt in report["prompts"])
    assert "digit" in report["scores"]["base"]
