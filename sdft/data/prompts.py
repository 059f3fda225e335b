"""Read prompts and captions from lists and text files."""

from pathlib import Path

from omegaconf import OmegaConf

MAX_PROMPT_CHARS = 10_000


def read_prompts(prompts, key: str = "prompts") -> list[str]:
    """Return a list of prompts, the non-empty lines of a text file, or [] for None. `key` names the option in errors."""
    if prompts is None:
        return []
    if isinstance(prompts, str):
        file = Path(prompts).expanduser()
        if not file.is_file():
            raise ValueError(f"{key}={prompts}: no such text file; give one, or a list such as '{key}=[a cat,a dog]'")
        lines = [line.strip() for line in read_text(file).splitlines()]
        if not any(lines):
            raise ValueError(f"{key}={prompts}: the file has no prompt; write one per line")
        return [line for line in lines if line]
    if not (isinstance(prompts, list) or OmegaConf.is_list(prompts)):
        raise ValueError(f"{key}={prompts}: give a text file, or a list such as '{key}=[a cat,a dog]'")
    return [str(prompt) for prompt in prompts]


def read_text(file: Path) -> str:
    """Read UTF-8 text, with or without a byte-order mark; raises `ValueError` naming the file for another encoding."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from None
