"""What other tools show of a weights file: Stability's ModelSpec 1.0.0, and the `ss_` words that WebUIs know of kohya's.

Everything here is text in the header of a safetensors file and follows from the run's folder: two equal runs write equal files.
"""

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path

from sdft.runs.files import atomic_write, read_json
from sdft.runs.samples import find_last_samples
from sdft.training.export.trigger_words import find_trigger_words, to_printable_line

ARCHITECTURE_BY_CONTEXT_WIDTH = {
    768: "stable-diffusion-v1",
    1024: "stable-diffusion-v2",
}  # by the width of what their UNets attend to
KOHYA_BASE_VERSIONS = {"stable-diffusion-v1": "sd_v1", "stable-diffusion-v2": "sd_v2"}  # as kohya's trainer calls them
MODELSPEC_ADAPTER_TYPES = {"adapter": "lora", "embedding": "textual-inversion"}  # by the result's folder
MAX_THUMBNAIL_SIZE = 256  # pixels on its longer side
KOHYA_OPTIONS = {  # of a run, under the names that readers of kohya's metadata know
    "ss_seed": "seed",
    "ss_learning_rate": "lr",
    "ss_unet_lr": "lr",
    "ss_text_encoder_lr": "text_encoder_lr",
    "ss_batch_size_per_device": "batch_size",
    "ss_gradient_accumulation_steps": "gradient_accumulation_steps",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_min_snr_gamma": "snr_gamma",
    "ss_noise_offset": "noise_offset",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_shuffle_caption": "shuffle_tags",
    "ss_keep_tokens": "keep_tags",
    "ss_random_crop": "crop",
    "ss_flip_aug": "flip",
}


def get_modelspec_architecture(model) -> str:
    """ModelSpec's name of a base; one that it does not know is named by the width of its UNet's attention."""
    width = model.unet.config.cross_attention_dim
    if ARCHITECTURE_BY_CONTEXT_WIDTH.get(width) == "stable-diffusion-v2":
        return "stable-diffusion-v2-768-v" if model.prediction_type == "v_prediction" else "stable-diffusion-v2-512"
    return ARCHITECTURE_BY_CONTEXT_WIDTH.get(width, f"stable-diffusion-{width}")


def build_modelspec_metadata(
    run: Path, result: str = "adapter", steps: int | None = None, captions: bool = True
) -> dict[str, str]:
    """Of a run, finished or not; `steps` is when its result was taken. Without `captions` only the trigger words are told.

    No date, no path of this machine and no name of a picture is among it.
    """
    facts = read_json(run / "run.json")
    words = facts["options"]
    steps, name = steps or facts["steps"], to_printable_line(words["name"])
    found, base = find_trigger_words(run), facts.get("architecture")
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{base}/{MODELSPEC_ADAPTER_TYPES[result]}" if base else None,
        "implementation": "diffusers",
        "title": name,
        "description": f"learned with sdft: pictures {facts['images']}, steps {steps}, batch {words['batch_size']}",
        "resolution": f"{facts['resolution']}x{facts['resolution']}",
        "prediction_type": {"v_prediction": "v"}.get(facts["prediction_type"], facts["prediction_type"]),
        "trigger_phrase": ", ".join(found) or None,
        "usage_hint": f"write {' or '.join(found)} into the prompt" if found else None,
        "thumbnail": encode_thumbnail(run),
    }
    ss = {key: words[word] for key, word in KOHYA_OPTIONS.items() if words.get(word) is not None}
    ss["ss_mixed_precision"] = {"fp32": "no"}.get(words.get("precision"), words.get("precision"))
    ss["ss_random_crop"] = words.get("crop") == "random"
    ss |= {
        "ss_output_name": name,
        "ss_v2": "v2" in str(base),
        "ss_base_model_version": next((v for key, v in KOHYA_BASE_VERSIONS.items() if str(base).startswith(key)), base),
        "ss_resolution": f"({facts['resolution']}, {facts['resolution']})",
        "ss_num_train_images": facts["images"],
        "ss_num_reg_images": facts["class_images"],
        "ss_num_epochs": facts["epochs"],
        "ss_max_train_steps": facts["steps"],
        "ss_steps": steps,
        "ss_enable_bucket": words.get("crop") == "buckets",
        "ss_tag_frequency": json.dumps({f"1_{name}": count_tags(run, found, captions)}, ensure_ascii=False),
    }
    return {f"modelspec.{k}": str(v) for k, v in spec.items() if v is not None} | {
        key: str(value) for key, value in ss.items() if value is not None
    }


def count_tags(run: Path, found: list[str], captions: bool) -> dict[str, int]:
    """How often each tag was learned from: of the captions, or of the trigger words alone."""
    facts = read_json(run / "data.json")
    return facts.get("frequent tags", {}) if captions else dict.fromkeys(found, facts.get("pictures", 0))


def encode_thumbnail(run: Path) -> str | None:
    """The newest sample of the first prompt as a small JPEG in a data URI."""
    from PIL import Image

    if not (place := find_last_samples(run)):
        return None
    picture, data = Image.open(place / "000.png").convert("RGB"), io.BytesIO()
    picture.thumbnail((MAX_THUMBNAIL_SIZE, MAX_THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    picture.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def write_result_metadata(folder: Path, run: Path, result: str, steps: int) -> None:
    """What training writes of itself into its files; a pipeline's own folder describes it."""
    if result in MODELSPEC_ADAPTER_TYPES:
        write_header_metadata(folder, build_modelspec_metadata(run, result, steps))


def merge_usage_hints(before: dict[str, str], words: dict[str, str]) -> dict[str, str]:
    """How to use it, as its method has written, and what else there is to say."""
    hints = [told["modelspec.usage_hint"] for told in (before, words) if "modelspec.usage_hint" in told]
    if len(hints) < 2 or hints[1] in hints[0]:
        return {"modelspec.usage_hint": hints[0]} if hints else {}
    return {"modelspec.usage_hint": "; ".join(hints)}


def write_header_metadata(folder: Path, words: dict[str, str]) -> None:
    """Put `words` into the header of every weights file of `folder`, beside what is there, with the hash of its tensors.

    The tensors stay the same bytes.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as old, atomic_write(file) as partial:
            size = int.from_bytes(old.read(8), "little")
            header = json.loads(old.read(size))
            digest = hashlib.file_digest(old, "sha256").hexdigest()
            hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
            before = header.get("__metadata__", {})
            header["__metadata__"] = dict(
                sorted({**before, **words, **merge_usage_hints(before, words), **hashes}.items())
            )
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            old.seek(8 + size)
            with open(partial, "wb") as new:
                new.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(old, new)
