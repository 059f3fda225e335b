"""A training run in three stages: `prepare` builds it, `fit` trains, `finish` evaluates and records the result."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from omegaconf import DictConfig

import sdft.distributed as processes
from sdft.runs.invocation import Invocation
from sdft.training.build import build_components, build_module, build_trainer
from sdft.training.datasets import build_datasets, fill_input_caches, load_source
from sdft.training.finish import close_loggers_on_exit, finish_run, free_training_memory, report_reproduction
from sdft.training.fit import apply_memory_format_and_compile, fit_and_record
from sdft.training.inputs import RunInputs, load_inputs
from sdft.training.intermediate_evaluation import build_intermediate_evaluation, load_run_scorers
from sdft.training.oom_advice import explain_resource_errors
from sdft.training.run_folder import launch_or_join, open_run_folder
from sdft.training.run_setup import (
    check_given_options,
    check_options,
    check_reproduction,
    collect_summary,
    flatten_options,
    start_run,
)


def train(cfg: DictConfig, invocation: Invocation) -> "TrainingRun":
    """Run one training in `invocation.folder`; return the finished run.

    With several devices and no launcher, launch one process per device, wait, and raise `ExitStatus` with their status.
    User errors raise `ValueError` before anything is written to the folder.
    """
    run = TrainingRun(cfg, invocation)
    folder = launch_or_join(run.parts["strategy"], invocation)
    with open_run_folder(folder, invocation.overrides) as record:
        run.prepare(record)
        with close_loggers_on_exit(), explain_resource_errors(cfg, record.folder, run.trainer):
            run.fit()
            run.finish()
    return run


@dataclass
class TrainingRun:
    """One run of `cfg`. The constructor checks all options without loading data or weights.

    After `prepare` the run has its `module`, `trainer`, `datasets` and `record`; after `finish`, `is_reproduced` says whether a
    run with `reproduce=` is bit-identical to the original.
    """

    cfg: DictConfig
    invocation: Invocation
    is_reproduced: bool = field(default=True, init=False)

    def __post_init__(self):
        cfg = self.cfg
        check_options(cfg)
        self.parts = build_components(cfg, self.invocation.choices)
        check_reproduction(cfg)
        resolved = {"precision": self.parts["precision"].name}
        self.invocation = replace(self.invocation, choices={**self.invocation.choices, **resolved})
        strategy, precision = self.parts["strategy"], self.parts["precision"]
        if not strategy.count_processes_to_launch():
            processes.init_process_group(strategy.on_cpu())
        self.source = load_source(cfg)
        if prior := self.parts["prior"]:
            prior.check_no_overlap(cfg.data.get("path"))
        precision.check_device(strategy.device())
        strategy.check(self.parts["method"].output_kind, precision.needs_grad_scaler)
        self.parts["training"].check_offload(self.parts["method"].output_kind, strategy.device().type)

    @cached_property
    def options(self) -> dict:
        """Top-level options and group choices, as columns for loggers."""
        return flatten_options(self.cfg, self.invocation.choices)

    def prepare(self, record) -> None:
        """Load data and model, fill the caches, build module and trainer, print the summary and write the first files."""
        cfg, parts, folder = self.cfg, self.parts, record.folder
        inputs: RunInputs = load_inputs(cfg, folder, parts, self.source)
        device, training = parts["strategy"].device(), parts["training"]
        self.scorers = load_run_scorers(cfg, parts, device)
        evaluation = None
        if training.evaluate_every:
            evaluation = build_intermediate_evaluation(cfg, self.scorers, self.source, inputs.training_source)
        class_source = inputs.load_class_images(cfg, parts, device)
        inputs.index_data(cfg, folder, self.source, class_source)
        self.module = build_module(
            cfg, parts, inputs.model.cpu()
        )  # trainable parameters start identically on every device
        if not (inputs.previous_run or cfg.sweep):  # whose options were accepted, or are for other jobs
            check_given_options(self.invocation.overrides, self.module, training.part_lr)
        inputs.model.to(device)
        self.datasets = build_datasets(parts, inputs, class_source)
        fill_input_caches(cfg, parts, inputs, self.module, self.datasets, folder)
        apply_memory_format_and_compile(self.module, self.datasets.training, training.compile, device, inputs.steps)
        self.trainer = build_trainer(cfg, parts, self.datasets, folder, inputs, evaluation, self.invocation)
        self.step, summary = collect_summary(
            self.module, self.datasets.training, parts, cfg, self.trainer, inputs, self.scorers
        )
        self.record, self.checkpoint = record, inputs.checkpoint
        start_run(self, summary, inputs)

    def fit(self) -> None:
        """Train; the outcome (trained, stopped or failed) is recorded in `run.json`."""
        training, step = self.parts["training"], self.step
        dataset, options = self.datasets.training, self.options
        fit_and_record(self.module, dataset, self.trainer, training, self.checkpoint, self.record, step, options)

    def finish(self) -> None:
        """Evaluate the result, print where everything is, and compare with the run to reproduce."""
        has_validation = self.datasets.validation is not None
        free_training_memory(self.module, self.trainer)
        finish_run(self.record, self.cfg, self.module.method, self.scorers, has_validation, self.trainer.loggers)
        self.record.end("finished")
        if self.cfg.reproduce and processes.rank() == 0:
            self.is_reproduced = report_reproduction(self.record, self.cfg.reproduce)
        processes.destroy_process_group()
