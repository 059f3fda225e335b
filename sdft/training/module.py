"""The training step: a model, a method, an objective, and the learning rate of each part."""

from contextlib import nullcontext
from functools import partial

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sdft.losses.diffusion import DiffusionLoss
from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.methods.base import Method
from sdft.models.stable_diffusion import StableDiffusion
from sdft.rng import make_generator
from sdft.training.fsdp import gather_full_tensor, is_sharded, shard_model

RESUMED_STATE = {
    "grad_norm": torch.float32,
    "skipped_steps": torch.long,
    "last_skipped_step": torch.long,
}  # that a resumed run goes on with


class DiffusionModule(LightningModule):
    """What learns is fp32 and in train mode; what is frozen is in evaluation mode, and beside an adapter in `compute_dtype`."""

    strict_loading = False  # checkpoints hold only what learns

    def __init__(
        self,
        model: StableDiffusion,
        method: Method,
        objective: DiffusionLoss,
        optimizer,
        schedule,
        lr: dict[str, float],
        max_grad_norm: float = 1.0,
        compute_dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        seed: int = 0,
        smoothness: SmoothDiffusionLoss | None = None,
    ):
        """`optimizer` makes an optimizer from parameter groups, `schedule` maps it and the run's steps to a scheduler,
        `lr` is the rate of each of `model.parts`; `max_grad_norm` is the largest gradient norm (0: any)."""
        super().__init__()
        objective.check(model)
        self.num_base_parameters = sum(
            p.numel() for p in model.parameters()
        )  # of the base, without what the method adds
        torch.manual_seed(seed)
        method.prepare(model)
        self.model, self.method, self.objective = model, method, objective
        self.optimizer, self.schedule, self.lr, self.max_grad_norm = optimizer, schedule, lr, max_grad_norm
        self.seed, self.smoothness = seed, smoothness
        self.grad_norm: Tensor | None = None
        self.has_nonfinite_loss: Tensor | bool = False  # whether a loss of this step was no number
        self.skipped_steps: Tensor | None = None  # steps whose gradient was no number, and the last of them
        self.offloaded_parts: list[str] = []  # parts that training does without
        if not self.get_trainable_parameters():
            raise ValueError(f"{type(method).__name__} leaves nothing to learn; turn on a part of the method")
        cast_parameters(
            model, compute_dtype, frozen=torch.float32 if method.output_kind == "pipeline" else compute_dtype
        )
        for name, module in model.named_modules():
            module.training = ".lora_dropout" in name or any(p.requires_grad for p in module.parameters())
        if checkpointing:
            enable_gradient_checkpointing(model)

    def configure_model(self):
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])

    def get_trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def compute_losses(self, batch: dict) -> Tensor:
        """Weighted loss of each sample `[batch]`."""
        inputs = self.encode_batch(batch)
        losses = self.objective(self.model, *inputs, batch)
        return losses + self.smoothness(self.model, *inputs, batch) if self.smoothness else losses

    def compute_unweighted_losses(self, batch: dict) -> Tensor:
        """Loss of each sample `[batch]` before weighting: what runs with different weightings are compared by."""
        return self.objective.compute_unweighted_losses(self.model, *self.encode_batch(batch), batch)

    def encode_batch(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Latents `[batch, 4, h/8, w/8]` and what the UNet attends to `[batch, tokens, width]`."""
        moments = (batch["mean"], batch["std"]) if "mean" in batch else self.model.moments(batch["pixels"])
        context = batch["context"] if "context" in batch else self.model.condition(batch["ids"])
        return self.model.latents(*moments, batch["posterior"]), context

    def on_train_start(self):
        for part in self.offloaded_parts:
            getattr(self.model, part).to("cpu")
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, "train"):  # schedule-free ones start elsewhere
                optimizer.train()

    def on_train_batch_start(self, batch, batch_idx):
        """Dropout inside the networks draws from the global generator: let the batch decide, not the past."""
        seed = make_generator(self.seed, "dropout", batch_idx, self.global_rank).initial_seed()
        torch.default_generator.manual_seed(seed)  # not torch's own, which keeps a note for every absent kind of device
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def training_step(self, batch: dict, _) -> dict:
        losses = self.compute_losses(batch)
        loss = (losses * batch["weight"] * batch["sample_weight"]).mean()
        self.has_nonfinite_loss = ~loss.detach().isfinite() | self.has_nonfinite_loss
        return {
            "loss": loss,
            "losses": losses.detach(),
            "timestep": batch["timestep"],
        }

    def configure_optimizers(self):
        groups = []
        for part, module in self.model.parts.items():
            rates: dict[float, list] = {}
            for name, p in module.named_parameters():
                if p.requires_grad:
                    rates.setdefault(self.method.get_lr_multiplier(name), []).append(p)
            for rate, parameters in sorted(rates.items()):
                name = part if rate == 1 else f"{part}_x{rate:g}"
                groups.append({"params": parameters, "lr": self.lr[part] * rate, "name": name})
        optimizer = self.optimizer(groups)
        return [optimizer], [{"scheduler": self.schedule(optimizer, self.trainer.max_steps), "interval": "step"}]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip by the norm over all that learns, and keep the norm before clipping, on the device."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.grad_norm = gather_full_tensor(
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        ).detach()
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        bad, self.has_nonfinite_loss = self.has_nonfinite_loss if scaled else ~self.grad_norm.isfinite(), False
        if not scaled:  # a scaler holds back itself; gradients that overflow are its trade, losses are not
            self.skip_nonfinite_step(optimizer, parameters, bad)
        if self.skipped_steps is None:
            self.skipped_steps, self.last_skipped_step = (torch.zeros_like(bad, dtype=torch.long) for _ in range(2))
        self.skipped_steps += bad
        self.last_skipped_step = torch.where(bad, self.trainer.global_step, self.last_skipped_step)

    def skip_nonfinite_step(self, optimizer, parameters: list[nn.Parameter], bad: Tensor) -> None:
        """Leave the weights as they are when the gradient is no number; without asking the device, where it can."""
        if all(group.get("fused") for group in optimizer.param_groups) and not any(map(is_sharded, parameters)):
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()
        elif bad:
            for parameter in parameters:
                parameter.grad = None

    def on_before_optimizer_step(self, optimizer):
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self.scale = None if scaler is None else scaler.get_scale()
        if self.smoothness:
            self.smoothness.update_mean(lambda number: self.trainer.strategy.reduce(number, reduce_op="mean"))

    def lr_scheduler_step(self, scheduler, metric):
        """fp16 skips the steps that overflow; the schedule then waits for the weights."""
        if self.scale is None or self.trainer.precision_plugin.scaler.get_scale() >= self.scale:
            scheduler.step()

    def on_save_checkpoint(self, checkpoint):
        learned = {f"model.{name}" for name in self.get_trainable_parameters()}
        checkpoint["state_dict"] = {n: w for n, w in checkpoint["state_dict"].items() if n in learned}
        checkpoint["method"] = self.method.hyperparameters()
        checkpoint["measured"] = {name: float(getattr(self, name)) for name in RESUMED_STATE}
        if self.smoothness:
            checkpoint["smoothness"] = self.smoothness.state()

    def on_load_checkpoint(self, checkpoint):
        for name, kind in RESUMED_STATE.items():
            setattr(self, name, torch.tensor(checkpoint["measured"][name], dtype=kind, device=self.device))
        if self.smoothness and "smoothness" in checkpoint:
            self.smoothness.load_state(checkpoint["smoothness"])
        was, now = checkpoint["method"], self.method.hyperparameters()
        if other := [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]:
            key = sorted(other)[0]
            raise ValueError(
                f"resume: the method's {key} was {was.get(key)} and is {now.get(key)}; "
                "give the method the words that it was trained with"
            )
        if "state_dict" not in checkpoint:
            return  # sharded weights have been read by their strategy
        saved = {name.removeprefix("model."): tuple(w.shape) for name, w in checkpoint["state_dict"].items()}
        wanted = {name: tuple(p.shape) for name, p in self.get_trainable_parameters().items()}
        if other := sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)):
            raise ValueError(
                f"resume: {other[0]} is {saved.get(other[0], 'absent')} in the checkpoint and "
                f"{wanted.get(other[0], 'absent')} in this run; give the method the words that it was trained with"
            )


def cast_parameters(model: StableDiffusion, compute_dtype: torch.dtype, frozen: torch.dtype) -> None:
    """What learns, and the autoencoder, in fp32; the other frozen weights in `frozen`; products in `compute_dtype`."""
    model.compute_dtype = compute_dtype
    for part in model.parts.values():
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)


def enable_gradient_checkpointing(model: StableDiffusion) -> None:
    """Keep no activations inside the blocks: backward computes them again."""
    model.unet.enable_gradient_checkpointing(
        partial(checkpoint, use_reentrant=False, context_fn=build_checkpoint_contexts)
    )
    if any(p.requires_grad for p in model.text_encoder.parameters()):
        from transformers.modeling_layers import GradientCheckpointingLayer

        model.text_encoder.activation_checkpointing_enable()
        for layer in model.text_encoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = True  # or it would not; what drops out is below it and keeps its own mode


def build_checkpoint_contexts():
    """Contexts of a forward pass and of its repetition in backward, which must choose attention's kernel as the first did."""
    fused = (
        torch.backends.cuda.flash_sdp_enabled()
    )  # off where a second derivative is needed: see `sdft.losses.smooth_diffusion`
    return nullcontext(), nullcontext() if fused else ReusableMathAttention()


class ReusableMathAttention:
    """`sdpa_kernel`, to be entered more than once: a second derivative repeats the forward pass twice."""

    def __enter__(self):
        self.inside = sdpa_kernel(SDPBackend.MATH)
        self.inside.__enter__()

    def __exit__(self, *error):
        self.inside.__exit__(*error)
