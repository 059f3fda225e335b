"""A training run: build it from the config, print a summary, train, evaluate and export."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

import sdft.distributed as processes
from sdft.data.prompts import read_prompts
from sdft.data.transforms import apply_caption_template, split_validation
from sdft.models.cpu_threads import limit_threads
from sdft.runs.files import remove_partial_files
from sdft.runs.hashing import hash_dataset, hash_weights
from sdft.runs.lock import Lock
from sdft.runs.metadata import RunRecord, mark_failed
from sdft.runs.reproduce import check_reproducible
from sdft.runs.resume import load_previous_run
from sdft.training.build import build_components, build_module, build_trainer, build_training_dataset
from sdft.training.compile import compile_blocks, set_channels_last, should_compile
from sdft.training.disk_space import check_disk_space, estimate_run_size
from sdft.training.finish import (
    close_loggers,
    close_loggers_on_exit,
    collect_training_results,
    finish_run,
    free_training_memory,
    report_reproduction,
)
from sdft.training.memory_estimate import build_step_spec
from sdft.training.oom_advice import explain_resource_errors
from sdft.training.run_setup import check_options, flatten_options, load_resume_step, start_run
from sdft.training.run_summary import collect_run_summary


def train(cfg: DictConfig):
    """Run one training in Hydra's output folder; return the trained module.

    With several devices and no launcher, launch one process per device, wait, and exit with their status.
    User errors raise `ValueError` before anything is written to the folder.
    """
    check_options(cfg)
    if cfg.reproduce:
        check_reproducible(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    parts, source = build_components(cfg), apply_caption_template(instantiate(cfg.data), cfg.caption_template)
    prior, strategy = parts["prior"], parts["strategy"]
    if prior:
        prior.check_no_overlap(cfg.data.get("path"))
    parts["precision"].check_accelerator(strategy.trainer_kwargs()["accelerator"])
    strategy.check(parts["method"].output_kind, parts["precision"].lightning_precision)
    if count := strategy.count_processes_to_launch():
        sys.exit(mark_failed(folder, processes.launch_processes(count, folder)))
    processes.init_process_group(strategy.on_cpu())
    folder = verify_shared_folder(processes.broadcast(folder))
    with Lock(folder, "a run") if processes.rank() == 0 else nullcontext() as lock:
        if lock:
            remove_partial_files(folder)
        return execute_run(cfg, folder, parts, source)


def execute_run(cfg: DictConfig, folder: Path, parts: dict, source):
    """Build the run, train, evaluate and record the result; rank 0 holds the lock on `folder`."""
    training, prior, strategy = parts["training"], parts["prior"], parts["strategy"]
    samples_per_step = training.samples_per_step(strategy.world_size())
    previous_run = load_previous_run(cfg, folder, samples_per_step)
    training_source, validation_source = split_validation(source, cfg.validation_split)
    checkpoint = training.find_checkpoint(folder)
    prompts = read_prompts(cfg.prompts) or source.prompts() + ([prior.prompt] if prior else [])
    source.verify()
    parts["precision"].configure_tf32()
    torch.manual_seed(cfg.seed)
    model = instantiate(cfg.model)
    model.latent_shape(cfg.resolution)
    for resolution in parts["dataset"].extra_resolutions:
        model.latent_shape(resolution, "extra_resolutions")
    parts["method"].check(model, training_source.captions())
    digests = {"model": hash_weights(model), "data": hash_dataset(training_source)} if processes.rank() == 0 else {}
    steps = training.count_steps(parts["dataset"].build_plan(training_source, model.size_multiple, samples_per_step))
    parts["schedule"].check(steps)
    resume_step = load_resume_step(cfg, checkpoint, steps, previous_run)

    class_source, device = None, strategy.device()
    needs_scorers = cfg.metrics and (training.evaluate_every or processes.rank() == 0)
    scorers = parts["metrics"].load_scorers(str(device) if processes.rank() == 0 else "cpu") if needs_scorers else None
    evaluator = build_intermediate_evaluator(cfg, scorers, source, training_source) if training.evaluate_every else None
    if prior and prior.weight:
        model.to(device).compute_dtype = parts["precision"].dtype
        class_source = prior.load_class_images(model, parts["sampling"], cfg.resolution)
        class_source.verify()
    module = build_module(cfg, parts, model.cpu())  # initialize trainable parameters identically on every device
    model.to(device)
    dataset = build_training_dataset(parts, model, training_source, class_source, samples_per_step)
    validation_dataset = validation_source and parts["dataset"].build_dataset(validation_source, model, "held out ")
    run_size = estimate_run_size(module, training, parts["sampling"], prompts, cfg.resolution, steps)
    fill_input_caches(
        module,
        [*dataset.datasets, *([validation_dataset] if validation_source else [])],
        partial(check_disk_space, folder, run_size, training=training),
    )
    apply_memory_format_and_compile(module, dataset, training.compile, device, steps)
    trainer = build_trainer(
        cfg, parts, dataset, validation_dataset, folder, prompts, steps, evaluator, previous_run, checkpoint
    )
    step = build_step_spec(dataset, training, parts["sampling"], cfg.resolution, trainer)
    summary = collect_run_summary(module, dataset, training, parts["schedule"], trainer, step) | {"digests": digests}
    missing_scorers = scorers.missing if scorers else {}
    summary["warnings"] += [f"{name} not measured: {reason}" for name, reason in missing_scorers.items()]
    record, options = RunRecord(folder), flatten_options(cfg, HydraConfig.get().runtime.choices)
    if trainer.is_global_zero:
        description, first_dataset = source.describe(), dataset.datasets[0]
        start_run(record, summary, cfg, description, first_dataset, model, trainer, options, previous_run, resume_step)
    with close_loggers_on_exit(), explain_resource_errors(cfg, folder, trainer):
        with limit_threads(module.model.unet, step.latent_shape):
            fit_and_record(module, dataset, trainer, training, checkpoint, record, options)
        free_training_memory(module, trainer)
        finish_run(record, cfg, module.method, scorers, bool(validation_source), trainer.loggers)
        record.end("finished")
        reproduced = report_reproduction(record, cfg.reproduce) if cfg.reproduce and processes.rank() == 0 else True
        processes.destroy_process_group()
    if not reproduced:
        sys.exit(1)
    return module


def verify_shared_folder(folder: Path) -> Path:
    """`ValueError` when the run folder is not visible to the ranks of another machine."""
    if blind := [str(rank) for rank, visible in enumerate(processes.all_gather(folder.is_dir())) if not visible]:
        raise ValueError(f"{folder}: not visible to rank {', '.join(blind)}; use a file system that all machines share")
    return folder


def build_intermediate_evaluator(cfg: DictConfig, scorers, source, training_source):
    """The evaluator used during training, with fewer images per prompt than the final evaluation."""
    from sdft.evaluation.evaluate import build_prompt_groups, build_protocol, select_evaluation_spec
    from sdft.evaluation.evaluator import Evaluator
    from sdft.training.callbacks.evaluation import check_checkpoint_metric

    if scorers is None:
        raise ValueError(
            f"evaluate_every={cfg.evaluate_every}: no metrics; choose metrics=clip, or metrics=digits for digits"
        )
    evaluation_spec, protocol = source.evaluation_spec(), replace(build_protocol(cfg), images=cfg.evaluate_images)
    groups = build_prompt_groups(cfg, protocol, evaluation_spec, source)
    evaluation_spec = select_evaluation_spec(evaluation_spec, groups)
    evaluator = Evaluator(scorers, protocol, groups, training_source, evaluation_spec)
    check_checkpoint_metric(cfg.checkpoint_metric, evaluator)
    return evaluator


def fill_input_caches(module, datasets: list, check) -> None:
    """Cache the outputs of frozen encoders, which are then offloaded; `check` receives the missing bytes."""
    from sdft.data.latent_cache import fill_caches

    trains_text_encoder = any(name.startswith("text_encoder.") for name in module.get_trainable_parameters())
    cache_text = not trains_text_encoder and not datasets[0].settings.shuffle_tags
    module.offloaded_parts = fill_caches(datasets, module.model, text=cache_text, check=check)


def apply_memory_format_and_compile(module, dataset, compile: str, device, steps: int) -> None:
    """Use channels-last on a GPU and compile the UNet's blocks if `compile` asks for it.

    Call it when the trainable parameters are known. Compiled blocks have no second derivatives, which `smoothness` requires.
    """
    unet = module.model.unet
    if device.type == "cuda":
        set_channels_last(unet)
    if not module.smoothness and should_compile(compile, device, steps):
        num_blocks = compile_blocks(unet, shapes=len({size for part in dataset.datasets for size in part.sizes}))
        if processes.rank() == 0:
            print(f"compile    {num_blocks} blocks; the first steps wait for the compiler", flush=True)


def fit_and_record(module, dataset, trainer, training, checkpoint: Path | None, record: RunRecord, options: dict):
    """Train, and record the outcome (trained, stopped or failed) in `run.json`."""
    from sdft.data.datamodule import TrainingDataModule
    from sdft.training.callbacks.signals import StoppedBySignal

    try:
        num_trainable = sum(p.numel() for p in module.get_trainable_parameters().values())
        for logger in trainer.loggers:
            logger.log_hyperparams(options | {"trainable": num_trainable})
        data = TrainingDataModule(dataset, training.batch_size, training.workers)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except StoppedBySignal as stop:
        record.end("stopped", stopped_at=stop.step)
        if processes.rank() == 0:
            print(f"stopped    by {stop}; resume with resume={record.folder}", flush=True)
        close_loggers(stop.status)
        processes.barrier()
        sys.exit(stop.status)
    except BaseException:
        record.end("failed")
        raise
    processes.barrier()  # rank 0 writes the files that the others read
    record.end("trained", **collect_training_results(trainer, record.folder / module.method.output_kind))
