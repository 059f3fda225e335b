"""Trigger words: what in a prompt calls up what a run has learned."""

from pathlib import Path

from sdft.runs.files import read_config, read_json

SHARE = 0.5  # of the captions have a word that triggers
COMMON = (
    """the and with for from his her its their this that has have are was were who which into onto over under near"""
)


def triggers(run: Path) -> list[str]:
    """A learned token, the instance prompt, the template's words, the one caption, or the words that most captions share."""
    config, facts = read_config(run), read_json(run / "data.json")
    template, method = config.get("caption_template"), config.get("method") or {}
    if token := method.get("placeholder_token"):
        return [plain(token)]
    if config.get("instance_prompt"):
        return [plain(config.instance_prompt)]
    if template and (around := plain(template.replace("{caption}", " "))):
        return [around]
    if facts.get("unique captions") == 1 and (caption := plain(facts["longest caption"]["text"])):
        return [caption]
    words, count = facts.get("frequent words", {}), facts.get("captions", 0)
    return [plain(word) for word, times in words.items() if times >= SHARE * count and word not in COMMON.split()][:5]


def plain(text: str) -> str:
    """One line without what a terminal or a page would act on."""
    return " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
