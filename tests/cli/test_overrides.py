"""The form of overrides, before Hydra reads them."""

import os

import pytest
from test_composition import PROGRAMS, compose_and_check

from sdft.cli.overrides import split_arguments
from sdft.config import check_config

PATHS = {  # every option that takes a file or a folder, by program
    "compare": [],
    "convert": ["adapter", "folder", "architecture", "name"],
    "evaluate": ["run", "adapter", "prompts", "controls"],
    "extract": ["base", "tuned", "folder"],
    "gallery": ["folder", "multirun"],
    "generate": ["run", "reproduce", "folder", "prompts", "adapters", "checkpoint"],
    "inspect": ["data.path", "contact_sheet"],
    "merge": ["run", "to", "adapters"],
    "mix": ["adapters", "folder"],
    "morph": ["images", "adapters", "folder", "adapter_cache"],
    "publish": ["run", "to"],
    "resize": ["adapter", "folder"],
    "show": ["adapter"],
    "stylize": ["images", "run", "adapters", "folder", "controlnet"],
    "train": ["data.path", "resume", "reproduce", "prompts", "model.name", "class_path"],
    "wandb_report": [],
}
GIVEN = {
    "train": ["method=dreambooth_lora", "data.path=x", "instance_prompt=a", "class_prompt=b"],
    "convert": ["adapter=x", "to=kohya"],
    "extract": ["base=x", "tuned=y"],
    "inspect": ["data.path=x"],
    "mix": ["adapters=[x]"],
    "morph": ["images=[a,b]", "prompts=[a]"],
    "resize": ["adapter=x"],
    "show": ["adapter=x"],
    "stylize": ["images=x"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_blank_path_is_refused_wherever_a_path_is_taken(program):
    for option in PATHS[program]:
        for value in ("''", "'  '", *(["['', b]"] if option in ("adapters", "images") else [])):
            cfg = compose_and_check(*GIVEN.get(program, []), f"{option}={value}", config=program)
            with pytest.raises(ValueError, match=rf"^{option}(\.0)?=.*: blank"):
                check_config(cfg)


def test_a_path_from_an_empty_option_is_refused():
    with pytest.raises(ValueError, match="^base='': blank"):
        check_config(compose_and_check("data=folder", "+base=''", "data.path=${base}"))


@pytest.mark.parametrize(
    "argument", ["data.path=", "data.path= ", "+resume=", "hydra.run.dir=", "rank=", "data.caption="]
)
def test_an_override_without_a_value_is_refused(argument):
    with pytest.raises(ValueError, match=": no value"):
        split_arguments([argument])
    split_arguments(["data.caption=''", "sampling.negative_prompt=''", "prompts=['']", "~rank"])


@pytest.mark.parametrize("flags", [["-m"], ["--multirun"], ["--cfg", "job"], ["-cd", "mine", "--resolve", "-c", "job"]])
def test_flags_are_accepted_between_overrides(flags):
    overrides = ["rank=4", "+tags=[a]", "~lr"]
    for place in range(4):
        assert split_arguments([*overrides[:place], *flags, *overrides[place:]]) == (flags, overrides)
    with pytest.raises(ValueError, match=r"^--lr_rate: options have no dashes"):
        split_arguments(["rank=4", *flags, "lr=1", "--lr_rate"])


def test_an_empty_prompt_and_caption_are_accepted():
    cfg = compose_and_check(
        "data=folder", "data.path=x", "data.caption=''", "prompts=['']", "sampling.negative_prompt=''"
    )
    check_config(cfg)


def test_arguments_that_are_not_utf8_are_refused():
    with pytest.raises(ValueError, match="data.path=.*: not UTF-8"):
        split_arguments(["rank=4", os.fsdecode(b"data.path=caf\xe9")])
