"""How a run begins: words that no part of it takes are checked, and what will happen is told."""

import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sdft.config import check_option_types, check_required_nodes
from sdft.data.dataset_report import build_dataset_report, draw_contact_sheet
from sdft.runs.resume import PreviousRun
from sdft.training.build import COMPONENTS
from sdft.training.run_summary import print_run_summary

OPTION_TYPES = {
    "name": str,
    "seed": int,
    "caption_template": str | None,
    "validation_split": float,
    "resolution": int,
    "sweep": str | None,
}
OPTION_TYPES |= {"tags": list[str], "allow_config_change": bool, "reproduce": str | None}
REQUIRED_NODES = (*COMPONENTS, "model", "data", "optimizer")


def check_options(cfg: DictConfig) -> None:
    """Words that no signature takes, and parts that were taken away; the name is one of folders and files."""
    if not re.fullmatch(r"[\w+-][\w .+-]*", cfg.name):
        raise ValueError(f"name={cfg.name}: choose letters, digits, spaces and . _ + - for it")
    if cfg.model == "none":
        raise ValueError("model=none: only evaluate.py does without; choose a model")
    check_option_types(cfg, OPTION_TYPES)
    check_required_nodes(cfg, REQUIRED_NODES)


def load_resume_step(cfg: DictConfig, checkpoint: Path | None, steps: int, before: PreviousRun | None) -> int:
    """The step to go on from. From the end of a finished run it would train nothing and look like success."""
    from sdft.runs.checkpoint_file import read_checkpoint

    done = read_checkpoint(checkpoint)["global_step"] if checkpoint else 0
    ended = before is None or before.record["state"] == "finished"
    if done > steps or (checkpoint and done == steps and ended):
        more = "give more steps, and allow_config_change=true" if before else "give more steps"
        raise ValueError(f"resume={cfg.resume}: already at step {done} of {steps}; {more}")
    return done


def start_run(record, plan, cfg, pictures: str, samples, model, trainer, words: dict, before, done: int) -> None:
    """Say what will happen and what the data hold, on the terminal, in the run's folder and on its dashboards."""
    told = HydraConfig.get()
    from sdft.training.callbacks.sample_images import log_image_sheet

    found = build_dataset_report(
        samples.source, samples.sizes, samples.plan.steps_per_epoch, model.tokenizer, model.max_prompt_tokens
    )
    plan["warnings"] += found.warnings
    print_run_summary(plan, f"{format_title(told.runtime.choices, cfg)} · {pictures}", found.lines, record.folder)
    plan |= get_wandb_run_info(trainer.loggers, cfg) | {"options": words}
    if before:
        print(f"resumes  at step {done} of {trainer.max_steps}", flush=True)
        for name, (old, new) in before.changed.items():
            print(f"changed  {name} from {old} to {new}", flush=True)
        record.start(plan, cfg, list(told.overrides.task), before.record, step=done, changed=before.changed)
    else:
        record.start(plan, cfg, list(told.overrides.task))
    found.write(record.folder)
    sheet = draw_contact_sheet(samples.source, samples.sizes)
    sheet.save(record.folder / "data.png")
    for logger in trainer.loggers:
        log_image_sheet(logger, "data", sheet, 0)


def get_wandb_run_info(loggers: list, cfg: DictConfig) -> dict:
    """Where to find the run on W&B again."""
    runs = [logger.experiment for logger in loggers if hasattr(logger, "log_table")]
    if not runs:
        return {}
    return {"wandb": {"id": runs[0].id, "project": cfg.logger.project, "name": cfg.name, "mode": cfg.logger.mode}}


def format_title(choices, cfg: DictConfig) -> str:
    rank = f" rank {cfg.rank} α {cfg.alpha:g}" if "rank" in cfg else ""
    return f"{choices.method}{rank} · {choices.model}"


def flatten_options(cfg: DictConfig, choices) -> dict:
    """Top-level words as columns, and the chosen names of the groups."""
    plain = OmegaConf.to_container(cfg)
    words = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    return words | {
        key: choices[key] for key in ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")
    }
