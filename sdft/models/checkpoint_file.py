"""Recognise what a checkpoint file holds from its header: names, shapes and types of its tensors, and its metadata.

The header is untrusted. The safetensors library bounds its size and checks its offsets; a tensor is read only if a layer of a
supported model has its name and shape.
"""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from sdft.models.embedded import find_bundled_configs
from sdft.models.family import INPUT_CHANNELS, SUPPORTED, read_config
from sdft.models.original_layout import LAYOUTS, UNET_PREFIX, Layout
from sdft.models.safetensors_check import check_safetensors
from sdft.models.stable_diffusion_xl import EMPTY_CAPTIONS
from sdft.runs.files import get_identity

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CONVERSION = (  # of a pickle, without running code that it may hold
    "import torch; from safetensors.torch import save_file; w = torch.load({source!r}, map_location='cpu', weights_only=True); "
    "save_file({{k: v.clone().contiguous() for k, v in w.get('state_dict', w).items() if hasattr(v, 'clone')}}, {target!r})"
)
FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"  # of the UNet
FLOAT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # safetensors' names
MAX_KEY_LENGTH = 200  # characters in a message
OTHER_MODELS = (  # a pattern of tensor names, and what such a file is; the first that matches
    (
        r"(^|[._])lora[._](up|down|A|B|unet|te\d?)[._]|\.(hada_w1_a|lokr_w1|lokr_w1_a|oft_blocks|dora_scale)$",
        "a LoRA file",
    ),
    (r"^control_model\.|input_hint_block|^controlnet_|zero_convs", "a ControlNet"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"^(emb_params|string_to_param|clip_[lg])$|^<.*>$", "a textual inversion embedding"),
    (r"motion_modules|temporal_transformer", "an AnimateDiff motion module"),
    (r"time_stack|time_mixer|^conditioner\.embedders\.\d\.open_clip\.", "Stable Video Diffusion"),
    (r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale)$|\.weight\.(absmax|quant_map|quant_state)", "quantized"),
    (r"(^|\.)double_blocks\.\d+\.img_attn\.|(^|\.)single_transformer_blocks\.", "Flux"),
    (r"(^|\.)joint_blocks\.|\.attn\.add_[qkv]_proj\.", "Stable Diffusion 3"),
    (
        r"^((model\.)?diffusion_model\.|transformer\.|model\.)?(double_)?(single_)?(blocks|layers|transformer_blocks)\.\d",
        "a transformer of another family",
    ),
    (r"(^|\.)down_blocks\.\d+\.\d+\.(channelwise|kv_mapper)\.|clip_txt_mapper", "Stable Cascade"),
    (r"^conditioner\.embedders\.0\.model\.", "the refiner of Stable Diffusion XL"),
    (r"^edm_(vpred|mean|std)", "a model with another noise process, such as CosXL or Playground 2.5"),
    (r"^(noise_augmentor|embedder)\.", "an image variation model"),
    (r"^depth_model\.", "a depth-to-image model"),
    (r"^cond_stage_model\.(roberta|transformation|transformer\.token_emb)", "a model with another text encoder"),
)
PARTS_OF_MODELS = (  # the same for files without a UNet in the original layout
    (
        r"^(unet|vae|text_encoder)\.|^(down_blocks|up_blocks|mid_block)\.|^(encoder|decoder)\.(down_blocks|up_blocks)\.",
        "a network with diffusers' names; give the folder of the model",
    ),
    (
        r"^(diffusion_model\.)?(input_blocks|output_blocks|middle_block)\.",
        "a UNet without autoencoder and text encoder",
    ),
    (
        r"^(first_stage_model\.)?(encoder|decoder)\.(down|up|mid|conv_in)|quant_conv\.",
        "an autoencoder; give model.vae=FILE",
    ),
    (r"^(cond_stage_model|text_model|transformer\.resblocks)\.|token_embedding", "a text encoder"),
    (r"^model_ema\.", "the EMA weights of a model, without the model"),
)
PREDICTION_TYPES = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
VELOCITY_MARKER, ZERO_TERMINAL_SNR_MARKER = "v_pred", "ztsnr"  # names of empty tensors
EMPTY_CAPTION_KEY = "sdft.empty_caption"  # in the metadata of files that sdft wrote


@dataclass(frozen=True)
class CheckpointFile:
    """The header of a safetensors file; `option` names the file in errors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    metadata: dict[str, str]
    option: str = "model.name"

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.option}={self.path}: {message}")

    def find_first(self, rows: tuple[tuple[str, str], ...]) -> str | None:
        """The description in the first row whose pattern matches a tensor name, with that name."""
        for pattern, name in rows:
            if key := next((key for key in sorted(self.shapes) if re.search(pattern, key)), None):
                return f"is {name} ({format_key(key)})"
        return None

    @property
    def has_unet(self) -> bool:
        return FIRST_LAYER in self.shapes

    @property
    def context_width(self) -> int | None:
        """Width of the text embeddings that the UNet takes."""
        keys = (key for key in self.shapes if key.startswith(UNET_PREFIX) and key.endswith("attn2.to_k.weight"))
        return next((self.shapes[key][1] for key in keys if len(self.shapes[key]) == 2), None)

    @cached_property
    def layout(self) -> tuple[Layout, dict[str, str]]:
        """The layout of a supported family, and the prefix of each text encoder; `ValueError` names anything else."""
        if description := self.find_first(OTHER_MODELS):
            raise self.error(f"{description}; {SUPPORTED}")
        stem = self.shapes.get(FIRST_LAYER, ())
        if len(stem) != 4:
            description = self.find_first(PARTS_OF_MODELS) or "holds no model that is known"
            raise self.error(f"{description}; {SUPPORTED}")
        if name := INPUT_CHANNELS.get(stem[1]):
            raise self.error(f"is {name}: its UNet has {stem[1]} input channels; {SUPPORTED}")
        for layout in LAYOUTS:
            prefixes = {
                part: next((prefix for prefix in text.prefixes if prefix + text.token_embedding in self.shapes), None)
                for part, text in layout.text_encoders.items()
            }
            if None not in prefixes.values():
                return layout, prefixes
        raise self.error(
            "has no text encoder that is known (cond_stage_model. or conditioner.); give the complete checkpoint"
        )

    def find_configs(self) -> Path:
        """The folder in the package with the configurations of such a UNet."""
        stem, width = self.shapes[FIRST_LAYER], self.context_width
        for folder in find_bundled_configs().values():
            config = read_config(folder, "unet/config.json")
            if (config["block_out_channels"][0], config["in_channels"], config["cross_attention_dim"]) == (
                *stem[:2],
                width,
            ):
                return folder
        raise self.error(
            f"its UNet begins with {stem[0]} channels and takes text embeddings of width {width}, which no known model does; "
            "give model.architecture=FOLDER with its configurations in the diffusers layout"
        )

    def detect_prediction_type(self, layout: Layout) -> str | None:
        """What the file says that its UNet predicts, else what all models of the family do; None if that is open."""
        if VELOCITY_MARKER in self.shapes:
            return "v_prediction"
        if declared := self.metadata.get("modelspec.prediction_type"):
            if declared not in PREDICTION_TYPES:
                raise self.error(f"modelspec.prediction_type is {format_key(declared)}, not epsilon or v")
            return PREDICTION_TYPES[declared]
        architecture = self.metadata.get("modelspec.architecture", "")
        return layout.prediction_types.get(architecture, layout.prediction_type)

    def choose_prediction_type(self, chosen: str | None) -> str:
        """The user's choice, else that of the file; `ValueError` asks for it where the file leaves it open."""
        layout, _ = self.layout
        if prediction_type := chosen or self.detect_prediction_type(layout):
            return prediction_type
        raise ValueError(
            f"model.prediction_type=null: {self.path} is {layout.name} and does not say what it predicts; "
            "give model.prediction_type=v_prediction (models for 768 px) or epsilon (for 512 px)"
        )

    @property
    def has_zero_terminal_snr(self) -> bool:
        return ZERO_TERMINAL_SNR_MARKER in self.shapes

    @property
    def empty_caption(self) -> str:
        """As recorded, else encoded, as by the trainers of most derivatives, which are published as files."""
        declared = self.metadata.get(EMPTY_CAPTION_KEY)
        return declared if declared in EMPTY_CAPTIONS else "encoded"


def read_checkpoint_header(path: Path, option: str = "model.name") -> CheckpointFile:
    """Read no tensors; `ValueError` for a pickle, with the command that converts it, and for a damaged file."""
    if path.suffix in PICKLES:
        code = CONVERSION.format(source=str(path), target=str(path.with_suffix(".safetensors")))
        raise ValueError(f"{option}={path}: pickles can hold code; convert it: python -c {shlex.quote(code)}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{option}={path}: a file; give a .safetensors file or a folder in the diffusers layout")
    return read_header(path, get_identity(path) if path.is_file() else (), option)


@lru_cache(maxsize=4)
def read_header(path: Path, identity: tuple[int, ...], option: str) -> CheckpointFile:
    """Read once while `identity` stays the same."""
    from safetensors import safe_open

    check_safetensors(path, option)
    with safe_open(path, "pt") as reader:
        slices = {key: reader.get_slice(key) for key in reader.keys()}  # noqa: SIM118  not a dict
        shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
        types = {key: one.get_dtype() for key, one in slices.items()}
        return CheckpointFile(path, shapes, types, dict(reader.metadata() or {}), option)


def format_key(key: str) -> str:
    return key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}…"
