"""Operations that a GPU would launch per step and per UNet call: python benchmarks/launches.py [precision=bf16] [sd15 sdxl sd21]

With compile=regional also those of our step with compiled blocks (`compiled_launches.py`), which takes minutes.

Counted, not measured: our step and the bare loop of diffusers and peft run on tensors without data
(`sdft.training.fake_tensors`), and each operation but views and allocations counts as one, as do a fused attention and a foreach
call. Batch size 1, cached latents and captions, LoRA of rank 16 on the attention layers of the UNet.
"""

import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from accelerate import init_empty_weights
from compiled_launches import count_block_kernels, remove_blocks
from measurement import report_table, split_options
from memory import RESOLUTIONS, build_sample
from torch import Tensor

from sdft.lora.scaling import disable_adapters
from sdft.losses.diffusion import DiffusionLoss
from sdft.methods.lora import LoRA
from sdft.models.embedded import ASSETS_FOLDER
from sdft.models.loading import build_untrained
from sdft.training.fake_tensors import FakeTensor, FakeTensorMode, copy_with_tensors
from sdft.training.memory_estimate import build_fake_module, build_fake_sample
from sdft.training.module import DiffusionModule
from sdft.training.step_spec import StepSpec

RANK = 16
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PHASES = ("inputs", "forward", "loss", "backward", "gradients", "optimizer")
CAST = "_to_copy"
VIEWS = """
    detach view _unsafe_view alias t transpose permute expand unsqueeze squeeze slice select split split_with_sizes chunk unbind
    as_strided lift_fresh _reshape_alias narrow diagonal movedim view_as_real unfold
"""
ALLOCATIONS = "empty empty_like empty_strided new_empty new_empty_strided set_ resize_"
QUESTIONS = "is_pinned _local_scalar_dense sym_size sym_stride is_same_size device"
PROFILER = "_record_function_enter_new _record_function_exit"
# operations that launch nothing
FREE = {*VIEWS.split(), *ALLOCATIONS.split(), *QUESTIONS.split(), *PROFILER.split()}


class LaunchCounter(FakeTensorMode):
    """Fake tensors whose operations are counted in `counts` by (phase, name)."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.counts, self.phase = Counter(), ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if self.phase and name not in FREE:
            self.counts[self.phase, name] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)

    @contextmanager
    def count(self, phase: str):
        """Count under `phase` inside the context."""
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = outer

    def total(self, phase: str | None = None, name: str | None = None) -> int:
        """Operations of a phase, or of a name in all phases."""
        return sum(n for key, n in self.counts.items() if phase in (None, key[0]) and name in (None, key[1]))


@contextmanager
def use_foreach_kernels():
    """Let torch treat fake tensors as those of a GPU, whose norms and optimizers take all parameters at once."""
    with (
        mock.patch("torch.utils._foreach_utils._foreach_supported_types", [Tensor, torch.nn.Parameter, FakeTensor]),
        mock.patch("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", lambda: ["cpu"]),
    ):
        yield


def build_lora_module(model, dtype: torch.dtype) -> DiffusionModule:
    """The training module of a model without weights."""
    with torch.device("meta"):
        method = LoRA(RANK, RANK, text_encoder=False)
        rates = dict.fromkeys(model.parts, 1e-4)
        optimizer = partial(torch.optim.AdamW, fused=True)
        module = DiffusionModule(model, method, DiffusionLoss(), optimizer, None, rates, compute_dtype=dtype)
    module.offloaded_parts = ["vae", *model.text_encoders]
    return module


def build_untrained_model(architecture: str):
    with init_empty_weights():
        return build_untrained(ASSETS_FOLDER / architecture)


def build_step(model, dtype: torch.dtype, resolution: int) -> tuple[DiffusionModule, StepSpec]:
    module = build_lora_module(model, dtype)
    with torch.device("meta"):
        sample = build_sample(model, resolution)
    return module, StepSpec(sample, 1, 1, torch.device("cpu"), num_images=1, resolution=resolution)


def count_step(model, dtype: torch.dtype, resolution: int, compiled: bool = False) -> LaunchCounter:
    """Operations of our training step, by phase."""
    module, step = build_step(model, dtype, resolution)
    with LaunchCounter() as counter, use_foreach_kernels():
        fake = build_fake_module(module, step, counter)
        if compiled:
            remove_blocks(fake.model.unet)
        batch = {name: counter.empty_like(tensor) for name, tensor in build_fake_sample(fake, step).items()}
        pretend_trainer(fake)
        optimizer = fake.configure_optimizers()[0][0]
        count_calls(counter, fake.model, "predict", "forward")
        count_calls(counter, fake, "prepare_inputs", "inputs")
        create_optimizer_states(optimizer)
        with counter.count("loss"):
            loss = fake.training_step(batch, 0)["loss"]
        with counter.count("backward"):
            loss.backward()
        with counter.count("gradients"):
            fake.on_after_backward()
            fake.configure_gradient_clipping(optimizer)
        with counter.count("optimizer"):
            optimizer.step()
            fake.masters.refresh_networks()
            optimizer.zero_grad(set_to_none=True)
    if compiled:
        counter.counts.update(count_block_kernels(module, resolution))
    return counter


def create_optimizer_states(optimizer: torch.optim.Optimizer) -> None:
    """Take the step that creates them, with gradients of 0."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def pretend_trainer(module: DiffusionModule) -> None:
    """What the module asks its trainer during a step."""
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
    trainer = SimpleNamespace(precision_plugin=None, strategy=strategy, global_step=0, max_steps=1)
    vars(module).update(_trainer=trainer, schedule=lambda optimizer, steps: None)


def count_calls(counter: LaunchCounter, owner, method: str, phase: str) -> None:
    """Count the operations of a method under `phase`."""
    call = getattr(owner, method)

    def counted(*args, **kwargs):
        with counter.count(phase):
            return call(*args, **kwargs)

    vars(owner)[method] = counted


def count_bare_step(architecture: str, dtype: torch.dtype, resolution: int) -> LaunchCounter:
    """Operations of the step of diffusers' training script with everything in `dtype`, by phase."""
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    model = build_untrained_model(architecture)
    with torch.device("meta"):
        sample = build_sample(model, resolution)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        model.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    scheduler = DDPMScheduler.from_config(model.scheduler.config)
    with LaunchCounter() as counter, use_foreach_kernels():
        unet = copy_to_fake(model.unet, counter, dtype)
        fake = {name: counter.empty_like(tensor) for name, tensor in sample.items()}
        scheduler.alphas_cumprod = counter.empty_like(scheduler.alphas_cumprod)
        trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, fused=True)
        create_optimizer_states(optimizer)
        with counter.count("inputs"):
            latents, noise = fake["mean"], torch.randn_like(fake["mean"])
            timesteps = torch.randint(0, 1000, (1,))
            noisy = scheduler.add_noise(latents, noise, timesteps).to(dtype)
            arguments = build_network_inputs(model, fake, dtype)
        with counter.count("forward"):
            prediction = unet(noisy, timesteps, **arguments).sample
        with counter.count("loss"):
            loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        with counter.count("backward"):
            loss.backward()
        with counter.count("gradients"):
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        with counter.count("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return counter


def copy_to_fake(network, counter: LaunchCounter, dtype: torch.dtype):
    """A copy of a network with fake weights in `dtype`."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy_with_tensors(network, {tensor: counter.empty_like(tensor, dtype=dtype) for tensor in tensors}, [])


def build_network_inputs(model, sample: dict[str, Tensor], dtype: torch.dtype) -> dict:
    """The text and the geometry as arguments of diffusers' UNet."""
    arguments = {"encoder_hidden_states": sample["context"].to(dtype)}
    if model.image_inputs:
        added = {"text_embeds": sample["pooled"].to(dtype), "time_ids": sample["geometry"]}
        arguments["added_cond_kwargs"] = added
    return arguments


def count_unet_call(architecture: str, dtype: torch.dtype, resolution: int, has_adapter: bool) -> LaunchCounter:
    """Operations of one UNet call of guided sampling, with the adapter or without."""
    module, step = build_step(build_untrained_model(architecture), dtype, resolution)
    with LaunchCounter() as counter, torch.no_grad():
        model = build_fake_module(module, step, counter).model.eval()
        sample = {name: counter.empty_like(tensor) for name, tensor in build_fake_sample(module, step).items()}
        pair = model.condition(sample).join(model.condition(sample))
        noisy, timestep = torch.cat([sample["noise"]] * 2), torch.ones(())
        adapters = nullcontext() if has_adapter else disable_adapters(model)
        with counter.count("forward"), adapters:
            model.predict(noisy, timestep, pair)
    return counter


def count_all(architecture: str, precision: str, compile: str = "off") -> dict[str, LaunchCounter]:
    dtype, resolution = PRECISIONS[precision], RESOLUTIONS[architecture]
    compiled = {}
    if compile == "regional":
        compiled["our step, compiled"] = count_step(
            build_untrained_model(architecture), dtype, resolution, compiled=True
        )
    return compiled | {
        "our step": count_step(build_untrained_model(architecture), dtype, resolution),
        "bare step": count_bare_step(architecture, dtype, resolution),
        "our UNet call with the adapter": count_unet_call(architecture, dtype, resolution, has_adapter=True),
        "our UNet call": count_unet_call(architecture, dtype, resolution, has_adapter=False),
    }


def main(args: list[str]) -> None:
    options, architectures = split_options(args, json="", precision=",".join(PRECISIONS), compile="off")
    rows, operations = [("model", "precision", "what", *PHASES, "total", "casts")], {}
    for architecture in architectures or ["sd15", "sdxl"]:
        for precision in options["precision"].split(","):
            for what, counter in count_all(architecture, precision, options["compile"]).items():
                phases = [counter.total(phase) or "" for phase in PHASES]
                rows.append((architecture, precision, what, *phases, counter.total(), counter.total(name=CAST)))
                names = {f"{phase} {name}": count for (phase, name), count in sorted(counter.counts.items())}
                operations[f"{architecture} {precision} {what}"] = names
    file = Path(options["json"]) if options["json"] else None
    report_table("operations, counted", rows, file, operations=operations)


if __name__ == "__main__":
    main(sys.argv[1:])
