"""Every two values of these options train two steps together, or are refused by name before the first."""

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch
from forked import compile_without_kernels, start_forked_ranks, wait_for_success
from pairs import cover_pairs, describe_case
from pretended_gpu import PretendedGPU
from small_models import ONE_LEVEL_UNET, write_configs

from sdft.training import training_run

OPTIONS = {
    "method": {
        "sft": ["method.text_encoder=true"],
        "lora": [],
        "pretrain": [],
        "textual_inversion": [],
        "lcm_lora": ["method.unet_targets=[to_q,conv1]"],
        "dreambooth": ["data=digits", "instance_prompt=a sks one", "class_prompt=a one", "num_class_images=2"],
    },
    "objective": {
        "denoising": ["objective=denoising"],
        "huber": ["objective=denoising", "loss=huber", "weighting=debiased"],
        "consistency": ["objective=consistency"],
        "smooth": ["smooth_diffusion_weight=1"],
    },
    "compile": {"off": [], "auto": ["compile=auto"], "regional": ["compile=regional"]},
    "precision": {"fp32": [], "bf16": [], "bf16_weights": [], "fp16": ["accelerator=gpu"]},
    "fused_backward": {"false": [], "true": ["max_grad_norm=0"]},
    "strategy": {"auto": [], "ddp": ["devices=2"], "fsdp": ["devices=2"]},
    "optimizer": {"adamw": [], "adamw_bf16": [], "adafactor": [], "adamw8bit": [], "prodigy": [], "schedule_free": []},
}
GROUPS = ("method", "precision", "fused_backward", "strategy", "optimizer")
SHORT = ["steps=2", "batch_size=2", "data.per_digit=1", "data.digits=[0,1]", "resolution=32", "cache=ram"]
SHORT += ["sampling.steps=1", "prompts=[one]"]
FULL_METHODS = ("sft", "pretrain", "dreambooth")
NO_MACHINE = [{"fp16", "ddp"}, {"fp16", "regional"}]  # the pretended GPU has one process, and no compiler


def is_refused(case: dict) -> bool:
    is_distillation = case["method"] == "lcm_lora"
    if case["objective"] != "smooth" and is_distillation != (case["objective"] == "consistency"):
        return True
    if case["objective"] == "smooth" and (case["compile"] == "regional" or case["strategy"] == "fsdp"):
        return True
    if is_refused_in_buckets(case):
        return True
    fsdp_refuses = {"fp16", "adafactor", "adamw8bit"} & set(case.values()) or case["method"] not in FULL_METHODS
    return case["strategy"] == "fsdp" and bool(fsdp_refuses)


def is_refused_in_buckets(case: dict) -> bool:
    """Weights that are updated in buckets are whole, and independent of each other."""
    is_fused, has_bf16_weights = case["fused_backward"] == "true", case["precision"] == "bf16_weights"
    is_bucketed = is_fused or has_bf16_weights or case["optimizer"] == "adamw_bf16"
    if is_bucketed and {"fp16", "fsdp", "prodigy", "schedule_free"} & set(case.values()):
        return True
    return (is_fused and case["strategy"] == "ddp") or (
        (is_fused or has_bf16_weights) and case["method"] not in FULL_METHODS
    )


def is_trained(case: dict) -> bool:
    return not is_refused(case) and not any(pair <= set(case.values()) for pair in NO_MACHINE)


CASES = cover_pairs(OPTIONS, is_trained)
DISTRIBUTED = [case for case in CASES if case["strategy"] != "auto"]
SINGLE = [case for case in CASES if case["strategy"] == "auto"]


def list_overrides(case: dict) -> list[str]:
    groups = [f"{option}={value}" for option, value in case.items() if option in GROUPS]
    return [*groups, *SHORT, *(override for option, value in case.items() for override in OPTIONS[option][value])]


def find_refused_pairs() -> list[dict]:
    """A case for each pair of values that no trained case has, otherwise of the first values with which it is refused."""
    trained = {pair for case in CASES for pair in combinations(case.items(), 2)}
    values = [(option, value) for option, choices in OPTIONS.items() for value in choices]
    defaults = {option: next(iter(choices)) for option, choices in OPTIONS.items()}
    pairs = [pair for pair in combinations(values, 2) if pair[0][0] != pair[1][0] and pair not in trained]
    cases = [defaults | dict(pair) for pair in pairs]
    return [case for case in cases if is_refused(case)]


def find_machine(case: dict):
    """The context of a run: fp16 needs a GPU."""
    return PretendedGPU() if case["precision"] == "fp16" else nullcontext()


@pytest.fixture(scope="module")
def model_overrides(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_configs("tiny-sd", folder, {"unet/config.json": ONE_LEVEL_UNET})
    return [f"model.name={folder}", "model.weights=random"]


@pytest.mark.parametrize("case", find_refused_pairs(), ids=describe_case)
def test_a_pair_that_cannot_be_trained_is_refused_by_name(run, model_overrides, monkeypatch, case):
    monkeypatch.setattr(training_run, "load_inputs", None)
    with pytest.raises(ValueError) as error, find_machine(case):
        run(*model_overrides, *list_overrides(case))
    assert any(f"{option}={value}" in str(error.value) for option, value in case.items())


@pytest.mark.slow
@pytest.mark.parametrize("case", SINGLE, ids=describe_case)
def test_pairs_train_in_one_process(run, model_overrides, monkeypatch, case):
    monkeypatch.setattr(torch, "compile", torch.compile)
    compile_without_kernels()
    with find_machine(case):
        _, folder = run(*model_overrides, *list_overrides(case))
    assert (folder / "run.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("case", DISTRIBUTED, ids=describe_case)
def test_pairs_train_in_two_processes(tmp_path, model_overrides, case):
    overrides = [*list_overrides(case), "logger=none", "metrics=none", "validate_every=0", "accelerator=cpu"]
    run_folder = f"hydra.run.dir={tmp_path / 'run'}"
    wait_for_success(
        start_forked_ranks(*model_overrides, *overrides, run_folder, cwd=tmp_path, prepare=compile_without_kernels)
    )
