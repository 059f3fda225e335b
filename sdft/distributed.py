"""Start and synchronize distributed processes. A single process acts as rank 0 of world size 1.

This program, torchrun or srun starts them. Each rank computes its part of the work; only rank 0 writes files.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta

PROCESS_GROUP_TIMEOUT = timedelta(hours=6)  # the other ranks wait while rank 0 evaluates
RUN_FOLDER_VARIABLE = "SDFT_FOLDER"  # environment variable with the run folder for all ranks


@dataclass
class ProcessInfo:
    """Rank and process count from the launcher, globally and on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def get_process_info() -> ProcessInfo:
    """Read the environment of torchrun (also used by `launch_processes`) or srun; without either, a single process."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return ProcessInfo(*(int(env[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # 1 in batch scripts and interactive shells
        count, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        return ProcessInfo(int(env["SLURM_PROCID"]), count, int(env["SLURM_LOCALID"]), count // nodes)
    return ProcessInfo()


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return get_process_info().count > 1


def build_cluster_environment():
    """Build the Lightning cluster environment that matches `get_process_info`."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if not is_launched():
        return LightningEnvironment()
    return TorchElasticEnvironment() if "TORCHELASTIC_RUN_ID" in os.environ else SLURMEnvironment(auto_requeue=False)


def prepare_launched_process() -> None:
    """Make a launched process end with its launcher. Call it before anything else."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (set_death_signal := exit_with_parent(os.getppid())):
        set_death_signal()


def exit_with_parent(parent: int) -> Callable[[], None] | None:
    """Return a function that makes Linux kill the calling process when `parent` ends; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def set_death_signal() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


def count_cpu_cores() -> int:
    """Number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch_processes(count: int, folder, command: list[str]) -> int:
    """Run the Python program and arguments `command` in `count` processes on this machine, with run folder `folder`.

    Returns the first failing exit status, or 0.
    """
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
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "45")  # seconds for the other ranks to save
    options = {"max_restarts": 0, "monitor_interval": 0.2, "local_addr": "localhost"}
    if any(field.name == "signals_to_handle" for field in fields(LaunchConfig)):
        forwarded = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"]  # to all ranks
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            forwarded.append("SIGHUP")
        options["signals_to_handle"] = ",".join(forwarded)
    config = LaunchConfig(1, 1, count, **rendezvous, **options)
    try:
        elastic_launch(config, sys.executable)("-u", *command)
    except ChildFailedError as error:
        # a killed process is the cause; the others may have failed because of it
        first_rank, first = min(error.failures.items(), key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
        if first.exitcode < 0:
            print(f"error: rank {first_rank} of {count} was killed ({first.signal_name()})", file=sys.stderr)
            return 128 - first.exitcode
        return first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def init_process_group(on_cpu: bool) -> None:
    """Initialize the process group; does nothing in a single process, or if it is initialized."""
    import torch
    import torch.distributed as group

    if not is_launched() or group.is_initialized():
        return
    if "SLURM_STEP_NODELIST" in os.environ:  # Lightning reads the nodes of the job; use those of this step
        os.environ["SLURM_NODELIST"] = os.environ["SLURM_STEP_NODELIST"]
    environment = build_cluster_environment()
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "gloo" if on_cpu or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"
    if backend != "gloo":
        torch.cuda.set_device(get_gpu_index())
    group.init_process_group(
        backend,
        timeout=PROCESS_GROUP_TIMEOUT,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
    )


def get_gpu_index() -> int:
    """Index of this process's GPU: 0 if it sees only one, else the local rank."""
    import torch

    return 0 if torch.cuda.device_count() == 1 else get_process_info().local_rank


def count_gpus() -> int:
    """Number of visible GPUs: CUDA devices, or the one GPU of an Apple computer (mps)."""
    import torch

    return torch.cuda.device_count() or int(torch.backends.mps.is_available())


def select_device(accelerator: str) -> str:
    """The device of this process: its GPU if there is one and `accelerator` is not cpu, else the CPU."""
    import torch

    if accelerator == "cpu" or not count_gpus():
        return "cpu"
    return f"cuda:{get_gpu_index()}" if torch.cuda.is_available() else "mps"


def destroy_process_group() -> None:
    """Barrier, then destroy the process group. Do not call it from a failing rank: it would block."""
    if is_initialized():
        barrier()
        sys.modules["torch.distributed"].destroy_process_group()


def is_initialized() -> bool:
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_available() and module.is_initialized()


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return sys.modules["torch.distributed"].get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return sys.modules["torch.distributed"].get_world_size() if is_initialized() else 1


def broadcast(value):
    """Broadcast an object from rank 0 to all ranks."""
    if world_size() == 1:
        return value
    values = [value]
    sys.modules["torch.distributed"].broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Block until all ranks get here."""
    broadcast(None)


def gather(value) -> list:
    """Gather an object from every rank on rank 0, in rank order; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    sys.modules["torch.distributed"].gather_object(value, values, dst=0)
    return values or []


def all_reduce_max(count: int) -> int:
    """Maximum over all ranks."""
    if world_size() == 1:
        return count
    import torch

    maximum = torch.tensor(count)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return int(maximum)


def all_gather(value) -> list:
    """Gather an object from every rank on all ranks, in rank order."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    sys.modules["torch.distributed"].all_gather_object(values, value)
    return values
