"""LoRA: W x + (alpha / rank) B A x with W frozen, B zero at the start (Hu et al., 2021)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sdft.methods.base import Method

INITS = ("gaussian", "kaiming")


@dataclass
class LoRA(Method):
    """Adapters on the modules whose names end in one of the targets.

    `rslora` scales by alpha / sqrt(rank) (Kalajdzievski, 2023); `dora` learns magnitude apart from direction (Liu et al., 2024).
    """

    rank: int
    alpha: float
    text_encoder: bool = True
    unet_targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    text_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])
    dropout: float = 0.0
    init: str = "gaussian"
    rslora: bool = False
    dora: bool = False
    result: ClassVar[str] = "adapter"

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: choose 1 or more")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha}: choose more than 0; alpha equal to rank is usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"method.dropout={self.dropout}: choose from 0 up to, not including, 1")
        if self.init not in INITS:
            raise ValueError(f"method.init={self.init}: choose one of {', '.join(INITS)}")

    def targets(self) -> dict[str, list[str]]:
        """The patterns of each part that gets an adapter; an empty list leaves the part as it is."""
        chosen = {"unet": list(self.unet_targets), "text_encoder": list(self.text_targets) if self.text_encoder else []}
        return {part: patterns for part, patterns in chosen.items() if patterns}

    def prepare(self, model):
        from peft import LoraConfig

        for part, patterns in self.targets().items():
            check_targets(model.parts[part], part, patterns)
            model.parts[part].add_adapter(
                LoraConfig(
                    r=self.rank,
                    lora_alpha=self.alpha,
                    target_modules=patterns,
                    lora_dropout=self.dropout,
                    init_lora_weights="gaussian" if self.init == "gaussian" else True,
                    use_rslora=self.rslora,
                    use_dora=self.dora,
                )
            )

    def save(self, model, folder: Path, name: str):
        from sdft.export import save_lora

        save_lora({part: model.parts[part] for part in self.targets()}, folder, name)

    def load(self, model, folder: Path):
        from sdft.export import load_lora

        load_lora(model, folder)


def check_targets(module, part: str, patterns: list[str]) -> None:
    """Every pattern must name a layer, or part of what should learn would silently stay as it was."""
    from torch import nn

    layers = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    key = "method.unet_targets" if part == "unet" else "method.text_targets"
    for pattern in patterns:
        if not any(name == pattern or name.endswith(f".{pattern}") for name in layers):
            endings = sorted(
                {".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.split(".")[-1] for name in layers}
            )
            raise ValueError(f"{key}: {pattern!r} matches no layer of the {part}; it has {', '.join(endings)}")
