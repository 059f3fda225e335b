"""Networks that compute in 16 bits, and the fp32 master weights that the optimizer updates."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed
from test_module import build_batch, build_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from sdft.methods.full import FullFineTuning
from sdft.methods.lora import LoRA
from sdft.methods.textual_inversion import TextualInversion

METHODS = {
    "lora": LoRA(2, 2.0),
    "dora": LoRA(2, 2.0, use_dora=True, unet_targets=["to_q", "conv1"]),
    "loha": LoRA(2, 2.0, adapter_type="loha"),
    "lokr": LoRA(2, 2.0, adapter_type="lokr"),
    "sft": FullFineTuning(),
    "textual inversion": TextualInversion("<mine>"),
}


def take_step(module, optimizer, batch: dict) -> None:
    module.compute_losses(batch).mean().backward()
    module.on_after_backward()
    optimizer.step()
    module.masters.refresh_networks()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_optimizer_updates_fp32_weights_and_the_networks_hold_them_rounded(tiny, method):
    module = build_module(tiny(), method, compute_dtype=torch.bfloat16)
    before = {name: weight.detach().clone() for name, weight in module.get_trainable_parameters().items()}
    optimizer = torch.optim.AdamW(module.get_trainable_parameters().values(), lr=1e-5)
    take_step(module, optimizer, build_batch(module.model))
    networks = dict(module.model.named_parameters())
    for name, master in module.get_trainable_parameters().items():
        assert master.dtype == torch.float32 and networks[name].dtype == torch.bfloat16
        assert torch.equal(networks[name], master.bfloat16()) and networks[name].grad is None
        assert not torch.equal(master, before[name]) or not master.grad.any()
    assert any(torch.equal(before[name].bfloat16(), networks[name]) for name in before) or method is METHODS["lokr"]


def test_gradients_of_micro_batches_are_added_in_fp32(tiny):
    module = build_module(tiny(), FullFineTuning(), compute_dtype=torch.bfloat16)
    weights = module.masters.masters
    for gradient in (256.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        for weight in weights:
            weight.grad = torch.full_like(weight, gradient)
        module.on_after_backward()
    assert all(bool((master.grad == 258).all()) and weight.grad is None for weight, master in weights.items())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_results_have_the_precision_of_the_masters(tiny, method):
    module = build_module(tiny(), method, compute_dtype=torch.float16)
    networks, originals = module.model.state_dict(), build_module(tiny(), method).model.state_dict()
    names = set(module.masters.trained) | set(module.masters.frozen)
    with module.masters.use_in_networks():
        saved = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    assert all(torch.equal(saved[name], originals[name]) and saved[name].dtype == torch.float32 for name in names)
    assert all(torch.equal(weight, networks[name]) for name, weight in module.model.state_dict().items())
    assert names >= {name for name in saved if name.startswith("unet.")} or method.output_kind != "pipeline"
    assert list(saved) == list(networks)  # the order of parameters, too


def test_a_checkpoint_holds_the_masters_and_a_resumed_run_has_them(tiny):
    module, other = (build_module(tiny(), LoRA(2, 2.0), compute_dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    module.grad_norm, module.skipped_steps, module.last_skipped_step = (torch.tensor(0),) * 3
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    masters = {f"model.{name}": weight for name, weight in module.get_trainable_parameters().items()}
    assert checkpoint["state_dict"].keys() == masters.keys()
    assert all(torch.equal(weight, masters[name]) for name, weight in checkpoint["state_dict"].items())
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=False)
    networks = dict(other.model.named_parameters())
    for name, master in other.get_trainable_parameters().items():
        assert torch.equal(master, masters[f"model.{name}"]) and torch.equal(networks[name], master.bfloat16())


def test_a_step_casts_no_weight(tiny):
    module = build_module(tiny(), LoRA(2, 2.0, text_encoder=False), compute_dtype=torch.bfloat16)
    casts = []

    class CastCounter(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].ndim > 1 and args[0].shape[0] > 4:
                casts.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    batch = build_batch(module.model)
    batch |= {"mean": batch["noise"], "std": batch["noise"], **module.model.encode_text(batch.pop("ids"))}
    del batch["pixels"]
    with CastCounter():
        module.compute_losses(batch).mean().backward()
        module.on_after_backward()
    assert casts == []


class LossModule(torch.nn.Module):
    """What Lightning's strategy wraps: a forward pass that returns the loss."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch: dict) -> torch.Tensor:
        return self.module.compute_losses(batch).mean()


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")  # of a CPU's kernels for bf16
def test_ddp_reduces_the_sum_of_all_micro_batches_in_fp32(tiny, process_group):
    batches = [build_batch(tiny(), seed=seed) for seed in range(3)]
    single, module = (build_module(tiny(), FullFineTuning(), compute_dtype=torch.bfloat16) for _ in range(2))
    ddp = DistributedDataParallel(LossModule(module), gradient_as_bucket_view=True)
    ddp.register_comm_hook(None, module.masters.reduce_gradients)
    for _ in range(2):  # a step whose gradients are cleared, as by an optimizer, and the next
        for weight in [*single.get_trainable_parameters().values(), *module.get_trainable_parameters().values()]:
            weight.grad = None
        for number, batch in enumerate(batches):
            single.compute_losses(batch).mean().backward()
            single.on_after_backward()
            with ddp.no_sync() if number < 2 else nullcontext():
                ddp(batch).backward()
            module.on_after_backward()
    for name, weight in single.get_trainable_parameters().items():
        gradient = module.get_trainable_parameters()[name].grad
        assert gradient.dtype == torch.float32 and torch.allclose(gradient, weight.grad, rtol=1e-6), name
