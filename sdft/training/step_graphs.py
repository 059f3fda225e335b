"""Training steps as CUDA graphs: the host launches forward, loss and backward with one call (`compile=graphs`, experimental).

One graph per batch shape, recorded when that shape first comes. It reads the batch from tensors of its own and writes gradients
that stay in place. Clipping, the optimizer, the learning rate and the skipping of NaN/Inf steps stay outside, few operations with
a fused optimizer, so that they are those of every other run. No GPU has run this yet: only its logic is tested.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sdft.runs.terminal import print_text
from sdft.training.module import DiffusionModule

MAX_GRAPHS = 16  # batch shapes; further ones run eagerly
WARMUP_STEPS = 3  # before a recording, as CUDA libraries initialize themselves in the first calls

Run = Callable[[], dict[str, Tensor]]


class CUDAGraphRecorder:
    """Records functions as CUDA graphs, which share memory: the outputs of one are copied before another is replayed."""

    def __init__(self):
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """A function that repeats the operations of `run` on the same tensors, and returns the same outputs."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = run()

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return outputs

        return replay


class StepGraphs:
    """Graphs of `compute`, a function of a batch that adds to the gradients of `parameters`, by batch shape.

    `record` turns a function without arguments into one that repeats its operations.
    """

    def __init__(
        self, compute: Callable[[dict], dict[str, Tensor]], parameters: list[nn.Parameter], record: Callable[[Run], Run]
    ):
        self.compute, self.parameters, self.record = compute, parameters, record
        self.graphs: dict[tuple, tuple[dict[str, Tensor], Run]] = {}
        self.buffers, self.gradients = allocate_gradients(parameters)

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the gradients of a batch; return copies of the outputs."""
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(batch.items()))
        if shape not in self.graphs:
            if len(self.graphs) == MAX_GRAPHS:
                return self.run(batch)
            inputs = {name: tensor.clone() for name, tensor in batch.items()}
            self.graphs[shape] = inputs, self.record(partial(self.run, inputs))
        inputs, replay = self.graphs[shape]
        for name, tensor in batch.items():
            inputs[name].copy_(tensor)
        return {name: output.clone() for name, output in replay().items()}

    def run(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.set_gradients()
        for buffer in self.buffers:
            buffer.zero_()
        return self.compute(batch)

    def set_gradients(self) -> None:
        """Give each parameter its gradient, which `zero_grad` and skipped steps take away."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


def allocate_gradients(parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """A buffer per dtype, and the gradient of each parameter as a part of it, with the parameter's memory format."""
    sizes: dict[torch.dtype, int] = {}
    places = []
    for parameter in parameters:
        offset = sizes.get(parameter.dtype, 0)
        places.append(offset)
        sizes[parameter.dtype] = offset + parameter.numel()
    buffers = {dtype: torch.zeros(size, dtype=dtype, device=parameters[0].device) for dtype, size in sizes.items()}
    gradients = [
        buffers[parameter.dtype].as_strided(parameter.shape, parameter.stride(), offset)
        for parameter, offset in zip(parameters, places, strict=True)
    ]
    return list(buffers.values()), gradients


class GraphedModule(DiffusionModule):
    """The training module with steps from `StepGraphs`: `training_step` computes the gradients, `backward` attaches them."""

    build_recorder = CUDAGraphRecorder
    step_graphs: StepGraphs | None = None  # from the start of training on

    def on_train_start(self):
        super().on_train_start()
        parameters = list(self.get_trainable_parameters().values())
        self.step_graphs = StepGraphs(self.compute_gradients, parameters, self.build_recorder())
        print_text("compile    CUDA graphs of the steps (experimental), one per batch shape", flush=True)

    def compute_gradients(self, batch: dict) -> dict[str, Tensor]:
        """The outputs of a training step, after its backward pass."""
        outputs = super().training_step(batch, 0)
        outputs["loss"].backward()
        self.masters.collect_gradients()
        self.has_nonfinite_loss = False  # a graph repeats no Python
        return {name: output.detach() for name, output in outputs.items()}

    def training_step(self, batch: dict, batch_idx: int) -> dict:
        if self.step_graphs is None:
            return super().training_step(batch, batch_idx)
        outputs = self.step_graphs(batch)
        self.has_nonfinite_loss = ~outputs["loss"].isfinite()
        return outputs

    def backward(self, loss: Tensor, *args, **kwargs):
        if self.step_graphs is None:
            super().backward(loss, *args, **kwargs)
        else:  # Lightning has taken the gradients away since
            self.step_graphs.set_gradients()


def get_module_class(compile: str) -> type[DiffusionModule]:
    return GraphedModule if compile == "graphs" else DiffusionModule


def check_graphs(cfg, parts: dict) -> None:
    """`ValueError` for options with which a step cannot be one CUDA graph."""
    training, strategy = parts["training"], parts["strategy"]
    dropout = getattr(parts["method"], "dropout", 0)
    refused = {
        f"gradient_accumulation_steps={training.gradient_accumulation_steps}": training.gradient_accumulation_steps > 1,
        f"gradient_checkpointing={training.gradient_checkpointing}": training.gradient_checkpointing,
        f"offload_blocks={training.offload_blocks}": training.offload_blocks,
        f"smooth_diffusion_weight={cfg.smooth_diffusion_weight}": cfg.smooth_diffusion_weight,
        f"method.dropout={dropout}": dropout,
        "precision=fp16": parts["precision"].needs_grad_scaler,
        f"devices={strategy.devices} num_nodes={strategy.num_nodes}": strategy.world_size() > 1,
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise ValueError(
                f"compile=graphs: {option} cannot be recorded in a CUDA graph; use compile=regional or off"
            )
    if strategy.device().type != "cuda":
        raise ValueError("compile=graphs: records CUDA graphs, and this run has no CUDA GPU; use compile=off")
