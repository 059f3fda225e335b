"""fp16 training with a gradient scaler, on the CPU; checkpoints include the scaler's state."""

from functools import partial

import pytest
import torch
from lightning import Trainer

from sdft.data.datamodule import TrainingDataModule
from sdft.data.digits import Digits
from sdft.data.training_dataset import DataSettings
from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.lora import LoRA
from sdft.models.sampling import Sampling
from sdft.training.build import disable_fused
from sdft.training.gradient_scaling import GradientScaling
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule

HALF = torch.float16


@pytest.fixture(scope="module")
def fp16_run(tiny, tmp_path_factory):
    model = tiny()
    samples = DataSettings(32).build_dataset(Digits(per_digit=2), model, samples_per_step=2)
    optimizer = disable_fused(partial(torch.optim.AdamW, lr=1e-3, fused=True))
    schedule, lr = LRSchedule("linear"), {"unet": 1e-3, "clip_l": 1e-3}
    module = DiffusionModule(
        model, LoRA(4, 4), DiffusionLoss(), optimizer, schedule, lr, max_grad_norm=1.0, compute_dtype=HALF
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=10_000)  # the first steps overflow
    trainer = Trainer(
        plugins=[GradientScaling("cpu", scaler)],
        accelerator="cpu",
        max_steps=20,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path_factory.mktemp("fp16"),
    )
    trainer.fit(module, TrainingDataModule(samples, batch_size=2))
    return module, trainer


def test_the_scaler_skips_overflows_and_the_schedule_waits(fp16_run):  # pitfall 7
    module, trainer = fp16_run
    scale = trainer.precision_plugin.scaler.get_scale()
    skipped = round(torch.log2(torch.tensor(2.0**24 / scale)).item())
    assert skipped > 0
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 20 - skipped
    assert all(torch.isfinite(p).all() for p in module.get_trainable_parameters().values())
    assert any(p.any() for n, p in module.get_trainable_parameters().items() if ".lora_B." in n)
    assert 0 < module.grad_norm < 100  # of unscaled gradients


def test_overflows_are_not_counted_as_nan_losses(fp16_run):
    assert int(fp16_run[0].skipped_steps) == 0


def test_the_scaler_is_checkpointed(fp16_run, tmp_path):
    _, trainer = fp16_run
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["GradientScaling"]
    assert saved["scale"] == trainer.precision_plugin.scaler.get_scale()


def test_sampling_in_fp16_keeps_the_vae_in_fp32(fp16_run):
    module, _ = fp16_run
    (image,) = Sampling(steps=2)(module.model, ["a handwritten one"], 32)
    assert image.size == (32, 32) and module.model.vae.dtype == torch.float32
