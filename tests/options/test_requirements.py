"""Options that would do nothing are refused, those that have an effect are accepted."""

import pytest
from conftest import ROOT
from test_composition import compose_and_check
from test_overrides import GIVEN

from sdft.options.requirements import REQUIREMENTS
from sdft.sweeps.sweep import compose_job_configs

CASES = [  # program, an option without effect, and what gives it one
    ("train", ["keep_tags=2"], ["shuffle_tags=true"]),
    ("train", ["max_upscale=3", "crop=center"], ["crop=buckets"]),
    ("inspect", ["data.path=x", "max_upscale=3", "crop=center"], ["crop=buckets"]),
    ("train", ["snr_gamma=3", "weighting=none"], ["weighting=soft_min_snr"]),
    ("train", ["objective.huber_delta=0.2"], ["loss=huber"]),
    ("train", ["evaluate_images=2"], ["evaluate_every=5"]),
    ("train", ["allow_config_change=true"], ["resume=x"]),
    ("train", ["lr=1e-3", "method=textual_inversion"], ["method=lora"]),
    ("train", ["text_encoder_lr=1e-3", "method=sft"], ["method.text_encoder=true"]),
    ("train", ["method.text_encoder_targets=[q_proj]", "method.text_encoder=false"], ["method.text_encoder=true"]),
    ("train", ["schedule.num_cycles=2", "schedule=cosine"], ["schedule=cosine_with_restarts"]),
    ("train", ["schedule.min_lr_ratio=0.1"], ["schedule=cosine"]),
    ("evaluate", ["checkpoints=all", "adapter=x"], ["adapter=null"]),
    ("evaluate", ["prompt_chunks=2"], ["adapter=x"]),
    ("evaluate", ["run=x", "model=none", "data.path=x"], ["model=sd15", "data=folder"]),
    ("generate", ["prompt_chunks=2", "run=x"], ["run=null"]),
    ("stylize", ["images=x", "prompt_chunks=2", "run=x"], ["run=null"]),
    ("stylize", ["images=x", "controlnet_scale=1", "controlnet=none"], ["controlnet=x"]),
    ("morph", ["rank=4", "adapters=[a,b]"], ["adapters=null"]),
    ("morph", ["lr=1e-3", "lora=none"], ["lora=dw"]),
    ("morph", ["adapters=[a,b]", "lora=none"], ["lora=factors"]),
    ("morph", ["spacing_iterations=2", "frame_spacing=uniform"], ["frame_spacing=even"]),
    ("mix", ["rank=4"], ["merge_method=svd"]),
    ("convert", ["name=x", "to=diffusers", "adapter=x"], ["to=kohya"]),
    ("publish", ["private=true"], ["push=true"]),
]


@pytest.mark.parametrize(("program", "overrides", "remedy"), CASES, ids=str)
def test_an_option_without_effect_is_refused_with_what_it_requires(program, overrides, remedy):
    given = GIVEN[program] if program in ("morph", "mix") else []
    with pytest.raises(ValueError, match="has no effect here; it requires "):
        compose_and_check(*given, *overrides, config=program)
    replaced = [text.partition("=")[0] for text in remedy]
    remaining = [text for text in overrides if text.partition("=")[0] not in replaced]
    compose_and_check(*given, *remaining, *remedy, config=program)


def test_every_requirement_has_a_case():
    tested = {(program, text.partition("=")[0]) for program, overrides, _ in CASES for text in overrides}
    tested |= {("evaluate", name) for name in ("adapter", "adapter_scales", "prompts", "controls", "images", "wandb")}
    tested |= {("morph", name) for name in ("steps", "adapter_cache")}
    assert {(requirement.config, requirement.option) for requirement in REQUIREMENTS} <= tested


def test_jobs_of_a_sweep_may_have_options_that_only_others_read():
    combinations = [["weighting=none", "snr_gamma=3"], ["weighting=min_snr", "snr_gamma=3"]]
    assert [cfg.weighting for cfg in compose_job_configs(combinations)] == ["none", "min_snr"]
    compose_and_check("weighting=none", "snr_gamma=3", "sweep=gammas")


def test_values_that_ask_for_nothing_are_accepted():
    compose_and_check("allow_config_change=false", "evaluate_every=0", "method=textual_inversion")
    compose_and_check("wandb=false", "run=null", "model=none", "data.path=x", config="evaluate")


def test_values_of_a_model_are_in_its_own_file():
    """A recipe that set `model.…` would keep it when another model is chosen by another program."""
    for recipe in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert "\nmodel:" not in recipe.read_text(), recipe.stem
