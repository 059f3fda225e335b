"""Where a run computes: which devices, how many machines, and how they share the work."""

from dataclasses import dataclass

NAMES = ("auto", "ddp")
ACCELERATORS = ("auto", "cpu", "gpu")


def alone(accelerator: str) -> str:
    """Where a single process computes: the first GPU, if there is one and it is not to be the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"


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
        if self.devices != "auto" and (not str(self.devices).isdigit() or int(self.devices) < 1):
            raise ValueError(f"devices={self.devices}: choose auto, or 1 or more")
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes={self.num_nodes}: choose 1 or more")

    def device(self):
        """Where this process computes, before there is a trainer: of a machine's GPUs the one of its local rank."""
        import os

        import torch

        local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
        return torch.device("cpu" if self.trainer()["accelerator"] == "cpu" else f"cuda:{local}")

    def trainer(self) -> dict:
        """What Lightning's Trainer takes. On a CPU, `auto` is one device: it already uses every core."""
        import torch

        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("accelerator=gpu: torch finds none on this machine; choose auto or cpu")
        cuda = 0 if self.accelerator == "cpu" else torch.cuda.device_count()
        if cuda and self.devices != "auto" and int(self.devices) > cuda:
            raise ValueError(f"devices={self.devices}: this machine has {cuda}; choose auto or fewer")
        cpu = self.accelerator == "cpu" or not torch.cuda.is_available()
        devices = 1 if self.devices == "auto" and cpu else self.devices
        return {
            "accelerator": "cpu" if cpu and self.accelerator == "auto" else self.accelerator,
            "devices": devices if devices == "auto" else int(devices),
            "num_nodes": self.num_nodes,
            "strategy": self.name,
        }
