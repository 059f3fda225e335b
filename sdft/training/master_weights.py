"""fp32 copies of weights whose networks compute in 16 bits (mixed precision training, Micikevicius et al., 2018).

No operation of a step casts weights: one foreach copy after each optimizer step rounds the masters into the networks, and one
after each backward pass adds the networks' gradients to those of the masters.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket

from sdft.models.diffusion_model import DiffusionModel
from sdft.models.precision import set_precision


class MasterWeights:
    """fp32 parameters `trained`, by name, which the optimizer updates; the networks of `model` hold rounded copies.

    `frozen` parameters are fp32 originals on the CPU, by name, for a result that contains them. Both may be empty.
    """

    def __init__(self, model: DiffusionModel, trained: dict[str, nn.Parameter], frozen: dict[str, nn.Parameter]):
        self.model, self.trained, self.frozen = model, trained, frozen
        parameters = dict(model.named_parameters())
        self.rounded = {name: parameters[name] for name in trained}
        self.masters = {self.rounded[name]: master for name, master in trained.items()}
        self.reduced: set[nn.Parameter] = set()  # whose gradients `reduce_gradients` has stored

    def to(self, device: torch.device) -> None:
        nn.ParameterList(self.trained.values()).to(device)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy trained weights of a checkpoint; the networks follow at `refresh_networks`."""
        for name, master in self.trained.items():
            master.copy_(weights[name])

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the gradients of the networks to those of the masters, in fp32, and free them."""
        pairs = [(master, weight.grad) for weight, master in self.masters.items() if weight not in self.reduced]
        pairs = [(master, gradient) for master, gradient in pairs if gradient is not None]
        first = [(master, gradient) for master, gradient in pairs if master.grad is None]
        further = [(master.grad, gradient) for master, gradient in pairs if master.grad is not None]
        for master, _ in first:
            master.grad = torch.empty_like(master)
        copy_all([master.grad for master, _ in first], [gradient for _, gradient in first])
        if further:
            torch._foreach_add_([total for total, _ in further], [gradient for _, gradient in further])
        for weight in self.masters:
            weight.grad = None
        self.reduced.clear()

    @torch.no_grad()
    def refresh_networks(self) -> None:
        """Round the masters into the networks."""
        copy_all(list(self.masters), list(self.masters.values()))

    @contextmanager
    def use_in_networks(self):
        """Within the context the networks hold the masters and the frozen originals, to be saved; they do not compute then."""
        originals = self.trained | self.frozen
        rounded = {name: parameter for name, parameter in self.model.named_parameters() if name in originals}
        set_parameters(self.model, originals)
        try:
            yield
        finally:
            set_parameters(self.model, rounded)

    @torch.no_grad()
    def reduce_gradients(self, _, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """A communication hook of DDP: average over the ranks in fp32, with the gradients of earlier micro-batches."""
        weights, world_size = bucket.parameters(), torch.distributed.get_world_size()
        gradients = [gradient.float() for gradient in bucket.gradients()]
        for weight, gradient in zip(weights, gradients, strict=True):
            if self.masters[weight].grad is not None:
                gradient += self.masters[weight].grad
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(world_size)

        def store(future: torch.futures.Future) -> Tensor:
            averages = future.value()[0].split([weight.numel() for weight in weights])
            for weight, average in zip(weights, averages, strict=True):
                self.masters[weight].grad = average.view_as(weight)
            self.reduced.update(weights)
            return bucket.buffer()

        return torch.distributed.all_reduce(flat, async_op=True).get_future().then(store)


def cast_networks(
    model: DiffusionModel,
    compute_dtype: torch.dtype,
    result_has_frozen: bool,
    sharded: bool,
    master_weights: bool = True,
) -> MasterWeights:
    """Cast all parts to `compute_dtype`; return the weights that must not lose precision.

    Trained parts that will be `sharded` stay as they are: FSDP casts them when it gathers them. `result_has_frozen`: the frozen
    weights are saved, too. Without `master_weights` trained weights are rounded once; the optimizer then rounds its updates.
    """
    parts = {name: part for name, part in model.named_children() if name in model.parts}
    if compute_dtype is torch.float32:
        parts = {}
    excluded = [part for part in parts.values() if sharded and any(p.requires_grad for p in part.parameters())]
    trained, frozen = {}, {}
    for part, network in parts.items():
        for name, parameter in network.named_parameters() if network not in excluded else ():
            if parameter.requires_grad and master_weights:
                trained[f"{part}.{name}"] = nn.Parameter(parameter.detach().float().clone())
            elif result_has_frozen and not parameter.requires_grad:
                frozen[f"{part}.{name}"] = nn.Parameter(parameter.detach(), requires_grad=False)
    set_precision(model, compute_dtype, excluded)
    return MasterWeights(model, trained, frozen)


def set_parameters(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Replace parameters by name."""
    for name, parameter in parameters.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, parameter)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its target, of any dtype, in one operation."""
    if targets:
        torch._foreach_copy_(targets, sources)
