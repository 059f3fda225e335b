"""The sections of a published card: licence, trigger words, data, scores, settings, and use in other tools."""

import re
from pathlib import Path

from sdft.runs.files import read_json
from sdft.training.export.model_card import format_inline_code

LISTED_OPTIONS = """method rank alpha lr text_encoder_lr steps epochs batch_size gradient_accumulation_steps optimizer schedule warmup weighting snr_gamma
    loss noise_offset input_perturbation caption_dropout resolution crop flip caption_template precision ema seed"""


def render_license_section(license: str | None, base: str) -> str:
    if license:
        return f"License: {format_inline_code(license)}. The base, {format_inline_code(base)}, has a license of its own, which goes on to hold."
    return "**No license was chosen**, so nobody but its author may use it."


def render_trigger_section(words: list[str]) -> list[str]:
    if not words:
        return []
    return [f"## Trigger words\n\nWrite {' or '.join(map(format_inline_code, words))} into the prompt."]


def render_data_section(run: Path, facts: dict, captions: bool) -> str:
    """Numbers, and the most frequent words on request; no file's name and no caption."""
    data = read_json(run / "data.json")
    low, high = data.get("sides", [0, 0])
    sides = f"{low} to {high}" if low < high else f"{low}"
    lines = [
        f"{pluralize(facts['images'], 'picture')} with sides of {sides} px, learned at {facts['resolution']} px, each seen "
        f"{pluralize(facts['epochs'], 'time')}; {pluralize(data.get('captions', 0), 'caption')}, "
        f"{data.get('unique captions', 0)} different."
    ]
    if facts.get("class_images"):
        lines.append(f"Beside them {facts['class_images']} pictures of the class, so that it stays what it was.")
    if captions and (words := data.get("frequent words")):
        lines.append("Most frequent words: " + ", ".join(map(format_inline_code, words)) + ".")
    return "## Trained on\n\n" + "\n".join(lines)


def render_scores_section(run: Path, folder: Path) -> list[str]:
    """A table a group of prompts: the base, what was learned, and the same score of real pictures."""
    found = read_json(run / "evaluation" / "scores.json")
    if not found:
        return []
    states, tables = found["states"], []
    for group, metrics in found["metrics"].items():
        reference = found.get("reference", {}).get(group, {})
        labels = [state["label"] for state in states] + (["real pictures"] if reference else [])
        rows = [
            [
                format_inline_code(name) + {True: " ↑", False: " ↓"}.get(about["higher_is_better"], ""),
                *(
                    format_score_value(state["scores"].get(group, {}).get(name, {}).get("value"), about)
                    for state in states
                ),
                *([format_score_value(reference.get(name), about)] if reference else []),
            ]
            for name, about in metrics.items()
        ]
        prompts = f"{len(found['groups'].get(group, []))} × {found['images']} pictures"
        tables.append(
            f"{format_inline_code(group)}, {prompts}:\n\n{format_markdown_table(['', *map(format_inline_code, labels)], rows)}"
        )
    scorers = ", ".join(format_inline_code(judge) for judge in found["scorers"].values())
    sheet = "![The same prompts and seeds, judged](evaluation.png)" if (folder / "evaluation.png").is_file() else ""
    return [
        "\n\n".join(["## Scores", *tables, f"Judged by {scorers}; ↑ higher is better.", *([sheet] if sheet else [])])
    ]


def pluralize(count: float, what: str) -> str:
    return f"{count:g} {what}{'s' * (count != 1)}"


def format_score_value(value, about: dict) -> str:
    digits = re.search(r"\.(\d)f", str(about["number_format"]))
    return f"{value:.{int(digits[1]) if digits else 3}f}" if isinstance(value, int | float) else ""


def format_markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render_settings_section(facts: dict) -> str:
    words = facts["options"]
    words |= {} if words.get("snr_gamma") else {"weighting": None}
    words |= {"steps": facts["steps"], "epochs": f"{facts['epochs']:g}"}
    rows = [
        [format_inline_code(word), format_inline_code(words[word])]
        for word in LISTED_OPTIONS.split()
        if words.get(word) or word == "seed"
    ]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    return f"## Settings\n\n{format_markdown_table(['word', 'value'], rows)}\n\n{format_inline_code(versions)}"


def render_tools_section(kind: str, name: str, words: list[str]) -> list[str]:
    """How tools with pages of buttons take the file."""
    said = format_inline_code(", ".join(words)) if words else "the prompt"
    if kind == "adapter":
        file = f"{name}-kohya"
        return [
            f"In WebUIs: put `{file}.safetensors` into `models/Lora` (ComfyUI: `models/loras`), and write "
            f"`<lora:{file}:1>` beside {said}. Trigger words, settings and a thumbnail are in the file."
        ]
    if kind == "embedding":
        return [f"In WebUIs: put `learned_embeds.safetensors` into `embeddings`, and write {said}."]
    return []
