"""Full fine-tuning in little memory: fused backward pass, bf16 weights and states in whole runs."""

from types import SimpleNamespace

import pytest
import torch
from conftest import read_metric_rows
from omegaconf import OmegaConf
from torch import nn

from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.runs.checkpoint_file import read_checkpoint
from sdft.training.adamw_bf16 import AdamWBF16
from sdft.training.bucketed_optimizer import BucketedOptimizer
from sdft.training.callbacks.ema import EMA
from sdft.training.callbacks.gradient_check import ZeroGradientCheck
from sdft.training.module import DiffusionModule
from sdft.training.optimizer_options import check_low_memory_options
from sdft.training.precision import Precision
from sdft.training.settings import TrainingSettings
from sdft.training.strategy import Strategy

SFT = ["method=sft", "precision=bf16_weights", "max_grad_norm=0", "lr=1e-3", "data.per_digit=1"]
TARGETS = {
    "adamw": "torch.optim.AdamW",
    "adamw_bf16": "sdft.training.adamw_bf16.AdamWBF16",
    "prodigy": "prodigyopt.Prodigy",
}


@pytest.fixture
def nan_at_step_2(monkeypatch):
    """The second step's loss is NaN."""
    original = DiffusionModule.compute_losses

    def compute_losses(self, batch):
        return original(self, batch) * (float("nan") if self.trainer.global_step == 1 else 1.0)

    monkeypatch.setattr(DiffusionModule, "compute_losses", compute_losses)


def load_checkpoint(folder) -> dict:
    return read_checkpoint(max((folder / "checkpoints").glob("*.ckpt")))


def list_differences(one: dict, other: dict) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
def test_updates_inside_the_backward_pass_train_the_same_model(run, nan_at_step_2):
    options = [*SFT, "optimizer=adamw_bf16", "steps=3", "ema=0.9", "on_nan=skip"]
    modules, folders = zip(
        *(run(*options, f"fused_backward={fused}", name=fused) for fused in ("true", "false")), strict=True
    )
    fused, separate = map(load_checkpoint, folders)
    assert not list_differences(fused["state_dict"], separate["state_dict"])
    assert {weight.dtype for weight in fused["state_dict"].values()} == {torch.bfloat16}
    assert not list_differences(fused["callbacks"]["ema"]["average"], separate["callbacks"]["ema"]["average"])
    assert float(modules[0].grad_norm) == pytest.approx(float(modules[1].grad_norm), rel=1e-4)
    assert all(int(module.skipped_steps) == 1 for module in modules)
    assert fused["global_step"] == 3 and fused["lr_schedulers"] == separate["lr_schedulers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [*SFT, "fused_backward=true", "optimizer=adamw_bf16", "ema=0.9"],
        [*SFT, "fused_backward=true", "optimizer=adafactor"],
        [*SFT, "optimizer=adamw8bit", "max_grad_norm=0.1", "gradient_accumulation_steps=2"],
        [*SFT, "precision=bf16", "fused_backward=true", "smooth_diffusion_weight=0.1"],
        ["optimizer=adamw_bf16", "precision=bf16"],
    ],
    ids=" ".join,
)
def test_runs_resume_bit_identically(run, options):
    _, uninterrupted = run(*options, "steps=4", "save_every=2", "checkpoints_total_limit=3", name="uninterrupted")
    checkpoint = uninterrupted / "checkpoints" / "step-000002.ckpt"
    _, resumed = run(*options, "steps=4", f"resume={checkpoint}", name="resumed")
    states = [load_checkpoint(folder)["state_dict"] for folder in (uninterrupted, resumed)]
    assert not list_differences(*states)
    assert list_differences(read_checkpoint(checkpoint)["state_dict"], states[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pretrain", "dreambooth"])
def test_other_full_methods_train_in_little_memory(run, method):
    options = ["fused_backward=true", "text_encoder_lr=1e-4", "method.text_encoder=true", "data=digits", "prior=none"]
    module, folder = run(f"method={method}", *SFT[1:], *options, "steps=2")
    weights = load_checkpoint(folder)["state_dict"]
    assert load_checkpoint(folder)["global_step"] == 2 and any("clip_l" in name for name in weights)
    assert int(module.skipped_steps) == 0 and {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.soak  # 100 s
def test_losses_of_200_steps_are_within_a_percent_of_fp32(run):
    fast = ["precision=bf16_weights", "fused_backward=true"]
    options = {
        "fp32": [],
        "bf16": fast,
        "bf16 states": [*fast, "optimizer=adamw_bf16"],
        "8-bit states": [*fast, "optimizer=adamw8bit"],
    }
    common = ["method=sft", "steps=200", "lr=1e-4", "max_grad_norm=0", "data.per_digit=2"]
    folders = {name: run(*common, *given, name=name.replace(" ", "_"))[1] for name, given in options.items()}
    losses = {name: [float(row["train/loss"]) for row in read_metric_rows(folder)] for name, folder in folders.items()}
    reference = losses.pop("fp32")
    assert len(reference) == 200 and sum(reference[-50:]) < 0.7 * sum(reference[:50])
    for name, values in losses.items():
        assert values == pytest.approx(reference, rel=0.03), name
        assert sum(values[-50:]) == pytest.approx(sum(reference[-50:]), rel=0.01), name


def build_options(optimizer: str = "adamw", precision: str = "bfloat16", strategy: str = "auto", devices=1, **options):
    training = {"steps": 1, "fused_backward": True, "max_grad_norm": 0.0} | options
    method, masters = training.pop("method", FullFineTuning()), training.pop("master_weights", True)
    return OmegaConf.create({"optimizer": {"_target_": TARGETS[optimizer]}}), {
        "training": TrainingSettings(**training),
        "method": method,
        "precision": Precision(precision, master_weights=masters),
        "strategy": Strategy(strategy, "cpu", devices),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": 1.0}, "fused_backward=true: max_grad_norm=1.0 .*; use max_grad_norm=0"),
        ({"gradient_accumulation_steps": 2}, "fused_backward=true: gradient_accumulation_steps=2 "),
        ({"strategy": "ddp", "devices": 2}, "fused_backward=true: 2 processes"),
        ({"strategy": "fsdp", "devices": 2}, "fused_backward=true: 2 processes"),
        ({"precision": "float16"}, "fused_backward=true: .*fp16"),
        ({"optimizer": "prodigy"}, "fused_backward=true: Prodigy .*; use optimizer=adamw"),
        ({"method": LoRA(4, 4)}, "fused_backward=true: for full fine-tuning only"),
        ({"fused_backward": False, "master_weights": False, "method": LoRA(4, 4)}, "precision=bf16_weights: for full"),
        ({"fused_backward": False, "master_weights": False, "optimizer": "prodigy"}, "precision=bf16_weights: Prodigy"),
        (
            {"fused_backward": False, "master_weights": False, "strategy": "fsdp", "devices": 2},
            "precision=bf16_weights: strategy=fsdp",
        ),
        ({"fused_backward": False, "optimizer": "adamw_bf16", "precision": "float16"}, "optimizer=adamw_bf16: .*fp16"),
    ],
    ids=str,
)
def test_combinations_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_low_memory_options(*build_options(**options))


def test_other_combinations_are_accepted():
    for options in (
        {},
        {"master_weights": False},
        {"fused_backward": False, "max_grad_norm": 1.0, "optimizer": "adamw_bf16", "method": LoRA(4, 4)},
        {"fused_backward": False, "master_weights": False, "strategy": "ddp", "devices": 2},
        {"fused_backward": False, "optimizer": "prodigy", "precision": "float16"},
    ):
        check_low_memory_options(*build_options(**options))


def test_the_default_clipping_is_refused_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("sdft.training.training_run.load_inputs", None)
    with pytest.raises(ValueError, match=r"fused_backward=true: max_grad_norm=1\.0"):
        run("method=sft", "fused_backward=true")


def test_bf16_weights_require_bf16():
    with pytest.raises(ValueError, match="precision.master_weights=false: requires compute_dtype=bfloat16"):
        Precision("float16", master_weights=False)


def build_fused_optimizer(network) -> BucketedOptimizer:
    optimizer = BucketedOptimizer([{"params": [*network.parameters()], "lr": 1e-3}], AdamWBF16, 0, fused_backward=True)
    optimizer.connect({})
    return optimizer


@pytest.mark.parametrize("is_used", [True, False])
def test_a_layer_without_gradient_is_found_although_gradients_are_freed(is_used):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    trainer = SimpleNamespace(global_step=0, optimizers=[build_fused_optimizer(network)])
    method = SimpleNamespace(output_kind="pipeline")
    model = SimpleNamespace(
        empty_caption="", named_parameters=network.named_parameters, get_parameter=network.get_parameter
    )
    parameters = dict(network.named_parameters())
    module = SimpleNamespace(method=method, model=model, get_trainable_parameters=lambda: parameters)
    check = ZeroGradientCheck()
    check.on_train_start(trainer, module)
    (
        network(torch.ones(1, 2)) if is_used else network[1](torch.ones(1, 2)) + 0 * network[0].weight.sum()
    ).sum().backward()
    if is_used:
        check.on_before_optimizer_step(trainer, module, None)
        assert not network[0].weight._backward_hooks
    else:
        with pytest.raises(ValueError, match="^0 of 2 trainable layers got no gradient"):
            check.on_before_optimizer_step(trainer, module, None)


def test_the_average_of_bf16_weights_moves_by_less_than_their_resolution():
    weight, module = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), SimpleNamespace()
    module.get_trainable_parameters = lambda: {"weight": weight}
    ema, trainer = EMA(0.999), SimpleNamespace(global_step=0, optimizers=[])
    ema.on_train_start(trainer, module)
    ema.updates = 10**5
    for value in (1.0, 2.0):
        trainer.global_step += 1
        weight.data.fill_(value)
        ema.on_train_batch_end(trainer, module, None, None, 0)
    assert ema.average["weight"].tolist() == pytest.approx([1.001] * 3)
    module.trainer, module.masters = trainer, SimpleNamespace(refresh_networks=lambda: None)
    with ema.apply_averages(module):
        assert weight.dtype is torch.bfloat16 and weight.tolist() == [1.0] * 3
    assert weight.tolist() == [2.0] * 3
