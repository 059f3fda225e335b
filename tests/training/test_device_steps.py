"""Steps on a pretended GPU: one device, one dtype per operation, no copies but the batch, and no waits but those in `WAITS`."""

import copy
from functools import partial

import bitsandbytes
import prodigyopt
import pytest
import schedulefree
import torch
from lightning import Callback
from pairs import cover_pairs, describe_case
from pretended_gpu import GPU, GPUTensor, PretendedGPU
from small_models import ONE_LEVEL_UNET

from sdft.data.datamodule import TrainingDataModule
from sdft.data.digits import Digits
from sdft.data.latent_cache import fill_caches
from sdft.data.prior_preservation import PriorPreservationDataset
from sdft.data.training_dataset import DataSettings
from sdft.data.transforms import apply_caption_template
from sdft.losses.consistency import LatentConsistencyLoss
from sdft.losses.diffusion import DiffusionLoss
from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.methods.full import FullFineTuning
from sdft.methods.lcm_lora import LCMLoRA
from sdft.methods.lora import LoRA
from sdft.methods.pretrain import Pretrain
from sdft.methods.textual_inversion import TextualInversion
from sdft.rng import Draw
from sdft.training.build import disable_fused
from sdft.training.fit import apply_memory_format_and_compile
from sdft.training.lr_schedule import LRSchedule
from sdft.training.module import DiffusionModule
from sdft.training.monitoring_callbacks import build_monitoring_callbacks
from sdft.training.precision import Precision
from sdft.training.settings import TrainingSettings
from sdft.training.trainer import build_lightning_trainer

TOKEN = "<mine>"
METHODS = {
    "lora": lambda: LoRA(2, 2.0, text_encoder=True, dropout=0.1),
    "dora": lambda: LoRA(2, 2.0, text_encoder=False, use_dora=True, loraplus_lr_ratio=16.0),
    "lokr": lambda: LoRA(2, 2.0, text_encoder=False, adapter_type="lokr"),
    "sft": lambda: FullFineTuning(text_encoder=True),
    "pretrain": Pretrain,
    "textual_inversion": lambda: TextualInversion(TOKEN),
    "lcm_lora": lambda: LCMLoRA(2, 2.0),
}
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-3, eps=(None, 1.0)),
    "adamw8bit": bitsandbytes.optim.AdamW8bit,
    "prodigy": prodigyopt.Prodigy,
    "schedule_free": schedulefree.AdamWScheduleFree,
}
WAITS = {  # functions in which the host waits in each step
    "adamw": set(),
    "scaler": {"optimizer_step", "lr_scheduler_step"},  # both ask whether it skips the step
    "adafactor": {"skip_nonfinite_step", "optimizer_step"},  # torch reads two norms per weight
    "adamw8bit": {"skip_nonfinite_step", "sync_gpu"},  # after all weights
    "prodigy": {"skip_nonfinite_step", "step"},  # reads the sums from which it estimates the rate, per weight
    "schedule_free": {"skip_nonfinite_step"},
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SWITCH = (False, True)
CASES = cover_pairs(
    {
        "method": METHODS,
        "precision": PRECISIONS,
        "model": ["sd", "sdxl"],
        "cache": ["ram", "off"],
        "accumulation": [1, 2],
        **dict.fromkeys(("checkpointing", "ema", "prior", "smooth"), SWITCH),
    },
    is_valid=lambda case: (
        not (case["method"] == "lcm_lora" and case["prior"])
        and not (case["model"] == "sdxl" and (case["smooth"] or case["checkpointing"]))  # as for Stable Diffusion
    ),
)
WARM_UP, STEPS = 1, 2  # the gradients of the first step are checked for zeros on the host


class PhaseMarker(Callback):
    """Call the steps after the warm-up `step`; the weights are on the GPU until training ends."""

    def __init__(self, gpu: PretendedGPU):
        self.gpu = gpu

    def on_train_batch_end(self, trainer, *_):
        self.gpu.phase = "step" if WARM_UP <= trainer.global_step < STEPS else ""

    def on_train_end(self, trainer, module):
        assert all(isinstance(p, GPUTensor) for p in module.get_trainable_parameters().values())


@pytest.fixture(scope="module")
def base_models(tiny, small_xl):
    """Models with few operations per step."""
    return {name: shrink_unet(model) for name, model in {"sd": tiny(), "sdxl": small_xl()}.items()}


def shrink_unet(model):
    return model.replace_networks({"unet": type(model.unet).from_config(dict(model.unet.config) | ONE_LEVEL_UNET)})


def build_samples(model, case: dict):
    """Two samples per step, or two pairs with class images; with their caches, and the parts that they make needless."""
    settings = DataSettings(32, cache=case["cache"])
    images = apply_caption_template(Digits(per_digit=1), f"{{caption}} {TOKEN}")
    samples = settings.build_dataset(images, model, samples_per_step=2 * case["accumulation"])
    if case["prior"]:
        class_images = settings.build_dataset(Digits(per_digit=1), model, Draw.CLASS_IMAGES)
        samples = PriorPreservationDataset(samples, class_images, 1.0)
    return samples


def build_module(model, case: dict, optimizer) -> DiffusionModule:
    is_distillation = case["method"] == "lcm_lora"
    return DiffusionModule(
        model,
        METHODS[case["method"]](),
        LatentConsistencyLoss() if is_distillation else DiffusionLoss(noise_offset=0.1, input_perturbation=0.1),
        optimizer,
        LRSchedule("cosine", warmup=1),
        dict.fromkeys(model.parts, 1e-3),
        compute_dtype=getattr(torch, PRECISIONS[case["precision"]]),
        checkpointing=case["checkpointing"],
        smoothness=SmoothDiffusionLoss(1.0) if case["smooth"] else None,
    )


def train(base, case: dict, optimizer, folder) -> PretendedGPU:
    """Two steps with the callbacks of a run; the weights stay on the pretended GPU."""
    tokenizers = {} if case["method"] == "textual_inversion" else {id(one): one for one in base.tokenizers}  # slow
    model = copy.deepcopy(base, tokenizers)
    training = TrainingSettings(steps=STEPS, log_every=99, ema=0.9 * case["ema"])
    with PretendedGPU() as gpu:
        module = build_module(model, case, optimizer)
        samples, trains_text = build_samples(model, case), module.get_trainable_parts().keys() & model.text_encoders
        module.offloaded_parts = fill_caches(samples.datasets, model, text=not trains_text)
        model.to(GPU)
        apply_memory_format_and_compile(module, samples, "off", GPU, STEPS)
        callbacks = build_monitoring_callbacks(training, None)
        del callbacks["validation"]
        trainer = build_lightning_trainer(
            [*callbacks.values(), PhaseMarker(gpu)],
            accelerator="gpu",
            devices=1,
            plugins=Precision(PRECISIONS[case["precision"]]).build_plugins(),
            max_steps=STEPS,
            accumulate_grad_batches=case["accumulation"],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(module, TrainingDataModule(samples, batch_size=2))
    return gpu


def list_copies(gpu: PretendedGPU) -> set[str]:
    """Where a step copies to the device anything but its batch."""
    return {event.line for event in gpu.uploads if event.phase == "step" and "apply_func.py" not in event.line}


def list_waits(gpu: PretendedGPU) -> set[str]:
    """The functions in which a step waits for the device."""
    return {event.line.split()[-1] for event in gpu.syncs if event.phase == "step"}


@pytest.mark.parametrize("case", CASES, ids=describe_case)
def test_a_step_stays_on_the_device_and_does_not_wait_for_it(base_models, tmp_path, case):
    is_fp16 = case["precision"] == "fp16"
    optimizer = disable_fused(OPTIMIZERS["adamw"]) if is_fp16 else OPTIMIZERS["adamw"]
    gpu = train(base_models[case["model"]], case, optimizer, tmp_path)
    assert list_waits(gpu) == WAITS["scaler" if is_fp16 else "adamw"] and not list_copies(gpu)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw"])
def test_an_optimizer_waits_only_where_it_cannot_do_otherwise(base_models, tmp_path, optimizer):
    """Those that are not fused also wait to skip a step with a NaN gradient."""
    gpu = train(base_models["sd"], CASES[0], OPTIMIZERS[optimizer], tmp_path)
    assert list_waits(gpu) == WAITS[optimizer] and not list_copies(gpu)
