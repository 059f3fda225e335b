"""Prompts and captions as people write them: in lists and in text files."""

from pathlib import Path

from omegaconf import OmegaConf

MAX_PROMPT_CHARS = 10_000  # letters of a prompt


def read_prompts(prompts, key: str = "prompts") -> list[str]:
    """None or a list as it is; a text file as its non-empty lines. `key` is what errors call it."""
    if prompts is None:
        return []
    if isinstance(prompts, str):
        file = Path(prompts).expanduser()
        if not file.is_file():
            raise ValueError(f"{key}={prompts}: no such text file; give one, or a list as '{key}=[a cat,a dog]'")
        lines = [line.strip() for line in read_text(file).splitlines()]
        if not any(lines):
            raise ValueError(f"{key}={prompts}: no prompt in it; write one a line")
        return [line for line in lines if line]
    if not (isinstance(prompts, list) or OmegaConf.is_list(prompts)):
        raise ValueError(f"{key}={prompts}: give a text file, or a list as '{key}=[a cat,a dog]'")
    return [str(prompt) for prompt in prompts]


def read_text(file: Path) -> str:
    """UTF-8, with or without a byte-order mark; `ValueError` names a file that is something else."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from None
