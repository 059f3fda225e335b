"""What evaluate.py is asked: which runs or files, and with which words in place of a run's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check_config, check_known_targets, check_option_types
from sdft.evaluation.variants import ModelVariant, build_file_variants, build_run_variants
from sdft.runs.files import read_config, read_json

# of a run's config; the rest was about training
RUN_CONFIG_KEYS = ("data", "method", "model", "metrics", "protocol", "sampling", "prior", "precision")
ADAPTER_FILE_OPTIONS = ("model", "resolution", "caption_template", "seed")  # words of evaluations without a run
PROTOCOL_OPTIONS = (
    "prompts",
    "class_prompts",
    "controls",
    "images",
    "placeholder_token",
    "class_noun",
)  # words that go to it

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
    """One evaluation: where it is written, with which config, of what."""

    folder: Path
    cfg: DictConfig
    states: list[ModelVariant]


def build_evaluation_jobs(asked: DictConfig) -> list[EvaluationJob]:
    """One for each run, or the one of a file; everything is checked before anything is loaded."""
    check_config(asked)
    check_evaluation_options(asked)
    if asked.get("metrics") == {}:
        raise ValueError("metrics=none: nothing to score with; leave it out for the run's own, or choose metrics=clip")
    if asked.adapter is None:
        if given := [key for key in ADAPTER_FILE_OPTIONS if asked.get(key) is not None]:
            raise ValueError(
                f"{given[0]}={format_requested_value(asked[given[0]])}: a run has its own; it goes with adapter=FILE alone"
            )
        runs = OmegaConf.to_object(asked.run) if OmegaConf.is_list(asked.run) else [asked.run or find_newest_run()]
        return [build_run_job(Path(str(run)), asked) for run in runs]
    if asked.run is not None:
        raise ValueError(f"run={asked.run} adapter={asked.adapter}: give one of them")
    path = Path(asked.adapter).expanduser()
    cfg = OmegaConf.create({k: v for k, v in asked.items() if k not in ("run", "adapter", "hydra")})
    cfg = apply_evaluation_options(
        asked, OmegaConf.merge(cfg, {"resolution": asked.resolution or 512, "seed": asked.seed or 0})
    )
    for key in ("model", "data", "metrics"):
        if not cfg.get(key):
            raise ValueError(f"adapter={path}: give {key}=… with it, such as model=sd15 data=folder metrics=clip")
    check_config(cfg)
    name = f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    return [
        EvaluationJob(Path("outputs/evaluation") / name, cfg, build_file_variants(path, parse_adapter_scales(asked)))
    ]


def check_evaluation_options(asked: DictConfig) -> None:
    check_option_types(asked, EVALUATION_OPTION_TYPES)
    if not OmegaConf.is_dict(asked.get("sampling")):
        raise ValueError(f"sampling={asked.get('sampling')}: give sampling.WORD=VALUE, such as sampling.steps=20")
    if OmegaConf.is_dict(asked.run) or asked.run in ("", []):
        raise ValueError(f"run={asked.run}: give a run folder, or a list of them")


def parse_adapter_scales(asked: DictConfig) -> list[float]:
    """Strengths; `ValueError` names one that is no number."""
    scales = list(asked.adapter_scales) if OmegaConf.is_list(asked.adapter_scales) else [asked.adapter_scales]
    if wrong := [scale for scale in scales if not isinstance(scale, int | float) or isinstance(scale, bool)]:
        raise ValueError(f"scales={format_requested_value(wrong[0])}: give numbers, such as [0.5,1]")
    return scales


def parse_checkpoints(asked: DictConfig) -> str | list[int] | None:
    """A name, or steps; `ValueError` for what is neither."""
    given = OmegaConf.to_object(asked.checkpoints) if OmegaConf.is_list(asked.checkpoints) else asked.checkpoints
    if given is None or isinstance(given, str):
        return given
    steps = given if isinstance(given, list) else [given]
    if wrong := [step for step in steps if not isinstance(step, int) or isinstance(step, bool)]:
        raise ValueError(f"checkpoints={format_requested_value(wrong[0])}: choose all, best, or a list of steps")
    return steps


def format_requested_value(value) -> str:
    return str(value) if not OmegaConf.is_dict(value) else "…"


def build_run_job(run: Path, asked: DictConfig) -> EvaluationJob:
    cfg = apply_evaluation_options(asked, read_run_config(run))
    if not cfg.get("metrics"):
        raise ValueError(
            "metrics=null: this run was trained without a judge; choose metrics=clip, or metrics=digits for digits"
        )
    check_config(cfg)
    states = build_run_variants(
        run, instantiate(cfg.method), parse_adapter_scales(asked), parse_checkpoints(asked), cfg.seed
    )
    return EvaluationJob(run / "evaluation", cfg, states)


def apply_evaluation_options(asked: DictConfig, cfg: DictConfig) -> DictConfig:
    """`cfg` with what was asked in place of its own."""
    for group in ("metrics", "protocol", "data"):
        cfg[group] = asked.get(group) or cfg.get(group)
    cfg.protocol = cfg.protocol or {"_target_": "sdft.evaluation.protocol.EvaluationProtocol"}
    for key in ("instance_prompt", "class_prompt", "accelerator"):
        cfg[key] = asked[key] or cfg.get(key)
    cfg.accelerator = cfg.accelerator or "auto"
    cfg.protocol.update({key: asked[key] for key in PROTOCOL_OPTIONS if asked[key] is not None})
    given = {key: value for key, value in asked.sampling.items() if value is not None}
    own = {key: value for key, value in (cfg.get("sampling") or {}).items() if value is not None}
    cfg.sampling = {"_target_": "sdft.models.sampling.Sampling"} | own | given
    return cfg


def read_run_config(run: Path) -> DictConfig:
    """The config that `run` was trained with, as far as it says what was learned."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"run={run}: not a run folder (no config.yaml)")
    whole = read_config(run)
    kept = OmegaConf.create({k: v for k, v in whole.items() if k in RUN_CONFIG_KEYS or not OmegaConf.is_dict(v)})
    check_known_targets(kept, run)
    return kept


def find_newest_run(outputs: Path = Path("outputs")) -> Path:
    """The run that finished last."""
    runs = [file.parent for file in outputs.glob("*/*/run.json") if read_json(file).get("state") == "finished"]
    if not runs:
        raise ValueError(f"run=null: no finished run in {outputs}/; train one first, or give run=FOLDER")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
