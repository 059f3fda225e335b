"""What sleeps is not run by who asks in passing, and is all there for who wants it."""

import subprocess
import sys

from conftest import ROOT

HEAD = """
import sys
import sdft.lean as lean
from sdft.asleep import COMPILER, MODELS, asleep, awake
lean.start()
import torch
"""
ASLEEP = """
from torch._dynamo import OptimizedModule, allow_in_graph, disable
from lightning.fabric.wrappers import _unwrap_compiled
from diffusers import UNet2DConditionModel
from diffusers.utils.torch_utils import is_compiled_module
from sdft.loading import load
model = load("tiny-sd")
learned = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(learned.parameters())
learned(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert not isinstance(learned, OptimizedModule) and not is_compiled_module(learned) and _unwrap_compiled(learned)[0] is learned
assert asleep(COMPILER) and asleep(MODELS), (asleep(COMPILER), asleep(MODELS))
assert not [name for name in sys.modules if name.startswith(("torch._inductor", "torch.distributed.fsdp"))]
import diffusers
assert diffusers.SD3Transformer2DModel.__module__ == "diffusers.models.transformers.transformer_sd3" and asleep(MODELS)
from diffusers.models.transformers import FluxTransformer2DModel
assert FluxTransformer2DModel is diffusers.FluxTransformer2DModel and not asleep(MODELS)
assert sys.modules[MODELS].__loader__ is sys.modules[MODELS].__spec__.loader and asleep(COMPILER)
"""
WOKEN = """
from torch._dynamo import OptimizedModule, allow_in_graph, disable, graph_break
calls = []
@torch.compiler.disable()
def untouched(x):
    calls.append(type(x))
    return x + 1
@disable
def either(x):
    return untouched(x)
@allow_in_graph
def known(x):
    return x * 2
@torch.compiler.assume_constant_result
def constant():
    return 3
assert either(1) == 2 and graph_break() is None and not torch._dynamo.is_compiling() and asleep(COMPILER)
before = sys.modules[COMPILER]
{waking}
assert not asleep(COMPILER) and awake(COMPILER) is before is torch._dynamo is sys.modules[COMPILER]
import torch._dynamo.eval_frame, torch._dynamo.config
assert torch._dynamo.eval_frame.__spec__.loader is torch._dynamo.eval_frame.__loader__
assert torch._dynamo.eval_frame.OptimizedModule is torch._dynamo.OptimizedModule is not OptimizedModule
wrapped = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert isinstance(wrapped, OptimizedModule) and not isinstance(torch.ones(1), OptimizedModule)
graphs = []
def backend(graph, inputs):
    graphs.append(str(graph.code))
    return graph.forward
compiled = torch.compile(lambda x: known(untouched(x.sin()).cos()) * constant(), backend=backend)
value = compiled(torch.ones(2))
assert torch.allclose(value, (torch.ones(2).sin() + 1).cos() * 6) and calls[-1] is torch.Tensor
assert len(graphs) == 2 and "known" in graphs[1] and "+ 1" not in "".join(graphs), graphs
"""


def answered(text: str) -> None:
    subprocess.run([sys.executable, "-c", HEAD + text], cwd=ROOT, check=True)


def test_a_model_is_loaded_and_learns_while_they_sleep():
    answered(ASLEEP)


def test_the_compiler_wakes_when_something_is_compiled_and_hears_what_was_said():
    answered(WOKEN.format(waking="torch.compile(torch.nn.Linear(2, 2), backend='eager')(torch.ones(2))"))


def test_the_compiler_wakes_when_a_part_of_it_is_imported():
    answered(WOKEN.format(waking="from torch._dynamo.eval_frame import innermost_fn"))
