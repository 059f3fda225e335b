"""Metadata of weights files for other tools: Stability's ModelSpec 1.0.0 and kohya's `ss_` keys.

All of it is text in the safetensors header and derives from the run folder: two equal runs write equal files.
"""

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path

from sdft.lora.families import get_kohya_version, get_modelspec_name
from sdft.runs.files import atomic_write
from sdft.runs.metadata import read_data_report, read_record
from sdft.runs.samples import find_last_samples
from sdft.training.export.trigger_words import find_trigger_words, to_printable_line

MODELSPEC_ADAPTER_TYPES = {"adapter": "lora", "embedding": "textual-inversion"}  # by output kind
MAX_THUMBNAIL_SIZE = 256  # pixels of the longer side
KOHYA_FILE_KEYS = {"base": ("ss_sd_model_name", "ss_new_sd_model_hash"), "vae": ("ss_vae_name", "ss_new_vae_hash")}
KOHYA_OPTIONS = {  # option of a run by kohya's metadata key
    "ss_seed": "seed",
    "ss_batch_size_per_device": "batch_size",
    "ss_gradient_accumulation_steps": "gradient_accumulation_steps",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_noise_offset": "noise_offset",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_shuffle_caption": "shuffle_tags",
    "ss_flip_aug": "flip",
}


def get_modelspec_architecture(model) -> str:
    """ModelSpec's name of a base model; unlisted ones are named by their cross-attention width."""
    return get_modelspec_name(model.unet.config.cross_attention_dim, model.prediction_type)


def build_modelspec_metadata(
    run: Path, result: str = "adapter", steps: int | None = None, captions: bool = True
) -> dict[str, str]:
    """Metadata of a run, finished or not; `steps` is the step of its result. Without `captions` it has trigger words only.

    It contains no dates, local paths or image names.
    """
    facts = read_record(
        run, "options", "steps", "epochs", "images", "num_class_images", "resolution", "prediction_type"
    )
    options, steps, base = facts["options"], steps or facts["steps"], facts.get("architecture")
    triggers = find_trigger_words(run)
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{base}/{MODELSPEC_ADAPTER_TYPES[result]}" if base else None,
        "implementation": "diffusers",
        "title": to_printable_line(options["name"]),
        "description": f"trained with sdft: {facts['images']} images, {steps} steps, batch {options['batch_size']}",
        "resolution": f"{facts['resolution']}x{facts['resolution']}",
        "prediction_type": {"v_prediction": "v"}.get(facts["prediction_type"], facts["prediction_type"]),
        "trigger_phrase": ", ".join(triggers) or None,
        "usage_hint": f"use {' or '.join(triggers)} in the prompt" if triggers else None,
        "thumbnail": encode_thumbnail(run),
    }
    kohya = build_kohya_metadata(facts, steps, count_tags(run, triggers, captions))
    return {f"modelspec.{key}": str(value) for key, value in spec.items() if value is not None} | {
        key: str(value) for key, value in kohya.items() if value is not None
    }


def build_kohya_metadata(facts: dict, steps: int, tag_counts: dict[str, int]) -> dict:
    """kohya's `ss_` keys, from `run.json`."""
    options, base, rates = facts["options"], facts.get("architecture"), facts.get("part_lr", {})
    name, text_rates = to_printable_line(options["name"]), [rate for part, rate in rates.items() if part != "unet"]
    metadata = {key: options[option] for key, option in KOHYA_OPTIONS.items() if options.get(option) is not None}
    for role, file in facts.get("files", {}).items():
        metadata |= dict(zip(KOHYA_FILE_KEYS.get(role, ()), (file["name"], file["sha256"]), strict=False))
    return metadata | {
        "ss_learning_rate": next(iter(rates.values()), None),
        "ss_unet_lr": rates.get("unet"),
        "ss_text_encoder_lr": text_rates[0] if len(set(text_rates)) == 1 else text_rates or None,
        "ss_min_snr_gamma": options.get("snr_gamma") or None if options.get("weighting") == "min_snr" else None,
        "ss_keep_tokens": options.get("keep_tags") if options.get("shuffle_tags") else None,
        "ss_mixed_precision": {"fp32": "no"}.get(options.get("precision"), options.get("precision")),
        "ss_random_crop": options.get("crop") == "random",
        "ss_clip_skip": facts.get("clip_skip", {}).get("webui"),
        "ss_output_name": name,
        "ss_v2": "v2" in str(base),
        "ss_base_model_version": get_kohya_version(base),
        "ss_resolution": f"({facts['resolution']}, {facts['resolution']})",
        "ss_num_train_images": facts["images"],
        "ss_num_reg_images": facts["num_class_images"],
        "ss_num_epochs": facts["epochs"],
        "ss_max_train_steps": facts["steps"],
        "ss_steps": steps,
        "ss_enable_bucket": options.get("crop") == "buckets",
        "ss_tag_frequency": json.dumps({f"1_{name}": tag_counts}, ensure_ascii=False),
    }


def count_tags(run: Path, triggers: list[str], captions: bool) -> dict[str, int]:
    """Number of training captions by tag; without `captions`, the number of images for each trigger word."""
    stats = read_data_report(run)
    return stats.get("frequent tags", {}) if captions else dict.fromkeys(triggers, stats.get("images", 0))


def encode_thumbnail(run: Path) -> str | None:
    """The latest sample of the first prompt as a small JPEG in a data URI."""
    from PIL import Image

    if not (folder := find_last_samples(run)):
        return None
    image, data = Image.open(folder / "000.png").convert("RGB"), io.BytesIO()
    image.thumbnail((MAX_THUMBNAIL_SIZE, MAX_THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    image.save(data, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def write_result_metadata(folder: Path, run: Path, result: str, steps: int) -> None:
    """Write the run's metadata into an adapter's or embedding's files; a pipeline's folder describes itself."""
    if result in MODELSPEC_ADAPTER_TYPES:
        write_header_metadata(folder, build_modelspec_metadata(run, result, steps))


def merge_usage_hints(existing: dict[str, str], added: dict[str, str]) -> dict[str, str]:
    """Join the usage hint written by the method with the added one."""
    hints = [metadata["modelspec.usage_hint"] for metadata in (existing, added) if "modelspec.usage_hint" in metadata]
    if len(hints) < 2 or hints[1] in hints[0]:
        return {"modelspec.usage_hint": hints[0]} if hints else {}
    return {"modelspec.usage_hint": "; ".join(hints)}


def write_header_metadata(folder: Path, metadata: dict[str, str]) -> None:
    """Add `metadata` and the hash of the tensors to the header of every weights file in `folder`.

    The bytes of the tensors stay the same.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as source, atomic_write(file) as partial:
            size = int.from_bytes(source.read(8), "little")
            header = json.loads(source.read(size))
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
            existing = header.get("__metadata__", {})
            merged = {**existing, **metadata, **merge_usage_hints(existing, metadata), **hashes}
            header["__metadata__"] = dict(sorted(merged.items()))
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            source.seek(8 + size)
            with open(partial, "wb") as target:
                target.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(source, target)
