"""What `--help` prints: a program's own choices and words, each with what its config file says beside it."""

import re
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

COMMENT_COLUMN = 31  # where what is said of a word begins


def render_help(conf: Path, config: str, words: list[str]) -> str:
    """The help template of `conf/CONFIG.yaml` filled in, with `words` chosen; Hydra takes twice as long for it."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(config, words, return_hydra_config=True)
    about = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    choices = {
        key: sorted(file.stem for file in (conf / key).glob("*.yaml")) for key in list_groups(conf / f"{config}.yaml")
    }
    listed = "\n".join(f"{key}: {', '.join(names)}" for key, names in choices.items())
    chosen = [conf / key / f"{cfg.hydra.runtime.choices.get(key)}.yaml" for key in choices]
    files = [file for file in (*chosen, conf / f"{config}.yaml") if file.is_file()]
    said = {key: told for file in files for key, told in parse_comments(file.read_text(encoding="utf-8")).items()}
    filled = Template(cfg.hydra.help.template)
    return filled.substitute(APP_CONFIG_GROUPS=listed, CONFIG=add_comments(OmegaConf.to_yaml(about), said))


def list_groups(file: Path) -> list[str]:
    """The choices that a program has: the folders beside its config that its defaults name."""
    entries = OmegaConf.load(file).defaults
    return [key for entry in entries if OmegaConf.is_dict(entry) for key in entry if (file.parent / key).is_dir()]


def parse_comments(text: str) -> dict[str, str]:
    """What stands behind the words of a config file."""
    return dict(re.findall(r"^(\w+):.*?# (.+)$", text, re.MULTILINE))


def add_comments(text: str, said: dict[str, str]) -> str:
    """YAML with what is said of its words at the top."""
    lines = []
    for line in text.splitlines():
        key = line.partition(":")[0]
        lines.append(f"{line:<{COMMENT_COLUMN}}# {said[key]}" if key in said else line)
    return "\n".join(lines)
