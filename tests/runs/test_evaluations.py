"""Every evaluation keeps its own folder; alike ones are compared; scores of others are checked."""

import json

import pytest
from test_optuna_search import build_report

from sdft.data.inventory import Inventory
from sdft.evaluation.report import collect_provenance
from sdft.runs.evaluations import (
    choose_comparable_evaluations,
    choose_evaluation_folder,
    choose_main_evaluation,
    classify_change,
    describe_result,
    list_evaluations,
    read_evaluations,
    read_scores,
    write_scores,
)

REPORT = build_report({"CLIP-I": {"value": 0.5}}, {"CLIP-I": {"higher_is_better": True}})


def test_an_evaluation_replaces_only_an_equal_one(tmp_path):
    for settings, name in (("a", "evaluation"), ("b", "evaluation-2"), ("a", "evaluation"), ("c", "evaluation-3")):
        folder = choose_evaluation_folder(tmp_path / "evaluation", settings)
        assert folder.name == name
        write_scores(folder, REPORT | {"settings": settings})
    (tmp_path / "evaluation-old").mkdir()
    write_scores(tmp_path / "evaluation-old", REPORT)
    assert [folder.name for folder in list_evaluations(tmp_path)] == ["evaluation", "evaluation-2", "evaluation-3"]


def test_the_evaluation_of_most_images_stands_for_a_run():
    few, many, again = REPORT | {"images": 1}, REPORT | {"images": 16}, REPORT | {"images": 16, "settings": "y"}
    assert choose_main_evaluation([many, again, few]) is again and choose_main_evaluation([]) is None
    assert choose_comparable_evaluations([[many, few], [few]]) == [few, few]
    assert choose_comparable_evaluations([[many], [few]]) == [many, few]
    other_seed = few | {"sampling": {"seed": 1}}
    assert choose_comparable_evaluations([[few], [other_seed], []]) == [few, other_seed, None]


def test_an_evaluation_of_an_earlier_result_is_outdated_and_the_last_choice(tmp_path):
    def train_to(steps: int, **facts) -> None:
        record = {"format": 1, "state": "finished", "steps": steps, "result_digest": f"w{steps}"} | facts
        (tmp_path / "run.json").write_text(json.dumps(record))

    def evaluate(number: int, images: int) -> None:
        folder = tmp_path / f"evaluation-{number}"
        write_scores(folder, REPORT | {"images": images, "result": describe_result(tmp_path)})

    for number, (steps, images) in enumerate([(9, 8), (20, 4), (20, 1)], 2):
        train_to(20, stopped_at=steps, result_digest=f"w{steps}")
        evaluate(number, images)
    write_scores(tmp_path / "evaluation", REPORT | {"images": 2})  # without a record of what it scored
    reports = read_evaluations(tmp_path)
    assert [report["outdated_step"] for report in reports] == [None, 9, None, None]
    assert choose_main_evaluation(reports)["images"] == 4
    other = [REPORT | {"images": images} for images in (1, 8)]
    assert [report["images"] for report in choose_comparable_evaluations([reports, other])] == [1, 1]
    train_to(40)
    reports = read_evaluations(tmp_path)[1:]
    assert [report["outdated_step"] for report in reports] == [9, 20, 20]
    assert [report["images"] for report in choose_comparable_evaluations([reports, other])] == [8, 8]


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": None},
        {"states": []},
        {"states": [1]},
        {"groups": {}},
        {"metrics": {"prompts": {"CLIP-I": {}}}},
        {"metrics": build_report({}, {"DINO": {"higher_is_better": True}})["metrics"]},
        {
            "metrics": build_report({}, {"CLIP-I": {"higher_is_better": True, "number_format": "{.__class__}"}})[
                "metrics"
            ]
        },
    ],
)
def test_edited_scores_are_named_in_one_line(changes, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps(REPORT | changes))
    with pytest.raises(ValueError, match=r"^[^\n]*scores\.json: [^\n]*$"):
        read_scores(tmp_path)


def test_a_change_is_classified_by_its_interval_or_by_real_images():
    gain, score = {"value": 0.2, "low": 0.1, "high": 0.3}, {"value": 0.6, "low": 0.5, "high": 0.7}
    base, real = {"higher_is_better": True, "baseline": "base"}, {"higher_is_better": True, "baseline": "real"}
    assert classify_change(gain, base, score, None) == "better"
    assert classify_change(gain, base | {"higher_is_better": False}, score, None) == "worse"
    assert (
        classify_change(gain | {"low": -0.1}, base, score, 0.9) == classify_change(None, base, score, 0.9) == "unclear"
    )
    assert classify_change(gain, real, score, 0.9) == "worse" and classify_change(gain, real, score, 0.6) == "unclear"
    assert classify_change(gain, real, {"value": 0.6}, 0.9) == "unclear"  # no interval of the score
    assert {classify_change(gain | {key: None}, base, score, None) for key in gain} == {"unclear"}


def test_the_report_names_the_data_that_was_used_and_not_used(tmp_path):
    inventory = Inventory({"captions from text files": 2}, unused={"linked folders": ["a", "b"], "other files": ["c"]})
    (tmp_path / "data.json").write_text(json.dumps({"images": 2, **inventory.to_json()}))
    record = dict.fromkeys(("started", "commit", "device"), "x") | {
        "format": 1,
        "state": "finished",
        "command": ["train.py"],
    }
    record |= {
        "batch": {"size": 1, "gradient_accumulation_steps": 1, "processes": 1},
        "versions": {},
        "steps": 1,
        "seed": 0,
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    facts = dict(collect_provenance(tmp_path, REPORT))
    assert facts["data used"] == "captions from text files 2" and "data notes" not in facts
    assert facts["data not used"] == "linked folders: a, b; other files: c"
    (tmp_path / "data.json").write_text(json.dumps({"used": {"x": ["y"]}}))
    with pytest.raises(ValueError, match=r"data\.json: .*edited"):
        collect_provenance(tmp_path, REPORT)
