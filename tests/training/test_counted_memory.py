"""The estimate of a run's memory is within 10 % of the live tensors on the device, counted in the run itself.

Lightning trains three steps on the pretended GPU, and every storage is counted from its first tensor to its end. All that the
estimate adds up is there: weights, masters, gradients, optimizer states, averages and activations, without what is offloaded.
"""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback
from pretended_gpu import GPU, GPUTensor, PretendedGPU

from sdft.data.datamodule import TrainingDataModule
from sdft.data.digits import Digits
from sdft.data.latent_cache import fill_caches
from sdft.data.training_dataset import DataSettings
from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.models.sampling import Sampling
from sdft.training import gradient_checkpointing
from sdft.training.block_offload import offload_frozen_weights
from sdft.training.lr_schedule import LRSchedule
from sdft.training.memory_estimate import count_offloaded_bytes, estimate_memory
from sdft.training.module import DiffusionModule
from sdft.training.monitoring_callbacks import build_monitoring_callbacks
from sdft.training.settings import TrainingSettings
from sdft.training.step_spec import build_step_spec
from sdft.training.trainer import build_lightning_trainer

CPU, STEPS = torch.device("cpu"), 3
ADAMW = partial(torch.optim.AdamW, fused=True)


class LiveStorages(Callback):
    """Bytes of the storages that tensors of the pretended GPU use, and their peak in the steps."""

    def __init__(self):
        self.current = self.peak = 0
        self.known: set[int] = set()

    def add(self, host: torch.Tensor) -> None:
        storage = host.untyped_storage()
        if (key := id(storage)) not in self.known:
            self.known.add(key)
            self.change(storage.nbytes())
            weakref.finalize(storage, self.remove, key, storage.nbytes())

    def remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.change(-size)

    def on_train_batch_start(self, trainer, *_):
        if not trainer.global_step:  # before, the offloaded parts filled the caches
            self.peak = self.current

    def change(self, size: int) -> None:
        self.current += size
        self.peak = max(self.peak, self.current)


def compute_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """The fused kernel, which stores no attention matrix; the pretended GPU has none."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@pytest.fixture
def live_storages(monkeypatch):
    storages, create = LiveStorages(), GPUTensor.__new__

    def create_counted(cls, host, *args):
        storages.add(host)
        return create(cls, host, *args)

    monkeypatch.setattr(GPUTensor, "__new__", staticmethod(create_counted))
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", compute_attention)
    monkeypatch.setattr(gradient_checkpointing, "MIN_OFFLOADED_BYTES", 0)
    return storages


LORA = partial(LoRA, 8, 8.0)
UNET_LORA = partial(LORA, text_encoder=False)
BF16 = {"compute_dtype": torch.bfloat16}
CASES = {
    "LoRA": (LORA, {}, {}),
    "LoRA bf16, checkpointing": (LORA, BF16 | {"checkpointing": True}, {}),
    "LoRA, text not cached": (UNET_LORA, {}, {"cache": "off"}),
    "LoRA bf16, text cached, EMA": (UNET_LORA, BF16, {"ema": 0.9}),
    "LoRA bf16, activations offloaded": (UNET_LORA, BF16 | {"checkpointing": "offload"}, {}),
    "LoRA bf16, blocks offloaded": (UNET_LORA, BF16, {"offload_blocks": 1.0}),
    "LoRA bf16, half of the blocks offloaded": (UNET_LORA, BF16 | {"checkpointing": True}, {"offload_blocks": 0.5}),
    "SFT": (FullFineTuning, {}, {"cache": "off"}),
    "SFT bf16, EMA": (FullFineTuning, BF16 | {"checkpointing": True}, {"ema": 0.9}),
}
FAST = ("LoRA bf16, half of the blocks offloaded", "SFT bf16, EMA")


def build_trainer(training: TrainingSettings, folder, counter: Callback):
    callbacks = build_monitoring_callbacks(training, None)
    del callbacks["validation"]
    options = {"accelerator": "gpu", "devices": 1, "max_steps": STEPS, "logger": False, "enable_checkpointing": False}
    return build_lightning_trainer([*callbacks.values(), counter], default_root_dir=folder, **options)


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_estimate_is_within_a_tenth_of_the_live_tensors_of_a_run(tiny, tmp_path, live_storages, case):
    method, options, settings = CASES[case]
    training = TrainingSettings(steps=STEPS, batch_size=8, log_every=99, ema=settings.get("ema", 0))
    model = tiny()
    with PretendedGPU():
        module = DiffusionModule(
            model, method(), DiffusionLoss(), ADAMW, LRSchedule("constant"), dict.fromkeys(model.parts, 1e-3), **options
        )
        offload_frozen_weights(module, settings.get("offload_blocks", 0), GPU)
        data = DataSettings(32, cache=settings.get("cache", "ram"))
        samples = data.build_dataset(Digits(per_digit=1), model, samples_per_step=8)
        if data.cache != "off":
            is_text_frozen = not module.get_trainable_parts().keys() & model.text_encoders.keys()
            module.offloaded_parts = fill_caches(samples.datasets, model, text=is_text_frozen)
        trainer = build_trainer(training, tmp_path, live_storages)
        step = build_step_spec(samples, training, Sampling(), 32, trainer)
        model.to(GPU)
        trainer.fit(module, TrainingDataModule(samples, batch_size=8))
        module.masters.to(CPU)
    estimate = estimate_memory(module, replace(step, device=CPU, num_images=0))
    expected = estimate.total - count_offloaded_bytes(module)  # which an estimate for the CPU contains
    assert live_storages.peak == pytest.approx(expected, rel=0.1)
