"""Lightning module of the training step: a model, a method, an objective, and a learning rate per part."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdft.losses.diffusion import DiffusionLoss, weight_losses
from sdft.losses.smooth_diffusion import SmoothDiffusionLoss
from sdft.methods.base import Method
from sdft.models.conditioning import Conditioning
from sdft.models.diffusion_model import DiffusionModel
from sdft.models.noise_process import TimestepSampling
from sdft.rng import Draw, make_generator
from sdft.training.bucketed_optimizer import BucketedOptimizer
from sdft.training.fsdp import gather_full_tensor, shard_model
from sdft.training.gradient_checkpointing import enable_gradient_checkpointing
from sdft.training.master_weights import cast_networks
from sdft.training.optimizers import build_optimizer, build_parameter_groups

RESUMED_STATE = {
    "grad_norm": torch.float32,
    "skipped_steps": torch.long,
    "last_skipped_step": torch.long,
}  # attributes and dtypes stored in checkpoints


class DiffusionModule(LightningModule):
    """Networks compute in `compute_dtype`; the optimizer updates their `masters`, in fp32.

    Trainable layers are in train mode, frozen ones in eval mode.
    """

    strict_loading = False  # checkpoints hold trainable parameters only

    def __init__(
        self,
        model: DiffusionModel,
        method: Method,
        objective: DiffusionLoss,
        optimizer,
        schedule,
        lr: dict[str, float],
        max_grad_norm: float = 1.0,
        compute_dtype: torch.dtype = torch.float32,
        checkpointing: bool | str = False,
        seed: int = 0,
        smoothness: SmoothDiffusionLoss | None = None,
        timestep_sampling: TimestepSampling | None = None,
        sharded: bool = False,
        master_weights: bool = True,
    ):
        """`optimizer` builds an optimizer from parameter groups, `schedule` a scheduler from it and the number of steps.

        `lr` is the learning rate of each of `model.parts`, `max_grad_norm` the clipping threshold (0: no clipping).
        `checkpointing` is gradient checkpointing: "offload" keeps its activations in CPU memory. Trained parts that will be
        `sharded` stay in fp32; FSDP casts them when it gathers them. Without `master_weights` the optimizer rounds updates.
        """
        super().__init__()
        objective.check(model)
        self.num_base_parameters = sum(p.numel() for p in model.parameters())  # before the method adds its own
        torch.manual_seed(seed)
        method.prepare(model)
        if objective.is_distillation:
            objective.teacher = method.predict_as_teacher
        self.model, self.method, self.objective = model, method, objective
        self.optimizer, self.schedule, self.lr, self.max_grad_norm = optimizer, schedule, lr, max_grad_norm
        self.seed, self.smoothness, self.timestep_sampling = seed, smoothness, timestep_sampling or TimestepSampling()
        self.grad_norm: Tensor | None = None
        self.scale: float | None = None  # of the fp16 scaler, after the last step
        self.has_nonfinite_loss: Tensor | bool = False  # in this step
        self.skipped_steps: Tensor | None = None  # count of steps with a NaN/Inf gradient
        self.sharded = sharded
        self.offloaded_parts: list[str] = []  # on the CPU during training, as their outputs are cached
        self.offloaded_blocks: list = []  # of `sdft.training.block_offload`, whose frozen weights are in CPU memory
        if not self.get_trainable_parts():
            raise ValueError(f"{type(method).__name__}: no trainable parameters; enable a part of the method")
        self.masters = cast_networks(model, compute_dtype, method.output_kind == "pipeline", sharded, master_weights)
        for name, module in model.named_modules():
            module.training = ".lora_dropout" in name or any(p.requires_grad for p in module.parameters())
        if checkpointing:
            enable_gradient_checkpointing(model, offload=checkpointing == "offload")

    def configure_model(self):
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])

    def get_trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer updates, by name: the masters of those in the networks, if these are rounded."""
        named = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        return {name: self.masters.trained.get(name, p) for name, p in named}

    def get_trainable_parts(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by part, without the parts that have none."""
        parts = {part: [p for p in net.parameters() if p.requires_grad] for part, net in self.model.parts.items()}
        return {part: parameters for part, parameters in parts.items() if parameters}

    def compute_losses(self, batch: dict) -> Tensor:
        """Weighted loss of each sample `[batch]`."""
        inputs = self.prepare_inputs(batch)
        losses = self.objective(self.model, *inputs)
        return losses + self.smoothness(self.model, *inputs) if self.smoothness else losses

    def compute_unweighted_losses(self, batch: dict) -> Tensor:
        """Loss of each sample `[batch]` before weighting, comparable between runs with different weightings."""
        return self.objective.compute_unweighted_losses(self.model, *self.prepare_inputs(batch))

    def prepare_inputs(self, batch: dict) -> tuple[Tensor, Conditioning, dict[str, Tensor]]:
        """Latents `[batch, 4, h/8, w/8]`, conditioning, and the batch with the `timestep` `[batch]` of its raw draw."""
        moments = (batch["mean"], batch["std"]) if "mean" in batch else self.model.moments(batch["pixels"])
        latents = self.model.latents(*moments, batch["posterior"])
        return latents, self.model.condition(batch), batch | {"timestep": self.get_timesteps(batch)}

    def get_timesteps(self, batch: dict) -> Tensor:
        """Timesteps `[batch]`: those of the batch, at the fractions of fixed samples, or drawn from `timestep_sampling`."""
        if "timestep" in batch:
            return batch["timestep"]
        if "timestep_fraction" in batch:
            return self.model.noise_process.find_timesteps(batch["timestep_fraction"])
        return self.timestep_sampling(self.model.noise_process, batch["timestep_draw"])

    def on_train_start(self):
        for part in self.offloaded_parts:
            getattr(self.model, part).to("cpu")
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, "train"):  # schedule-free optimizers
                optimizer.train()
        self.masters.refresh_networks()
        if self.masters.trained and isinstance(ddp := self.trainer.strategy.model, DistributedDataParallel):
            ddp.register_comm_hook(None, self.masters.reduce_gradients)

    def on_train_batch_start(self, batch, batch_idx):
        """Seed the global generator, which dropout draws from, by batch index and rank, so that a resumed run is bit-exact."""
        seed = make_generator(self.seed, Draw.DROPOUT, batch_idx, self.global_rank).initial_seed()
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also queues a call per absent device
        if self.device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def training_step(self, batch: dict, _) -> dict:
        batch = batch | {"timestep": self.get_timesteps(batch)}
        losses = self.compute_losses(batch)
        loss = weight_losses(losses, batch).mean()
        if self.model.compute_dtype is torch.float16:
            self.has_nonfinite_loss = ~loss.detach().isfinite() | self.has_nonfinite_loss
        return {"loss": loss, "losses": losses.detach(), "timestep": batch["timestep"]}

    def on_before_backward(self, loss):
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, BucketedOptimizer):
                optimizer.found_inf = (~loss.detach().isfinite()).float()

    def on_after_backward(self):
        self.masters.collect_gradients()

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.masters.refresh_networks()

    def configure_optimizers(self):
        self.masters.to(self.device)
        trainable, get_multiplier = self.get_trainable_parameters(), self.method.get_lr_multiplier
        groups = build_parameter_groups(self.model.parts, trainable, self.lr, get_multiplier)
        optimizer = build_optimizer(self.optimizer, groups)
        if isinstance(optimizer, BucketedOptimizer):
            optimizer.connect(self.masters.masters)
        return [optimizer], [{"scheduler": self.schedule(optimizer, self.trainer.max_steps), "interval": "step"}]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Clip by the norm over all trainable parameters; store the norm before clipping, on the device."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        is_bucketed, max_norm = isinstance(optimizer, BucketedOptimizer), self.max_grad_norm or float("inf")
        norm = optimizer.clip_gradients(max_norm) if is_bucketed else nn.utils.clip_grad_norm_(parameters, max_norm)
        self.grad_norm = gather_full_tensor(norm).detach()
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            is_nonfinite = ~(self.grad_norm < float("inf"))  # also where it is NaN
            self.skip_nonfinite_step(optimizer, parameters, is_nonfinite)
        else:  # it skips overflowing gradients itself, as part of its search: only NaN/Inf losses, of any rank, count
            is_nonfinite = self.trainer.strategy.reduce(self.has_nonfinite_loss.float(), reduce_op="max") > 0
        self.has_nonfinite_loss = False
        if self.skipped_steps is None:
            self.skipped_steps = torch.zeros_like(is_nonfinite, dtype=torch.long)
            self.last_skipped_step = torch.zeros_like(is_nonfinite, dtype=torch.long)
        self.skipped_steps += is_nonfinite
        self.last_skipped_step.masked_fill_(is_nonfinite, self.trainer.global_step)

    def skip_nonfinite_step(self, optimizer, parameters: list[nn.Parameter], is_nonfinite: Tensor) -> None:
        """Leave the weights unchanged when the gradient is NaN/Inf; a device sync for optimizers that are not fused."""
        if isinstance(optimizer, BucketedOptimizer) or all(group.get("fused") for group in optimizer.param_groups):
            optimizer.grad_scale, optimizer.found_inf = None, is_nonfinite.float()
        elif is_nonfinite:
            for parameter in parameters:
                parameter.grad = None

    def on_before_optimizer_step(self, optimizer):
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler and self.scale is None:
            self.scale = scaler.get_scale()
        if self.smoothness:
            self.smoothness.update_mean(lambda value: self.trainer.strategy.reduce(value, reduce_op="mean"))

    def lr_scheduler_step(self, scheduler, metric):
        """Do not advance the schedule on steps that the fp16 scaler skips."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        previous, self.scale = self.scale, scaler.get_scale() if scaler else None
        if not scaler or self.scale >= previous:
            scheduler.step()

    def on_save_checkpoint(self, checkpoint):
        masters, state = self.masters.trained, checkpoint["state_dict"]
        names = {name: f"model.{name}" for name in self.get_trainable_parameters()}
        checkpoint["state_dict"] = {
            key: masters[name].detach() if name in masters else state[key]
            for name, key in names.items()
            if key in state
        }
        checkpoint["method"] = self.method.get_hyperparameters()
        checkpoint["measured"] = {name: float(getattr(self, name)) for name in RESUMED_STATE}
        if self.smoothness:
            checkpoint["smoothness"] = self.smoothness.state_dict()

    def on_load_checkpoint(self, checkpoint):
        for name, dtype in RESUMED_STATE.items():
            setattr(self, name, torch.tensor(checkpoint["measured"][name], dtype=dtype, device=self.device))
        if self.smoothness and "smoothness" in checkpoint:
            self.smoothness.load_state_dict(checkpoint["smoothness"])
        self.check_method_options(checkpoint["method"])
        if "state_dict" in checkpoint:  # the strategy has already loaded sharded weights
            self.check_shapes(checkpoint["state_dict"])
            self.masters.load({name.removeprefix("model."): w for name, w in checkpoint["state_dict"].items()})

    def check_method_options(self, saved: dict) -> None:
        """`ValueError` when the method's options differ from those in the checkpoint."""
        current = self.method.get_hyperparameters()
        if changed := sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key)):
            key = changed[0]
            raise ValueError(
                f"resume: the method's {key} was {saved.get(key)} and is {current.get(key)}; "
                "use the method options of the resumed run"
            )

    def check_shapes(self, state_dict: dict[str, Tensor]) -> None:
        """`ValueError` when the trainable parameters differ from those in the checkpoint."""
        saved = {name.removeprefix("model."): tuple(w.shape) for name, w in state_dict.items()}
        current = {name: tuple(p.shape) for name, p in self.get_trainable_parameters().items()}
        if changed := sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name)):
            name = changed[0]
            raise ValueError(
                f"resume: {name} is {saved.get(name, 'absent')} in the checkpoint and "
                f"{current.get(name, 'absent')} in this run; use the method options of the resumed run"
            )
