"""Trigger words: what in a prompt calls up what a run has learned."""

from pathlib import Path

from sdft.runs.files import read_config, read_json

MIN_CAPTION_FRACTION = 0.5  # of the captions have a word that triggers
STOP_WORDS = (
    """the and with for from his her its their this that has have are was were who which into onto over under near"""
)


def find_trigger_words(run: Path) -> list[str]:
    """A learned token, the instance prompt, the template's words, the one caption, or the words that most captions share."""
    config, facts = read_config(run), read_json(run / "data.json")
    template, method = config.get("caption_template"), config.get("method") or {}
    if token := method.get("placeholder_token"):
        return [to_printable_line(token)]
    if config.get("instance_prompt"):
        return [to_printable_line(config.instance_prompt)]
    if template and (around := to_printable_line(template.replace("{caption}", " "))):
        return [around]
    if facts.get("unique captions") == 1 and (caption := to_printable_line(facts["longest caption"]["text"])):
        return [caption]
    words, count = facts.get("frequent words", {}), facts.get("captions", 0)
    return [
        to_printable_line(word)
        for word, times in words.items()
        if times >= MIN_CAPTION_FRACTION * count and word not in STOP_WORDS.split()
    ][:5]


def to_printable_line(text: str) -> str:
    """One line without what a terminal or a page would act on."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
