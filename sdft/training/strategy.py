"""Devices and machines of a run, and how its processes share the work."""

from dataclasses import dataclass

from sdft.distributed import (
    build_cluster_environment,
    count_cpu_cores,
    count_gpus,
    get_process_info,
    is_launched,
    select_device,
)

STRATEGY_NAMES = ("auto", "ddp", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu")


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
        """The device of this process, before a trainer exists: the CPU, the GPU of its local rank, or an Apple GPU (mps)."""
        import torch

        return torch.device(select_device(self.accelerator))

    def on_cpu(self) -> bool:
        return self.accelerator == "cpu" or not count_gpus()

    def processes_per_node(self) -> int:
        """Processes per machine. On a CPU, `auto` is one, which already uses every core."""
        if self.devices != "auto":
            return int(self.devices)
        if is_launched():
            return get_process_info().local_count
        return 1 if self.on_cpu() else count_gpus()

    def world_size(self) -> int:
        return self.processes_per_node() * self.num_nodes

    def count_processes_to_launch(self) -> int:
        """How many processes this one has to launch; 0 in a single-process or an already launched run."""
        if not is_launched():
            if self.num_nodes > 1:
                raise ValueError(
                    f"num_nodes={self.num_nodes}: launch it on every machine with torchrun --nnodes={self.num_nodes} "
                    "--nproc-per-node=… --rdzv-backend=c10d --rdzv-endpoint=FIRST:29500 train.py …, or with srun"
                )
            if self.on_cpu() and self.world_size() > (cores := count_cpu_cores()):
                raise ValueError(
                    f"devices={self.devices}: only {cores} CPU cores are available; choose {cores} or fewer"
                )
            return self.world_size() if self.world_size() > 1 else 0
        if (launched := get_process_info()).count != self.world_size():
            raise ValueError(
                f"devices={self.devices} num_nodes={self.num_nodes}: {launched.count} processes were launched, "
                f"{launched.local_count} per machine; set devices={launched.local_count} "
                f"num_nodes={launched.count // launched.local_count}"
            )
        return 0

    def trainer_kwargs(self) -> dict:
        """Arguments of Lightning's Trainer."""
        if self.accelerator == "gpu" and not count_gpus():
            raise ValueError("accelerator=gpu: torch finds no GPU on this machine; choose auto or cpu")
        num_gpus = 0 if self.accelerator == "cpu" else count_gpus()
        if num_gpus and self.devices != "auto" and int(self.devices) > num_gpus:
            raise ValueError(f"devices={self.devices}: this machine has {num_gpus} GPUs; choose auto or fewer")
        if is_launched() and 0 < num_gpus < self.processes_per_node():
            raise ValueError(
                f"devices={self.devices}: {self.processes_per_node()} processes per machine, but each sees {num_gpus} GPU; "
                "use srun --gpus-per-node"
            )
        return {
            "accelerator": "cpu" if self.on_cpu() and self.accelerator == "auto" else self.accelerator,
            "devices": self.processes_per_node(),
            "num_nodes": self.num_nodes,
            "strategy": self.build_lightning_strategy(),
            "plugins": [build_cluster_environment()],
        }

    def shards_weights(self) -> bool:
        return self.name == "fsdp" and self.world_size() > 1

    def check(self, output_kind: str, needs_grad_scaler: bool) -> None:
        """`ValueError` if FSDP does not support the method, by its `output_kind`, or gradient scaling."""
        if self.name == "fsdp" and output_kind != "pipeline":
            raise ValueError("strategy=fsdp: supports full fine-tuning only; use strategy=ddp for adapters")
        if self.name == "fsdp" and needs_grad_scaler:
            raise ValueError("strategy=fsdp: does not support fp16 gradient scaling; choose precision=bf16 or fp32")

    def build_lightning_strategy(self):
        """Lightning's strategy object; `auto` for a single process."""
        if self.world_size() == 1:
            return "auto"
        from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

        if self.name == "fsdp":
            return ModelParallelStrategy(self.world_size(), 1, save_distributed_checkpoint=False)
        # buffers are constant, and those of offloaded parts are on the CPU; gradients are reduced where they are
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
