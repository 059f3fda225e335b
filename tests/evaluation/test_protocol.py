"""Prompt groups, scoring prompts and placeholders."""

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from sdft.data.dataset import EvaluationSpec
from sdft.evaluation.protocol import EvaluationProtocol, extract_token_and_class


def test_scoring_prompts_omit_the_placeholder_token():
    protocol = EvaluationProtocol(
        ["a {token} {class} in the snow"], ["a {class}"], ["a car"], placeholder_token="sks", class_noun="dog"
    )
    groups = {group.name: group for group in protocol.build_groups(None, ["unused"], ["unused"])}
    assert groups["prompts"].prompts == ["a sks dog in the snow"] and groups["prompts"].scoring_prompts == [
        "a dog in the snow"
    ]
    assert groups["class"].prompts == ["a dog"] and groups["controls"].prompts == ["a car"]


def test_prompts_default_to_the_dataset_then_the_run():
    spec = EvaluationSpec(["p in oil"], {"p": {"a": "b"}}, scoring_prompts=["p"])
    (group,) = EvaluationProtocol().build_groups(spec, ["mine"], [])
    assert (group.prompts, group.scoring_prompts) == (["p in oil"], ["p"])
    first, second = EvaluationProtocol(placeholder_token="sks").build_groups(
        None, ["a sks dog", "a sksy cat"], ["a dog"]
    )
    assert first.scoring_prompts == ["a dog", "a sksy cat"] and second.name == "class"
    assert EvaluationProtocol(placeholder_token="<mine>").build_groups(None, ["a <mine> here"], [])[
        0
    ].scoring_prompts == ["a here"]


def test_prompts_from_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("a {token} cat\n\n  a red {token} cat \n")
    assert EvaluationProtocol(str(tmp_path / "p.txt"), placeholder_token="x").build_groups(None, [], [])[0].prompts == [
        "a x cat",
        "a red x cat",
    ]
    with pytest.raises(ValueError, match="protocol.controls=nowhere.txt: "):
        EvaluationProtocol(controls="nowhere.txt")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a {token} cat", "placeholder_token=sks"),
        ("a {class}", "class_noun=dog"),
        ("a {colour} cat", "{colour} .*{token} or {class}"),
    ],
)
def test_unset_and_unknown_placeholders_are_rejected(prompt, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        EvaluationProtocol([prompt]).build_groups(None, [], [])


def test_token_and_class_of_a_dreambooth_run():
    assert extract_token_and_class("a sks dog", "a dog") == ("sks", "dog")
    assert extract_token_and_class("photo of zwx cat toy", "The cat toy") == ("photo of zwx", "cat toy")
    assert extract_token_and_class(None, "an owl") == (None, "owl")
    assert extract_token_and_class(None, None) == (None, None)


@pytest.mark.parametrize(
    ("name", "prompts"), [("homework_faces", 25), ("dreambooth_bench", 25), ("dreambooth_bench_live", 25)]
)
def test_published_protocols(name, prompts):  # S0-39
    config = OmegaConf.load(ROOT / "conf" / "protocol" / f"{name}.yaml")
    configured = config.get("protocol", config).prompts
    assert len(set(configured)) == len(configured) == prompts
    if name == "homework_faces":
        assert configured[0] == "A man in a black hoodie and khaki pants."
        assert all(prompt.startswith("A man in ") for prompt in configured)
