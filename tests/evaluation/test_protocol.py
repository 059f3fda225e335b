"""What is drawn, what is asked of it, and the braces."""

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from sdft.data.dataset import EvaluationSpec
from sdft.evaluation.protocol import EvaluationProtocol, extract_token_and_class


def test_a_judge_is_asked_without_the_word_that_only_the_run_knows():
    protocol = EvaluationProtocol(
        ["a {token} {class} in the snow"], ["a {class}"], ["a car"], placeholder_token="sks", class_noun="dog"
    )
    groups = {group.name: group for group in protocol.build_groups(None, ["unused"], ["unused"])}
    assert groups["prompts"].prompts == ["a sks dog in the snow"] and groups["prompts"].scoring_prompts == [
        "a dog in the snow"
    ]
    assert groups["class"].prompts == ["a dog"] and groups["controls"].prompts == ["a car"]


def test_without_prompts_of_its_own_it_asks_the_data_then_the_run():
    asked = EvaluationSpec(["p in oil"], {"p": {"a": "b"}}, scoring_prompts=["p"])
    (group,) = EvaluationProtocol().build_groups(asked, ["mine"], [])
    assert (group.prompts, group.scoring_prompts) == (["p in oil"], ["p"])
    first, second = EvaluationProtocol(token="sks").build_groups(None, ["a sks dog", "a sksy cat"], ["a dog"])
    assert first.scoring_prompts == ["a dog", "a sksy cat"] and second.name == "class"
    assert EvaluationProtocol(token="<mine>").build_groups(None, ["a <mine> here"], [])[0].scoring_prompts == ["a here"]


def test_a_file_of_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("a {token} cat\n\n  a red {token} cat \n")
    assert EvaluationProtocol(str(tmp_path / "p.txt"), placeholder_token="x").build_groups(None, [], [])[0].prompts == [
        "a x cat",
        "a red x cat",
    ]
    with pytest.raises(ValueError, match="protocol.controls=nowhere.txt: no such text file"):
        EvaluationProtocol(controls="nowhere.txt")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a {token} cat", "give placeholder_token=sks"),
        ("a {class}", "give class_noun=dog"),
        ("a {colour} cat", "only {token} and {class}"),
    ],
)
def test_braces_without_a_word_are_refused(prompt, told):
    with pytest.raises(ValueError, match=told.replace("{", r"\{")):
        EvaluationProtocol([prompt]).build_groups(None, [], [])


def test_the_words_of_a_dreambooth_run():
    assert extract_token_and_class("a sks dog", "a dog") == ("sks", "dog")
    assert extract_token_and_class("photo of zwx cat toy", "The cat toy") == ("photo of zwx", "cat toy")
    assert extract_token_and_class(None, "an owl") == (None, "owl")
    assert extract_token_and_class(None, None) == (None, None)


@pytest.mark.parametrize(
    ("name", "prompts"), [("homework_faces", 25), ("dreambooth_bench", 25), ("dreambooth_bench_live", 25)]
)
def test_published_protocols(name, prompts):  # S0-39
    given = OmegaConf.load(ROOT / "conf" / "protocol" / f"{name}.yaml")
    given = given.get("protocol", given).prompts
    assert len(set(given)) == len(given) == prompts
    if name == "homework_faces":
        assert given[0] == "A man in a black hoodie and khaki pants."
        assert all(prompt.startswith("A man in ") for prompt in given)
