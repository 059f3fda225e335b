"""Synchronize distributed processes. A single process acts as rank 0 of world size 1.

This program, torchrun or srun starts them. Each rank computes its part of the work; only rank 0 writes files.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

COLLECTIVE_TIMEOUT = timedelta(minutes=15)  # of collectives on the device, in which every rank takes part at once
WAIT_TIMEOUT = timedelta(hours=6)  # of those in this file: the other ranks wait while rank 0 scans, scores or writes
RUN_FOLDER_VARIABLE = "SDFT_FOLDER"  # environment variable with the run folder for all ranks


@dataclass
class WaitGroups:
    """Gloo groups of the functions below: of all ranks (None: the default group), and of those of this machine."""

    all_ranks: Any = None
    node: Any = None
    node_ranks: tuple[int, ...] = ()

    @classmethod
    def create(cls) -> "WaitGroups":
        import torch.distributed as group

        nodes, own = [None] * group.get_world_size(), get_process_info().node
        groups = cls(group.new_group(backend="gloo", timeout=WAIT_TIMEOUT))
        group.all_gather_object(nodes, own, group=groups.all_ranks)
        for node in sorted(set(nodes)):  # every rank takes part in the creation of every group
            ranks = tuple(rank for rank, other in enumerate(nodes) if other == node)
            node_group = group.new_group(ranks, backend="gloo", timeout=WAIT_TIMEOUT)
            if node == own:
                groups.node, groups.node_ranks = node_group, ranks
        return groups


wait_groups = WaitGroups()


@dataclass
class ProcessInfo:
    """Rank and process count from the launcher, globally and on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    node: int = 0


def get_process_info() -> ProcessInfo:
    """Read the environment of torchrun (also used by `launch_processes`) or srun; without either, a single process."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        rank, *sizes, local_count = (int(env[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        return ProcessInfo(rank, *sizes, local_count, int(env.get("GROUP_RANK", rank // local_count)))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # 1 in batch scripts and interactive shells
        count, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_STEP_NUM_NODES", 1))
        rank, local_rank, node = (int(env[key]) for key in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
        return ProcessInfo(rank, count, local_rank, count // nodes, node)
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


def init_process_group(on_cpu: bool) -> None:
    """Initialize the process groups; does nothing in a single process, or if they are initialized.

    The default one is that of the strategy; NCCL ends the run soon where a rank hangs. The functions below use another one.
    """
    global wait_groups
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
        timeout=COLLECTIVE_TIMEOUT,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
    )
    wait_groups = WaitGroups.create()


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
    """Barrier, then destroy the process groups. Do not call it from a failing rank: it would block."""
    global wait_groups
    if is_initialized():
        barrier()
        sys.modules["torch.distributed"].destroy_process_group()
        wait_groups = WaitGroups()


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
    sys.modules["torch.distributed"].broadcast_object_list(values, src=0, group=wait_groups.all_ranks)
    return values[0]


def compute_on_node(compute: Callable[[], Any]) -> Any:
    """What `compute` returns in the first process of this machine, which sends it, or its error, to the others. Collective."""
    if len(wait_groups.node_ranks) < 2:
        return compute()
    first, results = wait_groups.node_ranks[0], [None, None]
    send = partial(sys.modules["torch.distributed"].broadcast_object_list, src=first, group=wait_groups.node)
    if rank() == first:
        try:
            results[0] = compute()
        except Exception as error:
            send([None, str(error.__cause__ or error)])  # Hydra wraps the errors of constructors
            raise
    send(results)
    if results[1]:
        raise ValueError(results[1])
    return results[0]


def barrier() -> None:
    """Block until all ranks get here."""
    broadcast(None)


def gather(value) -> list:
    """Gather an object from every rank on rank 0, in rank order; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    sys.modules["torch.distributed"].gather_object(value, values, dst=0, group=wait_groups.all_ranks)
    return values or []


def all_reduce_max(count: int) -> int:
    """Maximum over all ranks."""
    if world_size() == 1:
        return count
    import torch

    maximum = torch.tensor(count)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX, group=wait_groups.all_ranks)
    return int(maximum)


def all_gather(value) -> list:
    """Gather an object from every rank on all ranks, in rank order."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    sys.modules["torch.distributed"].all_gather_object(values, value, group=wait_groups.all_ranks)
    return values
