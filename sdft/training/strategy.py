"""Where a run computes: which devices, how many machines, and how they share the work."""

from dataclasses import dataclass

from sdft.distributed import build_cluster_environment, count_cpu_cores, get_gpu_index, get_process_info, is_launched

STRATEGY_NAMES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu")


def select_device(accelerator: str) -> str:
    """Where this process computes without a trainer: on its GPU, if there is one and it is not to be the CPU."""
    import torch

    return f"cuda:{get_gpu_index()}" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"


@dataclass
class Strategy:
    name: str = "auto"
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1

    def __post_init__(self):
        if self.name not in STRATEGY_NAMES:
            raise ValueError(f"strategy.name={self.name}: choose one of {', '.join(STRATEGY_NAMES)}")
        if self.accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator={self.accelerator}: choose one of {', '.join(ACCELERATORS)}")
        if self.devices != "auto" and (not str(self.devices).isdecimal() or int(self.devices) < 1):
            raise ValueError(f"devices={self.devices}: choose auto, or 1 or more")
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes={self.num_nodes}: choose 1 or more")

    def device(self):
        """Where this process computes, before there is a trainer: of a machine's GPUs the one of its local rank."""
        import torch

        return torch.device("cpu" if self.on_cpu() else f"cuda:{get_gpu_index()}")

    def on_cpu(self) -> bool:
        import torch

        return self.accelerator == "cpu" or not torch.cuda.is_available()

    def processes_per_node(self) -> int:
        """How many processes compute on each machine. On a CPU, `auto` is one: it already uses every core."""
        import torch

        if self.devices != "auto":
            return int(self.devices)
        if is_launched():
            return get_process_info().local_count
        return 1 if self.on_cpu() else torch.cuda.device_count()

    def world_size(self) -> int:
        return self.processes_per_node() * self.num_nodes

    def count_processes_to_launch(self) -> int:
        """How many processes this one has to start and wait for; 0 when it is one of them, or alone."""
        if not is_launched():
            if self.num_nodes > 1:
                raise ValueError(
                    f"num_nodes={self.num_nodes}: start it on every machine, with torchrun --nnodes={self.num_nodes} "
                    "--nproc-per-node=… --rdzv-backend=c10d --rdzv-endpoint=FIRST:29500 train.py …, or with srun"
                )
            if self.on_cpu() and self.world_size() > (most := max(16, count_cpu_cores())):
                raise ValueError(
                    f"devices={self.devices}: this machine has {count_cpu_cores()} cores; choose {most} or fewer"
                )
            return self.world_size() if self.world_size() > 1 else 0
        if (told := get_process_info()).count != self.world_size():
            raise ValueError(
                f"devices={self.devices} num_nodes={self.num_nodes}: {told.count} processes were started, {told.local_count} on "
                f"a machine; give devices={told.local_count} num_nodes={told.count // told.local_count}"
            )
        return 0

    def trainer(self) -> dict:
        """What Lightning's Trainer takes."""
        import torch

        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("accelerator=gpu: torch finds none on this machine; choose auto or cpu")
        cuda = 0 if self.accelerator == "cpu" else torch.cuda.device_count()
        if cuda and self.devices != "auto" and int(self.devices) > cuda:
            raise ValueError(f"devices={self.devices}: this machine has {cuda}; choose auto or fewer")
        if is_launched() and 0 < cuda < self.processes_per_node():
            raise ValueError(
                f"{self.processes_per_node()} processes on a machine see {cuda} GPU of it each; give srun --gpus-per-node"
            )
        return {
            "accelerator": "cpu" if self.on_cpu() and self.accelerator == "auto" else self.accelerator,
            "devices": self.processes_per_node(),
            "num_nodes": self.num_nodes,
            "strategy": self.build_lightning_strategy(),
            "plugins": [build_cluster_environment()],
        }

    def check(self, result: str, precision: str) -> None:
        """`result` is what the method leaves: an adapter or a pipeline."""
        if self.name == "fsdp" and result != "pipeline":
            raise ValueError("strategy=fsdp: spreads weights that learn, and an adapter's are few; choose strategy=ddp")
        if self.name == "fsdp" and precision == "16-mixed":
            raise ValueError("strategy=fsdp: does not scale fp16 gradients; choose precision=bf16 or fp32")

    def build_lightning_strategy(self):
        """How the processes share the work; one alone needs nothing of it."""
        if self.world_size() == 1:
            return "auto"
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        if self.name == "fsdp":
            return ModelParallelStrategy(self.world_size(), 1, save_distributed_checkpoint=False)
        return DDPStrategy(broadcast_buffers=False)  # they never change, and those of parts that rest are elsewhere
