"""Where a run computes: which devices, how many machines, and how they share the work."""

from dataclasses import dataclass

from sdft.distributed import cluster, cores, gpu, launched, place

NAMES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu")


def alone(accelerator: str) -> str:
    """Where this process computes without a trainer: on its GPU, if there is one and it is not to be the CPU."""
    import torch

    return f"cuda:{gpu()}" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"


@dataclass
class Strategy:
    name: str = "auto"
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"strategy.name={self.name}: choose one of {', '.join(NAMES)}")
        if self.accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator={self.accelerator}: choose one of {', '.join(ACCELERATORS)}")
        if self.devices != "auto" and (not str(self.devices).isdecimal() or int(self.devices) < 1):
            raise ValueError(f"devices={self.devices}: choose auto, or 1 or more")
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes={self.num_nodes}: choose 1 or more")

    def device(self):
        """Where this process computes, before there is a trainer: of a machine's GPUs the one of its local rank."""
        import torch

        return torch.device("cpu" if self.on_cpu() else f"cuda:{gpu()}")

    def on_cpu(self) -> bool:
        import torch

        return self.accelerator == "cpu" or not torch.cuda.is_available()

    def local(self) -> int:
        """How many processes compute on each machine. On a CPU, `auto` is one: it already uses every core."""
        import torch

        if self.devices != "auto":
            return int(self.devices)
        if launched():
            return place().local_count
        return 1 if self.on_cpu() else torch.cuda.device_count()

    def world(self) -> int:
        return self.local() * self.num_nodes

    def to_start(self) -> int:
        """How many processes this one has to start and wait for; 0 when it is one of them, or alone."""
        if not launched():
            if self.num_nodes > 1:
                raise ValueError(
                    f"num_nodes={self.num_nodes}: start it on every machine, with torchrun --nnodes={self.num_nodes} "
                    "--nproc-per-node=… --rdzv-backend=c10d --rdzv-endpoint=FIRST:29500 train.py …, or with srun"
                )
            if self.on_cpu() and self.world() > (most := max(16, cores())):
                raise ValueError(f"devices={self.devices}: this machine has {cores()} cores; choose {most} or fewer")
            return self.world() if self.world() > 1 else 0
        if (told := place()).count != self.world():
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
        if launched() and 0 < cuda < self.local():
            raise ValueError(
                f"{self.local()} processes on a machine see {cuda} GPU of it each; give srun --gpus-per-node"
            )
        return {
            "accelerator": "cpu" if self.on_cpu() and self.accelerator == "auto" else self.accelerator,
            "devices": self.local(),
            "num_nodes": self.num_nodes,
            "strategy": self.lightning(),
            "plugins": [cluster()],
        }

    def check(self, result: str, precision: str) -> None:
        """`result` is what the method leaves: an adapter or a pipeline."""
        if self.name == "fsdp" and result != "pipeline":
            raise ValueError("strategy=fsdp: spreads weights that learn, and an adapter's are few; choose strategy=ddp")
        if self.name == "fsdp" and precision == "16-mixed":
            raise ValueError("strategy=fsdp: does not scale fp16 gradients; choose precision=bf16 or fp32")

    def lightning(self):
        """How the processes share the work; one alone needs nothing of it."""
        if self.world() == 1:
            return "auto"
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        if self.name == "fsdp":
            return ModelParallelStrategy(self.world(), 1, save_distributed_checkpoint=False)
        return DDPStrategy(broadcast_buffers=False)  # they never change, and those of parts that rest are elsewhere
