"""LoRA: W x + (alpha / rank) B A x with W frozen and B initialized to zero (Hu et al., 2021), and its variants."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sdft.methods.base import Method
from sdft.methods.text_encoders import TextEncoderChoice, check_text_encoder_choice, choose_text_encoders

ADAPTER_TYPES = ("lora", "loha", "lokr")
INIT_METHODS = ("gaussian", "kaiming", "pissa")
MAX_RANK = 4096
LORA_ONLY_DEFAULTS = {
    "init_lora_weights": "gaussian",
    "dropout": 0.0,
    "use_rslora": False,
    "use_dora": False,
    "loraplus_lr_ratio": 1.0,
}


@dataclass
class LoRA(Method):
    """Adapters on the modules whose names end in one of the targets.

    `text_encoder`: whether to train the text encoders, or the names of those to train; None: as is usual for the model.
    `adapter_type`: lora, or the Hadamard (loha) or Kronecker (lokr) products of LyCORIS, saved as the exactly equivalent LoRA.
    `init_lora_weights`: A gaussian or kaiming and B zero, or pissa: both from the largest singular vectors (Meng et al., 2024).
    `use_rslora`: scale by alpha / sqrt(rank) (Kalajdzievski, 2023). `use_dora`: separate the magnitude (Liu et al., 2024).
    `loraplus_lr_ratio`: the learning rate of B relative to that of A (LoRA+, Hayou et al., 2024; usually 16).
    """

    rank: int
    alpha: float
    text_encoder: TextEncoderChoice = None
    unet_targets: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    text_encoder_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])
    adapter_type: str = "lora"
    dropout: float = 0.0
    init_lora_weights: str = "gaussian"
    use_rslora: bool = False
    use_dora: bool = False
    loraplus_lr_ratio: float = 1.0
    output_kind: ClassVar[str] = "adapter"
    extra_metadata: ClassVar[dict[str, str]] = {}  # additional file metadata

    def __post_init__(self):
        check_text_encoder_choice(self.text_encoder)
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: choose 1 or more")
        if self.rank > MAX_RANK:
            raise ValueError(f"rank={self.rank}: choose {MAX_RANK} or less")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha}: choose more than 0; alpha=rank is usual")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"method.dropout={self.dropout}: choose at least 0 and less than 1")
        if self.loraplus_lr_ratio <= 0:
            raise ValueError(
                f"method.loraplus_lr_ratio={self.loraplus_lr_ratio}: choose more than 0; 1 is off, 16 is usual"
            )
        for key, choices in {"adapter_type": ADAPTER_TYPES, "init_lora_weights": INIT_METHODS}.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"method.{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        if self.adapter_type != "lora" and (
            unsupported := [k for k, default in LORA_ONLY_DEFAULTS.items() if getattr(self, k) != default]
        ):
            raise ValueError(
                f"method.{unsupported[0]}={getattr(self, unsupported[0])}: requires method.adapter_type=lora, "
                f"not {self.adapter_type}"
            )
        if self.init_lora_weights == "pissa" and (self.use_dora or self.dropout):
            raise ValueError(
                "method.init_lora_weights=pissa: not supported with use_dora or dropout, which would change the initial model"
            )

    def get_targets(self, model) -> dict[str, list[str]]:
        """Target patterns by part; a part without patterns gets no adapter."""
        chosen = choose_text_encoders(model, self.text_encoder, model.trains_text_encoders_by_default)
        targets = {part: self.text_encoder_targets if part in chosen else [] for part in model.text_encoders}
        targets = {part: targets.get(part, self.unet_targets) for part in model.parts}
        return {part: list(patterns) for part, patterns in targets.items() if patterns}

    def check(self, model, captions):
        for part, patterns in self.get_targets(model).items():
            option = "text_encoder_targets" if part in model.text_encoders else "unet_targets"
            is_linear = self.init_lora_weights == "pissa"
            check_target_modules(model.parts[part], part, patterns, f"method.{option}", is_linear)

    def needs_fp32(self, part):
        """PiSSA decomposes the weights, DoRA takes their norms."""
        reads_weights = self.init_lora_weights == "pissa" or self.use_dora
        choice = self.text_encoder
        return reads_weights and (part == "unet" or choice in (None, True) or (choice is not False and part in choice))

    def prepare(self, model):
        from sdft.lora.attention import use_lora_attention
        from sdft.lora.to_lora import compute_low_rank_updates
        from sdft.models.precision import add_adapters_in_fp32

        for part, patterns in self.get_targets(model).items():
            with add_adapters_in_fp32(model.parts[part]):
                model.parts[part].add_adapter(self.build_peft_config(patterns))
        use_lora_attention(model.unet)
        model.freeze_unused_modules()
        self.initial_updates = (
            {part: compute_low_rank_updates(model.parts[part]) for part in self.get_targets(model)}
            if self.init_lora_weights == "pissa"
            else {}
        )

    def build_peft_config(self, patterns: list[str]):
        """The peft config of one part."""
        from peft import LoHaConfig, LoKrConfig, LoraConfig

        if self.adapter_type != "lora":
            config_class = {"loha": LoHaConfig, "lokr": LoKrConfig}[self.adapter_type]
            return config_class(r=self.rank, alpha=self.alpha, target_modules=patterns)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=patterns,
            lora_dropout=self.dropout,
            init_lora_weights=True if self.init_lora_weights == "kaiming" else self.init_lora_weights,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )

    def get_lr_multiplier(self, name: str) -> float:
        return self.loraplus_lr_ratio if ".lora_B." in name else 1.0

    def save(self, model, folder: Path, name: str):
        from sdft.lora.architecture import get_model_architecture
        from sdft.lora.formats import save_lora
        from sdft.lora.state_dict import convert_to_lora, get_adapter_state

        is_plain_lora = self.adapter_type == "lora" and self.init_lora_weights != "pissa"
        adapters = {}
        for part in self.get_targets(model):
            component, network = model.component_names[part], model.parts[part]
            adapters[component] = (
                get_adapter_state(component, network)
                if is_plain_lora
                else convert_to_lora(component, network, self.initial_updates.get(part))
            )
        save_lora(adapters, folder, name, get_model_architecture(model), self.extra_metadata)

    def load(self, model, folder: Path):
        from sdft.lora.formats import load_lora

        load_lora(model, folder)


def check_target_modules(module, part: str, patterns: list[str], option: str, linear: bool = False) -> None:
    """Raise `ValueError` for a pattern that matches no layer, which would silently reduce the trainable weights."""
    from torch import nn

    layer_types = nn.Linear if linear else (nn.Linear, nn.Conv2d)
    layers = [name for name, layer in module.named_modules() if isinstance(layer, layer_types)]
    for pattern in patterns:
        if not any(name == pattern or name.endswith(f".{pattern}") for name in layers):
            suffixes = sorted(
                {".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.split(".")[-1] for name in layers}
            )
            kind = "linear layer" if linear else "layer"
            raise ValueError(
                f"{option}: {pattern!r} matches no {kind} of the {part}; choose from {', '.join(suffixes)}"
            )
