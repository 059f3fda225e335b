"""Start of a run: check the options, print the summary, and write the first files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sdft.config import check_option_types, check_required_nodes
from sdft.data.batch_sampler import StepSizes
from sdft.data.dataset_report import build_dataset_report
from sdft.models.loading import check_local_model
from sdft.runs.data_index import write_data_index
from sdft.runs.reproduce import check_reproducible
from sdft.runs.resume import PreviousRun
from sdft.training.loggers import check_names
from sdft.training.run_summary import collect_run_summary, print_resume, print_run_summary
from sdft.training.step_spec import StepSpec, build_step_spec

OPTION_TYPES = {
    "name": str,
    "seed": int,
    "caption_template": str | None,
    "validation_split": float,
    "resolution": int,
    "sweep": str | None,
    "tags": list[str],
    "allow_config_change": bool,
    "allow_data_change": bool,
    "reproduce": str | None,
}
COMPONENTS = (
    "method",
    "objective",
    "smoothness",
    "timestep_sampling",
    "schedule",
    "precision",
    "strategy",
    "sampling",
    "dataset",
    "training",
)
REQUIRED_NODES = (*COMPONENTS, "model", "data", "optimizer")
GROUP_OPTIONS = ("method", "model", "data", "optimizer", "schedule", "precision", "strategy")


def check_options(cfg: DictConfig) -> None:
    """Check the options without a typed component, and that no required node is missing."""
    check_option_types(cfg, OPTION_TYPES)
    check_names(cfg)
    if cfg.model == "none":
        raise ValueError("model=none: accepted by evaluate.py only; choose a model")
    check_required_nodes(cfg, REQUIRED_NODES)
    if name := cfg.model.get("name"):
        # before any image is decoded
        check_local_model(str(name), cfg.model.get("prediction_type"), cfg.model.get("vae"))


def check_reproduction(cfg: DictConfig) -> None:
    """Check the run to reproduce, if there is one, against a config whose precision is resolved."""
    if cfg.reproduce:
        check_reproducible(cfg)


def load_resume_point(checkpoint: Path | None, samples_per_step: int) -> tuple[int, StepSizes]:
    """The step to resume from, and the samples per step until it and from it on."""
    if not checkpoint:
        return 0, [(0, samples_per_step)]
    from sdft.runs.checkpoint_file import read_checkpoint

    state = read_checkpoint(checkpoint)
    if not state.keys() >= {"global_step", "step_sizes"}:
        raise ValueError(
            f"resume={checkpoint}: has no step sizes; choose a checkpoint that this version of sdft has saved"
        )
    step, sizes = state["global_step"], [tuple(size) for size in state["step_sizes"]]
    return step, sizes if sizes[-1][1] == samples_per_step else [*sizes, (step, samples_per_step)]


def check_steps_left(cfg: DictConfig, resume_step: int, steps: int, previous_run: PreviousRun | None) -> None:
    """`ValueError` if nothing would be left to train."""
    is_finished = previous_run is None or previous_run.record["state"] == "finished"
    if resume_step > steps or (resume_step and resume_step == steps and is_finished):
        advice = "increase steps and add allow_config_change=true" if previous_run else "increase steps"
        raise ValueError(f"resume={cfg.resume}: already at step {resume_step} of {steps}; {advice}")


def check_given_options(overrides: Iterable[str], module, part_lr: Mapping[str, float | None]) -> None:
    """`ValueError` if the command line gives a rate, or targets of text encoders, that no trained part reads."""
    given = {override.partition("=")[0].lstrip("+"): override for override in overrides}
    trained, text_encoders = module.get_trainable_parts(), module.model.text_encoders
    trained_text = [part for part in trained if part in text_encoders]
    open_rates = [part for part in trained if part_lr.get(part) is None]
    readers = {
        "method.text_encoder_targets": trained_text,
        "text_encoder_lr": [part for part in open_rates if part in text_encoders],
    }
    if len(trained_text) < len(trained):  # else the method has a rate of its own for text encoders
        readers["lr"] = [part for part in open_rates if part not in text_encoders or "text_encoder_lr" not in given]
    for option, parts in readers.items():
        if option in given and not parts:
            reason = f"the method trains {', '.join(trained)} only; it requires method.text_encoder=true"
            if trained_text or option == "lr":
                reason = "part_lr gives the rates of the parts that would read it; remove one of the two"
            raise ValueError(f"{given[option]}: has no effect here: {reason}")


def collect_summary(module, dataset, parts: dict, cfg: DictConfig, trainer, inputs, scorers) -> tuple[StepSpec, dict]:
    """What one step computes, and the summary of the run."""
    step = build_step_spec(dataset, parts["training"], parts["sampling"], cfg.resolution, trainer)
    summary = collect_run_summary(module, dataset, parts["training"], parts["schedule"], trainer, step)
    missing_scorers = scorers.missing if scorers else {}
    summary["warnings"] += [f"{name} not measured: {reason}" for name, reason in missing_scorers.items()]
    return step, summary | {"digests": inputs.digests, "files": inputs.files}


def start_run(run, summary: dict, inputs) -> None:
    """Report the run and its data on the terminal, in the run folder and to the loggers; rank 0 only."""
    record, folder, trainer, cfg = run.record, run.record.folder, run.trainer, run.cfg
    if not trainer.is_global_zero:
        return
    from sdft.training.callbacks.sample_images import log_image_sheet

    dataset, model = run.datasets.training.datasets[0], inputs.model
    dataset_report = build_dataset_report(
        dataset.source, dataset.sizes, dataset.plan.steps_per_epoch, model.tokenizer, model.max_prompt_tokens
    )
    summary["warnings"] += dataset_report.warnings
    headline = f"{format_title(run.invocation.choices, cfg)} · {run.source.describe()}"
    print_run_summary(summary, headline, dataset_report.lines, folder)
    write_data_index(folder, inputs.data_index)
    inputs.data_index = b""  # may be large
    summary |= get_wandb_run_info(trainer.loggers, cfg) | {"options": run.options}
    if previous_run := inputs.previous_run:
        changed = previous_run.changed
        print_resume(inputs.resume_step, trainer.max_steps, changed)
        record.start(summary, cfg, run.invocation, previous_run.record, step=inputs.resume_step, changed=changed)
    else:
        record.start(summary, cfg, run.invocation)
    dataset_report.write(folder)
    sheet = dataset.contact_sheet.draw()
    sheet.save(folder / "data.png")
    for logger in trainer.loggers:
        log_image_sheet(logger, "data", sheet, 0)


def get_wandb_run_info(loggers: list, cfg: DictConfig) -> dict:
    """Id, project, name and mode of the W&B run, to resume it later; empty without one."""
    runs = [logger.experiment for logger in loggers if hasattr(logger, "log_table")]
    if not runs or not runs[0].id:
        return {}
    return {"wandb": {"id": runs[0].id, "project": cfg.logger.project, "name": cfg.name, "mode": cfg.logger.mode}}


def format_title(choices: Mapping[str, str], cfg: DictConfig) -> str:
    rank = f" rank {cfg.rank} α {cfg.alpha:g}" if "rank" in cfg else ""
    return f"{choices['method']}{rank} · {choices['model']}"


def flatten_options(cfg: DictConfig, choices) -> dict:
    """Top-level options as columns, with the given rates of parts, and the choices of the config groups."""
    options = {key: value for key, value in OmegaConf.to_container(cfg).items() if not isinstance(value, dict)}
    options |= {f"part_lr.{part}": rate for part, rate in cfg.part_lr.items() if rate is not None}
    return options | {key: choices[key] for key in GROUP_OPTIONS}
