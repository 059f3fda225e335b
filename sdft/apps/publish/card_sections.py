"""Sections of a published model card: license, trigger words, training data, scores, settings, and use in other tools."""

import re
from pathlib import Path

from sdft.runs.metadata import read_data_report
from sdft.training.export.model_card import format_inline_code

LISTED_OPTIONS = """method rank alpha lr text_encoder_lr steps epochs batch_size gradient_accumulation_steps optimizer schedule
    warmup weighting snr_gamma
    loss noise_offset input_perturbation caption_dropout resolution crop flip caption_template precision ema seed"""


def render_license_section(license: str | None, base: str) -> str:
    if license:
        base = format_inline_code(base)
        return f"License: {format_inline_code(license)}. The license of the base model, {base}, also applies."
    return "**No license**: only the author may use this model."


def render_trigger_section(triggers: list[str]) -> list[str]:
    if not triggers:
        return []
    return [f"## Trigger words\n\nUse {' or '.join(map(format_inline_code, triggers))} in the prompt."]


def render_data_section(run: Path, record: dict, captions: bool) -> str:
    """Statistics of the training data, with the most frequent caption words if `captions`; no file names, no captions."""
    data = read_data_report(run)
    low, high = data.get("sides", [0, 0])
    sides = f"{low} to {high}" if low < high else f"{low}"
    lines = [
        f"{pluralize(record['images'], 'image')} with sides of {sides} px, trained at {record['resolution']} px for "
        f"{pluralize(record['epochs'], 'epoch')}; {pluralize(data.get('captions', 0), 'caption')}, "
        f"{data.get('unique captions', 0)} unique."
    ]
    if record.get("num_class_images"):
        lines.append(f"Prior preservation with {record['num_class_images']} class images.")
    if captions and (terms := data.get("frequent words")):
        lines.append("Most frequent words: " + ", ".join(map(format_inline_code, terms)) + ".")
    return "## Training data\n\n" + "\n".join(lines)


def render_scores_section(report: dict | None, folder: Path) -> list[str]:
    """One table per prompt group: the scores of the base, of the trained models, and of real images."""
    if not report:
        return []
    states, tables = report["states"], []
    for group, metrics in report["metrics"].items():
        reference = report.get("reference", {}).get(group, {})
        labels = [state["label"] for state in states] + (["real images"] if reference else [])
        rows = [
            [
                format_inline_code(name) + {True: " ↑", False: " ↓"}.get(info["higher_is_better"], ""),
                *(
                    format_score_value(state["scores"].get(group, {}).get(name, {}).get("value"), info)
                    for state in states
                ),
                *([format_score_value(reference.get(name), info)] if reference else []),
            ]
            for name, info in metrics.items()
        ]
        prompts = f"{len(report['groups'].get(group, []))} prompts × {report['images']} images"
        table = format_markdown_table(["", *map(format_inline_code, labels)], rows)
        tables.append(f"{format_inline_code(group)}, {prompts}:\n\n{table}")
    scorers = ", ".join(map(format_inline_code, report["scorers"].values()))
    sheet = (
        "![Evaluated images of the same prompts and seeds](evaluation.png)"
        if (folder / "evaluation.png").is_file()
        else ""
    )
    return [
        "\n\n".join(["## Scores", *tables, f"Scored by {scorers}; ↑ higher is better.", *([sheet] if sheet else [])])
    ]


def pluralize(count: float, noun: str) -> str:
    return f"{count:g} {noun}{'s' * (count != 1)}"


def format_score_value(value, info: dict) -> str:
    digits = re.search(r"\.(\d)f", str(info["number_format"]))
    return f"{value:.{int(digits[1]) if digits else 3}f}" if isinstance(value, int | float) else ""


def format_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_settings_section(record: dict) -> str:
    options = record["options"]
    options |= {} if options.get("snr_gamma") else {"weighting": None}
    options |= {"steps": record["steps"], "epochs": f"{record['epochs']:g}"}
    rows = [
        [format_inline_code(key), format_inline_code(options[key])]
        for key in (*LISTED_OPTIONS.split(), *(key for key in options if key.startswith("part_lr.")))
        if options.get(key) or key == "seed"
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    return f"## Settings\n\n{format_markdown_table(['option', 'value'], rows)}\n\n{format_inline_code(versions)}"


def render_tools_section(kind: str, name: str, triggers: list[str], dora: bool = False) -> list[str]:
    """How to use the file in WebUIs."""
    prompt_part = format_inline_code(", ".join(triggers)) if triggers else "the prompt"
    if kind == "adapter" and dora:
        return ["In WebUIs: they misread DoRA; use the nearest LoRA, which the command above makes."]
    if kind == "adapter":
        file = f"{name}-kohya"
        return [
            f"In WebUIs: copy `{file}.safetensors` to `models/Lora` (ComfyUI: `models/loras`) and write "
            f"`<lora:{file}:1>` beside {prompt_part}. The file includes trigger words, settings and a thumbnail."
        ]
    if kind == "embedding":
        return [f"In WebUIs: copy `learned_embeds.safetensors` to `embeddings` and write {prompt_part}."]
    return []
