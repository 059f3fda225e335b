"""Trigger words: the terms of a prompt that invoke the trained concept."""

from pathlib import Path

from sdft.runs.metadata import read_data_report
from sdft.runs.run_config import read_stored_config

MAX_TRIGGERS = 5
STOP_WORDS = (
    """the and with for from his her its their this that has have are was were who which into onto over under near"""
)


def find_trigger_words(run: Path) -> list[str]:
    """The placeholder token, the instance prompt, the template's text, the only caption, or the words of every caption."""
    config, stats = read_stored_config(run), read_data_report(run)
    template, method = config.get("caption_template"), config.get("method") or {}
    if token := method.get("placeholder_token"):
        return [to_printable_line(token)]
    if config.get("instance_prompt"):
        return [to_printable_line(config["instance_prompt"])]
    if template and (template_text := to_printable_line(template.replace("{caption}", " "))):
        return [template_text]
    if stats.get("unique captions") == 1 and (caption := to_printable_line(stats["longest caption"]["text"])):
        return [caption]
    terms = [term for term in stats.get("words of every caption", []) if term not in STOP_WORDS.split()]
    return [to_printable_line(term) for term in terms[:MAX_TRIGGERS]]


def to_printable_line(text: str) -> str:
    """One line without control characters, which a terminal or a page would interpret."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
