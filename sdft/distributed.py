"""Several processes as one: how they start, and what they tell each other. A process alone is the first of one.

Whoever starts them (this program, torchrun, srun), each computes its share and hands it to the first, which alone writes.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

PROCESS_GROUP_TIMEOUT = timedelta(hours=6)  # with the first, which scores while the others wait
RUN_FOLDER_VARIABLE = "SDFT_FOLDER"  # the environment's word for the run's folder, the same in all processes


@dataclass
class ProcessInfo:
    """What the one who started this process says of it: its number among `count` on all machines, and on its own."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def get_process_info() -> ProcessInfo:
    """As torchrun and this program tell it, or srun; else alone."""
    told = os.environ
    if "TORCHELASTIC_RUN_ID" in told:
        return ProcessInfo(*(int(told[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if int(told.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # not in a batch script, nor in a shell
        count, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told.get("SLURM_STEP_NUM_NODES", 1))
        return ProcessInfo(int(told["SLURM_PROCID"]), count, int(told["SLURM_LOCALID"]), count // nodes)
    return ProcessInfo()


def is_launched() -> bool:
    """Whether something has started this process as one of several."""
    return get_process_info().count > 1


def build_cluster_environment():
    """The same, as Lightning wants to be told."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if not is_launched():
        return LightningEnvironment()
    return TorchElasticEnvironment() if "TORCHELASTIC_RUN_ID" in os.environ else SLURMEnvironment(auto_requeue=False)


def prepare_launched_process() -> None:
    """Before anything else in a launched process: end with whoever started it, and leave the run's folder to the first."""
    if not is_launched():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ and (tie := exit_with_parent(os.getppid())):
        tie()
    if get_process_info().rank:
        given = [word for word in sys.argv[1:] if not word.startswith("hydra.run.dir=")]
        words = (i for i, word in enumerate(given) if word[:1] in ("+", "~") or ("=" in word and word[0] != "-"))
        first = next(words, len(given))  # flags may have words of their own
        sys.argv[1:] = [*given[:first], "hydra.run.dir=.", "hydra.output_subdir=null", *given[first:]]


def exit_with_parent(parent: int) -> Callable[[], None] | None:
    """On Linux, what makes a process be killed when `parent` ends, however that ends: nobody reads what it does then."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def tie() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return tie


def count_cpu_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch_processes(count: int, folder) -> int:
    """Run this program again in `count` processes that write to `folder`; the exit status of the first that failed, or 0."""
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cpu_cores() // count)))
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "45")  # seconds in which the others may save
    about = {"max_restarts": 0, "monitor_interval": 0.2, "local_addr": "localhost"}
    if "signals_to_handle" in LaunchConfig.__dataclass_fields__:
        about["signals_to_handle"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # which it hands on
    config = LaunchConfig(1, 1, count, **rendezvous, **about)
    try:
        elastic_launch(config, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        # one that was killed is the cause; the others may have noticed, and failed, before anybody looked
        first = min(error.failures.values(), key=lambda failure: (failure.exitcode > 0, failure.timestamp))
        if first.exitcode < 0:
            print(f"error: process {first.local_rank} of {count} was killed ({first.signal_name()})", file=sys.stderr)
            return 128 - first.exitcode
        return first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def init_process_group(on_cpu: bool) -> None:
    """Let the processes know each other; does nothing in one that is alone, or has met the others."""
    import torch
    import torch.distributed as group

    if not is_launched() or group.is_initialized():
        return
    if "SLURM_STEP_NODELIST" in os.environ:  # Lightning asks for the machines of the job, of which these are some
        os.environ["SLURM_NODELIST"] = os.environ["SLURM_STEP_NODELIST"]
    others = build_cluster_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = others.main_address, str(others.main_port)
    backend = "gloo" if on_cpu or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
    if backend != "gloo":
        torch.cuda.set_device(get_gpu_index())
    about = {"rank": others.global_rank(), "world_size": others.world_size()}
    group.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT, **about)


def get_gpu_index() -> int:
    """The number of this process's GPU: the only one that it sees, or that of its place."""
    import torch

    return 0 if torch.cuda.device_count() == 1 else get_process_info().local_rank


def destroy_process_group() -> None:
    """Once all have done their work, which the first does last; one that failed must not come here and wait for the others."""
    if is_initialized():
        barrier()
        sys.modules["torch.distributed"].destroy_process_group()


def is_initialized() -> bool:
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_available() and module.is_initialized()


def rank() -> int:
    """Of this process among those that have met; the first is 0."""
    return sys.modules["torch.distributed"].get_rank() if is_initialized() else 0


def world_size() -> int:
    """How many have met."""
    return sys.modules["torch.distributed"].get_world_size() if is_initialized() else 1


def broadcast(thing):
    """What the first process says, in every one."""
    if world_size() == 1:
        return thing
    box = [thing]
    sys.modules["torch.distributed"].broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Until all have come here."""
    broadcast(None)


def gather(thing) -> list:
    """Every process's thing, by rank, in the first; nothing in the others."""
    if world_size() == 1:
        return [thing]
    boxes = [None] * world_size() if rank() == 0 else None
    sys.modules["torch.distributed"].gather_object(thing, boxes, dst=0)
    return boxes or []


def all_reduce_max(count: int) -> int:
    """The largest of every process's numbers, in all of them."""
    if world_size() == 1:
        return count
    import torch

    box = torch.tensor(count)
    torch.distributed.all_reduce(box, torch.distributed.ReduceOp.MAX)
    return int(box)


def all_gather(thing) -> list:
    """Every process's thing, by rank, in all of them."""
    if world_size() == 1:
        return [thing]
    boxes = [None] * world_size()
    sys.modules["torch.distributed"].all_gather_object(boxes, thing)
    return boxes
