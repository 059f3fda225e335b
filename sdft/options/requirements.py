"""Options that take effect only together with others: given alone on the command line, they are refused."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class Requirement:
    """`option` of program `config` is read only if `key` has a value for which `advice` holds; `is_met` decides."""

    config: str
    option: str
    key: str
    advice: str
    is_met: Any


def is_set(value) -> bool:
    return value not in (None, False, 0)


def is_unset(value) -> bool:
    return not is_set(value)


def is_one_of(*values):
    return lambda value: value in values


def is_none_of(*values):
    return lambda value: value not in values


REQUIREMENTS = [
    Requirement("train", "keep_tags", "shuffle_tags", "shuffle_tags=true", is_set),
    Requirement("train", "max_upscale", "crop", "crop=buckets", is_one_of("buckets")),
    Requirement("inspect", "max_upscale", "crop", "crop=buckets", is_one_of("buckets")),
    Requirement("train", "snr_gamma", "weighting", "weighting=min_snr or soft_min_snr", is_none_of("none", "debiased")),
    Requirement("train", "objective.huber_delta", "loss", "loss=huber", is_one_of("huber")),
    Requirement("train", "evaluate_images", "evaluate_every", "evaluate_every=N", is_set),
    Requirement("train", "allow_config_change", "resume", "resume=FOLDER", is_set),
    Requirement("train", "lr", "placeholder_token", "text_encoder_lr=…, which this method trains with", is_unset),
    Requirement("train", "text_encoder_lr", "method.text_encoder", "method.text_encoder=true", is_none_of(False, [])),
    Requirement(
        "train", "method.text_encoder_targets", "method.text_encoder", "method.text_encoder=true", is_none_of(False, [])
    ),
    Requirement(
        "train",
        "schedule.num_cycles",
        "schedule.shape",
        "schedule=cosine_with_restarts",
        is_one_of("cosine_with_restarts"),
    ),
    Requirement("train", "schedule.min_lr_ratio", "schedule.shape", "another schedule", is_none_of("constant")),
    Requirement("evaluate", "checkpoints", "adapter", "run=FOLDER instead of adapter=FILE", is_unset),
    Requirement("evaluate", "prompt_chunks", "adapter", "adapter=FILE; a run has its own", is_set),
    *(
        Requirement("evaluate", option, "model", "a model instead of model=none", is_none_of("none"))
        for option in ("run", "adapter", "checkpoints", "adapter_scales", "prompts", "controls", "images", "wandb")
    ),
    Requirement("generate", "prompt_chunks", "run", "model=NAME; a run has its own", is_unset),
    Requirement("stylize", "prompt_chunks", "run", "model=NAME; a run has its own", is_unset),
    Requirement("stylize", "controlnet_scale", "controlnet", "a controlnet", is_none_of("none")),
    *(
        Requirement("morph", option, key, advice, is_met)
        for option in ("rank", "steps", "lr", "adapter_cache")
        for key, advice, is_met in (
            ("adapters", "adapters=null, so that adapters are trained", is_unset),
            ("lora", "lora=dw or factors", is_none_of("none")),
        )
    ),
    Requirement("morph", "adapters", "lora", "lora=dw or factors", is_none_of("none")),
    Requirement("morph", "spacing_iterations", "frame_spacing", "frame_spacing=even", is_one_of("even")),
    Requirement("mix", "rank", "merge_method", "merge_method=svd", is_one_of("svd")),
    Requirement("convert", "name", "to", "to=kohya; the diffusers file has a fixed name", is_one_of("kohya")),
    Requirement("publish", "private", "push", "push=true", is_set),
]


def check_requirements(config: str, cfg: DictConfig, given: Mapping[str, Override]) -> None:
    """Raise `ValueError` for an option of the command line that has no effect with the values of the others."""
    for requirement in find_unmet(config, cfg, given):
        override = given[requirement.option].input_line
        raise ValueError(f"{override}: has no effect here; it requires {requirement.advice}")


def find_unmet(config: str, cfg: DictConfig, given: Iterable[str]) -> list[Requirement]:
    return [
        requirement
        for requirement in REQUIREMENTS
        if requirement.config == config
        and requirement.option in given
        and not requirement.is_met(select_value(cfg, requirement.key))
    ]


def select_value(cfg: DictConfig, key: str):
    """The resolved value; None if there is none, or if it cannot be resolved, which is reported later."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
