"""Several processes as one: how they start, and what they tell each other. A process alone is the first of one.

Whoever starts them (this program, torchrun, srun), each computes its share and hands it to the first, which alone writes.
"""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass

FOLDER = "SDFT_FOLDER"  # the environment's word for the run's folder, the same in all processes


@dataclass
class Place:
    """What the one who started this process says of it: its number among `count` on all machines, and on its own."""

    number: int = 0
    count: int = 1
    local_number: int = 0
    local_count: int = 1


def place() -> Place:
    """As torchrun and this program tell it, or srun; else alone."""
    told = os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        return Place(*(int(told[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if int(told.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # not in a batch script, nor in a shell
        count, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told.get("SLURM_STEP_NUM_NODES", 1))
        return Place(int(told["SLURM_PROCID"]), count, int(told["SLURM_LOCALID"]), count // nodes)
    return Place()


def launched() -> bool:
    """Whether something has started this process as one of several."""
    return place().count > 1


def cluster():
    """The same, as Lightning wants to be told."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if not launched():
        return LightningEnvironment()
    return TorchElasticEnvironment() if "TORCHELASTIC_RUN_ID" in os.environ else SLURMEnvironment(auto_requeue=False)


def prepare() -> None:
    """Before anything else in a launched process: end with whoever started it, and leave the run's folder to the first."""
    if not launched():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())
    if place().number:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="sdft-")
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)


def end_with(parent: int) -> None:
    """On Linux, be killed when `parent` ends, however it ends: nobody would read what this process does then."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def start(count: int, folder) -> int:
    """Run this program again in `count` processes that write to `folder`; the exit status of the first that failed, or 0."""
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[FOLDER] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    config = LaunchConfig(
        1, 1, count, **rendezvous, max_restarts=0, monitor_interval=0.2, local_addr="localhost", shutdown_timeout=45
    )
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        if first.exitcode < 0:
            print(f"error: process {first.local_rank} of {count} was killed ({first.signal_name()})", file=sys.stderr)
            return 128 - first.exitcode
        return first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def meet(on_cpu: bool) -> None:
    """Let the processes know each other; does nothing in one that is alone, or has met the others."""
    import torch
    import torch.distributed as group

    if not launched() or group.is_initialized():
        return
    others = cluster()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = others.main_address, str(others.main_port)
    backend = "gloo" if on_cpu or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
    group.init_process_group(backend, rank=others.global_rank(), world_size=others.world_size())
    atexit.register(part)


def part() -> None:
    import torch.distributed as group

    if group.is_initialized():
        group.destroy_process_group()


def met() -> bool:
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_available() and module.is_initialized()


def rank() -> int:
    """Of this process among those that have met; the first is 0."""
    return sys.modules["torch.distributed"].get_rank() if met() else 0


def world() -> int:
    """How many have met."""
    return sys.modules["torch.distributed"].get_world_size() if met() else 1


def told(thing):
    """What the first process says, in every one."""
    if world() == 1:
        return thing
    box = [thing]
    sys.modules["torch.distributed"].broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Until all have come here."""
    told(None)


def gathered(thing) -> list:
    """Every process's thing, by rank, in the first; nothing in the others."""
    if world() == 1:
        return [thing]
    boxes = [None] * world() if rank() == 0 else None
    sys.modules["torch.distributed"].gather_object(thing, boxes, dst=0)
    return boxes or []


def everywhere(thing) -> list:
    """Every process's thing, by rank, in all of them."""
    if world() == 1:
        return [thing]
    boxes = [None] * world()
    sys.modules["torch.distributed"].all_gather_object(boxes, thing)
    return boxes
