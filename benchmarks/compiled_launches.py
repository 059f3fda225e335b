"""Kernels of compiled blocks, counted in the code that torch's compiler generates for a GPU that need not be there.

Each graph is traced on CPU tensors without data and lowered as if these were on an H100, whose properties are given; nothing is
built or run. A Triton kernel, a library call and a fused attention count as one each. A GroupNorm is four kernels here, and one
operation in `launches.py`, for which torch launches several kernels, too.
"""

import copy
import re
from collections import Counter
from contextlib import ExitStack, contextmanager
from types import MethodType, SimpleNamespace
from unittest import mock

import torch
from memory import build_sample
from torch import Tensor, nn

from sdft.training.compile import COMPILED_BLOCKS, compile_blocks, set_channels_last

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, warp_size=32, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    regs_per_multiprocessor=65536, shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, L2_cache_size=50 * 2**20, total_memory=80 * 2**30, name="NVIDIA H100",
)  # fmt: skip
KERNEL_CALLS = {  # in generated code
    "triton": r"\btriton_\w+\.run\(",
    "library": r"\bextern_kernels\.\w+\(",
    "fallback": r"\btorch\.ops\.\w+[\w.]*\(",
}
PATCHED = {
    "torch.cuda.get_device_properties": lambda device=None: H100,
    "torch.cuda.get_device_capability": lambda device=None: (H100.major, H100.minor),
    "torch.cuda.current_device": lambda: GPU.index,
    "torch._dynamo.device_interface.CudaInterface.get_device_properties": staticmethod(lambda device=None: H100),
    "torch._dynamo.device_interface.CudaInterface.get_compute_capability": staticmethod(lambda device=None: 90),
    "torch._inductor.scheduler.has_triton": lambda *args: True,
    "torch.utils._triton.triton_hash_with_backend": lambda: "",
    "torch._functorch.config.force_non_lazy_backward_lowering": True,
}


@contextmanager
def pretend_h100():
    """Within the context torch's compiler generates code for an H100."""
    with ExitStack() as stack:
        for name, value in PATCHED.items():
            stack.enter_context(mock.patch(name, value))
        yield


class KernelCounter:
    """A backend for `torch.compile` that runs graphs eagerly; `kernels` has those of one call by (phase, kind)."""

    def __init__(self):
        self.calls: list[int] = []  # of each graph
        self.kernels: list[Counter] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        index = len(self.calls)
        self.calls.append(0)
        self.kernels.append(count_kernels(graph, inputs))

        def run(*args):
            self.calls[index] += 1
            return graph(*args)

        return run

    def total(self) -> Counter:
        """Kernels of all calls."""
        counts = Counter()
        for calls, kernels in zip(self.calls, self.kernels, strict=True):
            counts.update({key: calls * count for key, count in kernels.items()})
        return counts


def count_kernels(graph: torch.fx.GraphModule, inputs: list) -> Counter:
    """Kernels of the forward and backward pass of a graph, by (phase, kind)."""
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._inductor.compile_fx import partition_fn
    from torch._inductor.decomposition import select_decomp_table

    counts = Counter()

    def compile_part(phase: str):
        def compile(part: torch.fx.GraphModule, part_inputs: list):
            code = generate_code(part, part_inputs)
            body = code[code.index("def call(") :]
            counts.update({(phase, kind): len(re.findall(call, body)) for kind, call in KERNEL_CALLS.items()})
            return lambda *args: None

        return compile

    with torch.enable_grad():
        aot_module_simplified(
            copy.deepcopy(graph),
            move_inputs(inputs, torch.device("cpu")),  # where attention is one operation
            fw_compiler=compile_part("forward"),
            bw_compiler=compile_part("backward"),
            decompositions=select_decomp_table(),
            partition_fn=partition_fn,
        )
    return counts


def move_inputs(inputs: list, device: torch.device) -> list:
    """Tensors without data like `inputs` on a device."""
    from torch._guards import detect_fake_mode

    def move(value):
        if not isinstance(value, Tensor):
            return value
        options = {"dtype": value.dtype, "device": device, "requires_grad": value.requires_grad}
        return torch.empty_strided(value.shape, value.stride(), **options)

    with detect_fake_mode(inputs):
        return [move(value) for value in inputs]


def generate_code(graph: torch.fx.GraphModule, inputs: list) -> str:
    """The Python code with which torch's compiler calls the kernels of a traced graph on the GPU."""
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    with torch.no_grad():
        inputs = move_inputs(inputs, GPU)
    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = node.kwargs | {"device": GPU}
    compile_fx.view_to_reshape(graph)
    with torch.no_grad():
        fake_mode = compile_fx.fake_tensor_prop(graph, inputs, force_allow_non_fake_inputs=True)
    with V.set_fake_mode(fake_mode):
        compile_fx._recursive_post_grad_passes(graph, is_inference=False)
        shapes = graph.shape_env or compile_fx.shape_env_from_inputs(inputs)
        options = {"shape_env": shapes, "inputs_to_check": (), "get_decomp_fn": select_decomp_table}
        lowering = GraphLowering(graph, example_inputs=inputs, **options)
        lowering.freeze_runtime_asserts()
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), DebugContext():
            lowering.run(*inputs)
            return lowering.codegen()[0].value


def count_block_kernels(module, resolution: int) -> Counter:
    """Kernels of the compiled blocks in one training step of a module on the meta device, by (phase, kind)."""
    model, backend = module.model, KernelCounter()
    torch_compile = torch.compile
    with (
        torch.device("meta"),
        pretend_h100(),
        mock.patch("torch.compile", lambda *args, **options: torch_compile(*args, backend=backend, **options)),
    ):
        set_channels_last(model.unet)
        compile_blocks(model.unet, shapes=1)
        sample = build_sample(model, resolution)
        prediction = model.predict(sample["noise"], torch.zeros(1, dtype=torch.long), model.condition(sample))
    assert prediction.requires_grad
    return backend.total()


def remove_blocks(unet: nn.Module) -> None:
    """Replace the blocks that would be compiled by ones without operations, which have the same inputs, outputs and gradients."""
    for block in unet.modules():
        if type(block).__name__ in COMPILED_BLOCKS:
            block.forward = MethodType(forward_nothing, block)


def forward_nothing(block: nn.Module, hidden_states: Tensor, *args, **kwargs) -> Tensor:
    batch, channels, *sides = hidden_states.shape
    if hasattr(block, "out_channels"):
        channels = block.out_channels
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return Nothing.apply((batch, channels, *sides), hidden_states, *others, *trained)


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape: tuple[int, ...], *inputs: Tensor) -> Tensor:
        ctx.inputs = inputs
        return inputs[0].new_empty(shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        needs = ctx.needs_input_grad[1:]
        return None, *(torch.empty_like(value) if need else None for value, need in zip(ctx.inputs, needs, strict=True))
