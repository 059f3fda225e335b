"""What evaluate.py is asked: which runs or files, and with which words in place of a run's own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdft.config import check, check_origin, typed
from sdft.evaluation.variants import State, of_file, of_run
from sdft.runs.files import read_config, read_json

# of a run's config; the rest was about training
NEEDED = ("data", "method", "model", "metrics", "protocol", "sampling", "prior", "precision")
OF_FILES = ("model", "resolution", "caption_template", "seed")  # words of evaluations without a run
PROTOCOL = ("prompts", "class_prompts", "controls", "images", "placeholder_token", "class_noun")  # words that go to it

TEXT = ("adapter", "placeholder_token", "class_noun", "instance_prompt", "class_prompt", "accelerator", "caption_template")
WORDS = dict.fromkeys(TEXT, str | None) | dict.fromkeys(("images", "resolution", "seed", "prompt_chunks"), int | None)
WORDS |= {"wandb": bool}


@dataclass
class Job:
    """One evaluation: where it is written, with which config, of what."""

    folder: Path
    cfg: DictConfig
    states: list[State]


def jobs(asked: DictConfig) -> list[Job]:
    """One for each run, or the one of a file; everything is checked before anything is loaded."""
    check(asked)
    check_words(asked)
    if asked.get("metrics") == {}:
        raise ValueError("metrics=none: nothing to score with; leave it out for the run's own, or choose metrics=clip")
    if asked.adapter is None:
        if given := [key for key in OF_FILES if asked.get(key) is not None]:
            raise ValueError(
                f"{given[0]}={shown_word(asked[given[0]])}: a run has its own; it goes with adapter=FILE alone"
            )
        runs = OmegaConf.to_object(asked.run) if OmegaConf.is_list(asked.run) else [asked.run or newest_run()]
        return [job_of_run(Path(str(run)), asked) for run in runs]
    if asked.run is not None:
        raise ValueError(f"run={asked.run} adapter={asked.adapter}: give one of them")
    path = Path(asked.adapter).expanduser()
    cfg = OmegaConf.create({k: v for k, v in asked.items() if k not in ("run", "adapter", "hydra")})
    cfg = words_of(asked, OmegaConf.merge(cfg, {"resolution": asked.resolution or 512, "seed": asked.seed or 0}))
    for key in ("model", "data", "metrics"):
        if not cfg.get(key):
            raise ValueError(f"adapter={path}: give {key}=… with it, such as model=sd15 data=folder metrics=clip")
    check(cfg)
    name = f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    return [Job(Path("outputs/evaluation") / name, cfg, of_file(path, scales_of(asked)))]


def check_words(asked: DictConfig) -> None:
    typed(asked, WORDS)
    if not OmegaConf.is_dict(asked.get("sampling")):
        raise ValueError(f"sampling={asked.get('sampling')}: give sampling.WORD=VALUE, such as sampling.steps=20")
    if OmegaConf.is_dict(asked.run) or asked.run in ("", []):
        raise ValueError(f"run={asked.run}: give a run folder, or a list of them")


def scales_of(asked: DictConfig) -> list[float]:
    """Strengths; `ValueError` names one that is no number."""
    scales = list(asked.adapter_scales) if OmegaConf.is_list(asked.adapter_scales) else [asked.adapter_scales]
    if wrong := [scale for scale in scales if not isinstance(scale, int | float) or isinstance(scale, bool)]:
        raise ValueError(f"scales={shown_word(wrong[0])}: give numbers, such as [0.5,1]")
    return scales


def checkpoints_of(asked: DictConfig) -> str | list[int] | None:
    """A name, or steps; `ValueError` for what is neither."""
    given = OmegaConf.to_object(asked.checkpoints) if OmegaConf.is_list(asked.checkpoints) else asked.checkpoints
    if given is None or isinstance(given, str):
        return given
    steps = given if isinstance(given, list) else [given]
    if wrong := [step for step in steps if not isinstance(step, int) or isinstance(step, bool)]:
        raise ValueError(f"checkpoints={shown_word(wrong[0])}: choose all, best, or a list of steps")
    return steps


def shown_word(value) -> str:
    return str(value) if not OmegaConf.is_dict(value) else "…"


def job_of_run(run: Path, asked: DictConfig) -> Job:
    cfg = words_of(asked, config_of(run))
    if not cfg.get("metrics"):
        raise ValueError(
            "metrics=null: this run was trained without a judge; choose metrics=clip, or metrics=digits for digits"
        )
    check(cfg)
    states = of_run(run, instantiate(cfg.method), scales_of(asked), checkpoints_of(asked), cfg.seed)
    return Job(run / "evaluation", cfg, states)


def words_of(asked: DictConfig, cfg: DictConfig) -> DictConfig:
    """`cfg` with what was asked in place of its own."""
    for group in ("metrics", "protocol", "data"):
        cfg[group] = asked.get(group) or cfg.get(group)
    cfg.protocol = cfg.protocol or {"_target_": "sdft.evaluation.protocol.Protocol"}
    for key in ("instance_prompt", "class_prompt", "accelerator"):
        cfg[key] = asked[key] or cfg.get(key)
    cfg.accelerator = cfg.accelerator or "auto"
    cfg.protocol.update({key: asked[key] for key in PROTOCOL if asked[key] is not None})
    given = {key: value for key, value in asked.sampling.items() if value is not None}
    own = {key: value for key, value in (cfg.get("sampling") or {}).items() if value is not None}
    cfg.sampling = {"_target_": "sdft.models.sampling.Sampling"} | own | given
    return cfg


def config_of(run: Path) -> DictConfig:
    """The config that `run` was trained with, as far as it says what was learned."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"run={run}: not a run folder (no config.yaml)")
    whole = read_config(run)
    kept = OmegaConf.create({k: v for k, v in whole.items() if k in NEEDED or not OmegaConf.is_dict(v)})
    check_origin(kept, run)
    return kept


def newest_run(outputs: Path = Path("outputs")) -> Path:
    """The run that finished last."""
    runs = [file.parent for file in outputs.glob("*/*/run.json") if read_json(file).get("state") == "finished"]
    if not runs:
        raise ValueError(f"run=null: no finished run in {outputs}/; train one first, or give run=FOLDER")
    return max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
