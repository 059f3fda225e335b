"""Update weights bucket by bucket in fp32: bf16 weights without fp32 copies, and the optimizer step inside the backward pass.

A bucket is copied to an fp32 buffer, updated there and copied back, to bf16 weights by stochastic rounding. The buffer, and with
`fused_backward` also the gradients, exist for one bucket at a time.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdft.rng import Draw, make_generator
from sdft.training.adamw_bf16 import AdamWBF16
from sdft.training.buckets import Bucket, copy_to_buffer, split_group, view_as_matrix
from sdft.training.master_weights import copy_all
from sdft.training.optimizers import build_optimizer
from sdft.training.stochastic_rounding import round_stochastically_

ELEMENTWISE = ("AdamW", "AdamWBF16", "AdamW8bit")  # optimizers that do not read the shapes of weights
SUPPORTED = (*ELEMENTWISE, "Adafactor")


class BucketedOptimizer(Optimizer):
    """One optimizer per bucket, made by `build`; with `fused_backward` it steps as soon as the bucket's gradients are complete.

    `step` updates the other buckets; the weights are bit-equal. `connect` starts `fused_backward`.
    """

    def __init__(self, groups: list[dict], build: Callable, seed: int, fused_backward: bool = False):
        super().__init__(groups, {})
        self.build, self.seed, self.num_steps, self.fused_backward = build, seed, 0, fused_backward
        self.networks: dict[nn.Parameter, nn.Parameter] = {}  # by their fp32 masters, if `connect` gave any
        self.generator: torch.Generator | None = None
        self.found_inf: Tensor | None = None  # 1 to skip the updates of this step, on the device
        self.gradient_scale: Tensor | None = None  # of this step, on the device
        self.squared_norm: Tensor | None = None  # of the gradients of the updated buckets
        self.elementwise = getattr(build, "func", build).__name__ in ELEMENTWISE
        self.buckets: list[Bucket] = []
        for group in self.param_groups:
            for slices in split_group(group, self.elementwise):
                num_buffers = 1 if self.elementwise else len(slices)
                optimizer = self.build_bucket_optimizer(group, num_buffers)
                self.buckets.append(Bucket(len(self.buckets), group, slices, optimizer))
        self.map_buckets()

    def build_bucket_optimizer(self, group: dict, num_buffers: int) -> Optimizer | None:
        """An optimizer with the settings of `group`, for fp32 buffers that exist during updates only."""
        settings, device = {key: value for key, value in group.items() if key != "params"}, group["params"][0].device
        buffers = [nn.Parameter(torch.empty(0, device=device)) for _ in range(num_buffers)]
        return build_optimizer(self.build, [settings | {"params": buffers}])

    def connect(self, masters: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """With `fused_backward` update a bucket when its gradients are complete.

        `masters` has the fp32 weight of each weight of the networks that has one; the networks' weights get the gradients.
        """
        if self.fused_backward:
            self.networks = {master: weight for weight, master in masters.items()}
            self.map_buckets()
            for weight in self.buckets_by_weight:
                weight.register_post_accumulate_grad_hook(self.count_gradient)

    def map_buckets(self) -> None:
        self.buckets_by_weight: dict[nn.Parameter, list[Bucket]] = {}  # by the weight that gets the gradient
        for bucket in self.buckets:
            for weight in self.get_network_weights(bucket):
                self.buckets_by_weight.setdefault(weight, []).append(bucket)

    def get_network_weights(self, bucket: Bucket) -> list[nn.Parameter]:
        """The weights of a bucket that get gradients."""
        return [self.networks.get(weight, weight) for weight, _ in bucket.slices]

    def step(self, closure=None):
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure()
        self.update_remaining()
        self.num_steps += 1
        self.found_inf = self.gradient_scale = self.squared_norm = None
        for bucket in self.buckets:
            bucket.is_updated, bucket.num_gradients = False, 0
        return loss

    def update_remaining(self) -> None:
        """Update the buckets with gradients that are not updated yet."""
        for bucket in self.buckets:
            if not bucket.is_updated and any(w.grad is not None for w in self.get_network_weights(bucket)):
                self.update(bucket)

    def count_gradient(self, weight: nn.Parameter) -> None:
        """Update the buckets whose last gradient is that of `weight`."""
        for bucket in self.buckets_by_weight[weight]:
            assert not bucket.is_updated, "a second backward pass in a step"
            bucket.num_gradients += 1
            if bucket.num_gradients == len(bucket.slices):
                self.update(bucket)

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """The norm of the gradients, 0-dim; updates will scale them down to `max_norm`, unless it is infinite."""
        if self.fused_backward:
            self.update_remaining()
            return self.squared_norm.sqrt()
        gradients = [weight.grad for weight in self.buckets_by_weight if weight.grad is not None]
        if all(gradient.dtype is torch.float32 for gradient in gradients):
            norm = nn.utils.get_total_norm(gradients)
        else:
            norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).norm()
        if max_norm < float("inf"):
            self.gradient_scale = (max_norm / (norm + 1e-6)).clamp(max=1)
        return norm

    @torch.no_grad()
    def update(self, bucket: Bucket) -> None:
        """Update the weights of a bucket and free their gradients."""
        targets = [weight.detach()[rows] for weight, rows in bucket.slices]
        weights, weight_views = copy_to_buffer(targets)
        if self.generator is None:
            self.generator = torch.Generator(weights.device)
        seed = make_generator(self.seed, Draw.ROUNDING, self.num_steps, bucket.index).initial_seed()
        self.generator.manual_seed(seed)
        self.step_buffers(bucket, [weights] if self.elementwise else list(map(view_as_matrix, weight_views)))
        if self.found_inf is not None and not can_skip_steps(bucket.optimizer):
            original, _ = copy_to_buffer(targets)
            torch.where(self.found_inf.bool(), original, weights, out=weights)
            del original
        if targets[0].dtype is torch.bfloat16:
            round_stochastically_(weights, self.generator)
        copy_all(targets, weight_views)
        bucket.is_updated = True

    def take_gradients(self, bucket: Bucket) -> list[Tensor]:
        """fp32 copies of the gradients, one if the optimizer is elementwise; the gradients are freed."""
        weights = [
            (weight, rows) for weight, (_, rows) in zip(self.get_network_weights(bucket), bucket.slices, strict=True)
        ]
        gradients = [torch.zeros_like(w[rows]) if w.grad is None else w.grad[rows] for w, rows in weights]
        buffer, views = copy_to_buffer(gradients)
        del gradients
        self.free_gradients(bucket)
        if self.fused_backward:
            self.add_norm(buffer)
        if self.gradient_scale is not None:
            buffer.mul_(self.gradient_scale)
        return [buffer] if self.elementwise else list(map(view_as_matrix, views))

    def free_gradients(self, bucket: Bucket) -> None:
        """Free the gradients of the weights of which `bucket` has the last rows."""
        for weight in self.get_network_weights(bucket):
            if bucket is self.buckets_by_weight[weight][-1]:
                weight.grad = None

    def add_norm(self, gradients: Tensor) -> None:
        """Add to the norm; if it becomes NaN/Inf, skip this update and the further ones of the step."""
        squared_norm = torch.linalg.vector_norm(gradients).square()
        self.squared_norm = squared_norm if self.squared_norm is None else self.squared_norm + squared_norm
        found_inf = (~self.squared_norm.isfinite()).float()
        self.found_inf = found_inf if self.found_inf is None else self.found_inf.maximum(found_inf)

    def step_buffers(self, bucket: Bucket, weights: list[Tensor]) -> None:
        """One step of the bucket's optimizer on fp32 buffers; where `found_inf` is 1, without effect or with zero gradients."""
        optimizer, group = bucket.optimizer, bucket.optimizer.param_groups[0]
        group["lr"] = bucket.group["lr"]
        gradients = self.take_gradients(bucket)
        if can_skip_steps(optimizer):
            optimizer.grad_scale, optimizer.found_inf = None, self.found_inf
        elif self.found_inf is not None:
            for gradient in gradients:
                gradient.masked_fill_(self.found_inf.bool(), 0)
        if isinstance(optimizer, AdamWBF16):
            optimizer.generator = self.generator
        for parameter, weight, gradient in zip(group["params"], weights, gradients, strict=True):
            parameter.data, parameter.grad = weight, gradient
        optimizer.step()
        for parameter in group["params"]:
            parameter.data, parameter.grad = parameter.new_empty(0), None

    def state_dict(self) -> dict:
        states = [bucket.optimizer.state_dict() for bucket in self.buckets]
        return super().state_dict() | {"buckets": states, "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: dict) -> None:
        """`ValueError` for the states of an optimizer with other buckets, or without."""
        states = state_dict.get("buckets", [])
        if len(states) != len(self.buckets):
            raise ValueError(
                "resume: the checkpoint has optimizer states of another kind; "
                "use the optimizer, precision and fused_backward of the resumed run"
            )
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        for bucket, state in zip(self.buckets, states, strict=True):
            bucket.optimizer.load_state_dict(state)
        self.num_steps = state_dict["num_steps"]

    def clear_states(self) -> None:
        for bucket in self.buckets:
            bucket.optimizer.state.clear()


def can_skip_steps(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer has no effect where its `found_inf` is 1."""
    return isinstance(optimizer, AdamWBF16) or bool(optimizer.param_groups[0].get("fused"))


def get_bucket_constructor(optimizer: Callable) -> Callable:
    """The constructor of the optimizers of the buckets; `optimizer` itself if it has none."""
    is_bucketed = getattr(optimizer, "func", None) is BucketedOptimizer
    return optimizer.keywords["build"] if is_bucketed else optimizer


def is_fused_backward(optimizer: Callable) -> bool:
    """Whether the optimizer that this constructor builds frees gradients inside the backward pass."""
    return get_bucket_constructor(optimizer) is not optimizer and optimizer.keywords["fused_backward"]
