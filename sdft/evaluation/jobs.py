"""Build evaluation jobs from the options of evaluate.py: which runs or files to score, with which overrides."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check_config, check_option_types
from sdft.evaluation.variants import ModelVariant, build_file_variants, build_run_variants
from sdft.runs.newest_run import find_newest_run
from sdft.runs.run_config import read_run_config

ADAPTER_FILE_OPTIONS = ("model", "resolution", "caption_template", "seed")  # only with adapter=FILE
PROTOCOL_OPTIONS = ("prompts", "class_prompts", "controls", "images", "placeholder_token", "class_noun")
REPLACEABLE_NODES = ("metrics", "protocol", "data")  # of a run
STRING_OPTIONS = (
    "adapter",
    "placeholder_token",
    "class_noun",
    "instance_prompt",
    "class_prompt",
    "accelerator",
    "caption_template",
)
EVALUATION_OPTION_TYPES = dict.fromkeys(STRING_OPTIONS, str | None) | dict.fromkeys(
    ("images", "resolution", "seed", "prompt_chunks"), int | None
)
EVALUATION_OPTION_TYPES |= {"wandb": bool}


@dataclass
class EvaluationJob:
    """One evaluation: its output folder, config and model variants."""

    folder: Path
    cfg: DictConfig
    states: list[ModelVariant]


def build_evaluation_jobs(options: DictConfig) -> list[EvaluationJob]:
    """One job per run, or one for an adapter file; all options are checked before any model is loaded."""
    check_config(options)
    check_evaluation_options(options)
    if options.get("metrics") == {}:
        raise ValueError("metrics=none: nothing to compute; omit it to use the run's metrics, or choose metrics=clip")
    if options.adapter is None:
        if invalid := [key for key in ADAPTER_FILE_OPTIONS if options.get(key) is not None]:
            value = format_requested_value(options[invalid[0]])
            raise ValueError(f"{invalid[0]}={value}: fixed by the run; accepted with adapter=FILE only")
        runs = (
            OmegaConf.to_object(options.run) if OmegaConf.is_list(options.run) else [options.run or find_newest_run()]
        )
        return [build_run_job(Path(str(run)), options) for run in runs]
    if options.run is not None:
        raise ValueError(f"run={options.run} adapter={options.adapter}: give only one of them")
    return [build_file_job(Path(options.adapter).expanduser(), options)]


def build_file_job(path: Path, options: DictConfig) -> EvaluationJob:
    """The job for `adapter=FILE`, written to a folder whose name contains a hash of the path."""
    cfg = OmegaConf.create({k: v for k, v in options.items() if k not in ("run", "adapter", "hydra")})
    cfg = OmegaConf.merge(cfg, {"resolution": options.resolution or 512, "seed": options.seed or 0})
    cfg = apply_evaluation_options(options, cfg)
    for key in ("model", "data", "metrics"):
        if not cfg.get(key):
            raise ValueError(f"adapter={path}: requires {key}=…, for example model=sd15 data=folder metrics=clip")
    check_config(cfg)
    name = f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    variants = build_file_variants(path, parse_adapter_scales(options))
    return EvaluationJob(Path("outputs/evaluation") / name, cfg, variants)


def check_evaluation_options(options: DictConfig) -> None:
    check_option_types(options, EVALUATION_OPTION_TYPES)
    if not OmegaConf.is_dict(options.get("sampling")):
        raise ValueError(f"sampling={options.get('sampling')}: set sampling.KEY=VALUE, such as sampling.steps=20")
    if OmegaConf.is_dict(options.run) or options.run in ("", []):
        raise ValueError(f"run={options.run}: give a run folder, or a list of them")


def parse_adapter_scales(options: DictConfig) -> list[float]:
    """Adapter scales as a list; `ValueError` for an entry that is not a number."""
    scales = options.adapter_scales
    scales = list(scales) if OmegaConf.is_list(scales) else [scales]
    if wrong := [scale for scale in scales if not isinstance(scale, int | float) or isinstance(scale, bool)]:
        raise ValueError(f"adapter_scales={format_requested_value(wrong[0])}: give numbers, such as [0.5,1]")
    return scales


def parse_checkpoints(options: DictConfig) -> str | list[int] | None:
    """A name, a list of steps, or None; `ValueError` for anything else."""
    checkpoints = options.checkpoints
    if OmegaConf.is_list(checkpoints):
        checkpoints = OmegaConf.to_object(checkpoints)
    if checkpoints is None or isinstance(checkpoints, str):
        return checkpoints
    steps = checkpoints if isinstance(checkpoints, list) else [checkpoints]
    if wrong := [step for step in steps if not isinstance(step, int) or isinstance(step, bool)]:
        raise ValueError(f"checkpoints={format_requested_value(wrong[0])}: choose all, best, or a list of steps")
    return steps


def format_requested_value(value) -> str:
    return str(value) if not OmegaConf.is_dict(value) else "…"


def build_run_job(run: Path, options: DictConfig) -> EvaluationJob:
    replaced = [key for key in REPLACEABLE_NODES if options.get(key)]
    cfg = apply_evaluation_options(options, read_run_config(run, replaced))
    if not cfg.get("metrics"):
        raise ValueError(
            "metrics=null: this run was trained without metrics; choose metrics=clip, or metrics=digits for digits"
        )
    check_config(cfg)
    states = build_run_variants(
        run, instantiate(cfg.method), parse_adapter_scales(options), parse_checkpoints(options), cfg.seed
    )
    return EvaluationJob(run / "evaluation", cfg, states)


def apply_evaluation_options(options: DictConfig, cfg: DictConfig) -> DictConfig:
    """Override `cfg` with the options that are set."""
    for group in REPLACEABLE_NODES:
        cfg[group] = options.get(group) or cfg.get(group)
    cfg.protocol = cfg.protocol or {"_target_": "sdft.evaluation.protocol.EvaluationProtocol"}
    for key in ("instance_prompt", "class_prompt", "accelerator"):
        cfg[key] = options[key] or cfg.get(key)
    cfg.accelerator = cfg.accelerator or "auto"
    cfg.protocol.update({key: options[key] for key in PROTOCOL_OPTIONS if options[key] is not None})
    overrides = {key: value for key, value in options.sampling.items() if value is not None}
    configured = {key: value for key, value in (cfg.get("sampling") or {}).items() if value is not None}
    cfg.sampling = {"_target_": "sdft.models.sampling.Sampling"} | configured | overrides
    return cfg
