"""The option that was probably meant by an unknown name."""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from sdft.config import CONF
from sdft.options.foreign_names import OPTION_BY_NAME, OTHER_VALUES, REASON_BY_NAME, VALUES

MIN_SIMILARITY = 0.72  # of a suggested name


def describe_unknown_option(text: str, config: str, cfg: DictConfig) -> str:
    """One line for the override `text`, whose name no option of `cfg`, the config of program `config`, has."""
    text = text.lstrip("+-")
    key, _, value = text.partition("=")
    return f"{text}: unknown option; {suggest_option(key.lstrip('~'), value, config, cfg)}"


def suggest_option(key: str, value: str, config: str, cfg: DictConfig) -> str:
    """What to use instead of the unknown `key`."""
    known = flatten_config(OmegaConf.to_container(cfg, resolve=False))
    name = key.lower().replace("-", "_")
    last = name.rpartition(".")[2]
    group = key.partition(".")[0]
    if "." in key and group in list_groups(config) and not cfg.get(group):
        names = ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml")))
        return f"no {group} with options is selected; choose {group}=NAME of {names}"
    if last in OPTION_BY_NAME and (equivalent := find_equivalent(last, value, config, cfg, known)):
        return equivalent
    if last in REASON_BY_NAME:
        return f"no equivalent: {REASON_BY_NAME[last]}"
    if config == "train" and (sweep_option := find_sweep_option(name)):
        return f"{sweep_option} is an option of a sweep; add -m"
    if "." not in name and (choices := list_choices(name, cfg)):
        return f"it belongs to {', '.join(choices)}"
    settable = [path for path, leaf in known.items() if not is_derived(path, leaf) and "_target_" not in path]
    if nested := [path for path in settable if path.rpartition(".")[2] == last]:
        return f"did you mean {' or '.join(nested[:3])}?"
    if similar := find_similar(name, settable, list(known), [str(key) for key in cfg]):
        return f"did you mean {similar}?"
    if "." in key and isinstance(node := OmegaConf.select(cfg, key.rpartition(".")[0]), DictConfig) and node:
        return f"{key.rpartition('.')[0]} has {', '.join(str(k) for k in node if not str(k).startswith('_'))}"
    if config != "train" and (option := find_training_option(name)):
        return f"{option} is an option of train"
    return "--help lists the options"


def find_similar(name: str, paths: list[str], all_paths: list[str], top_level: list[str]) -> str | None:
    """The key closest to `name`: one of the same node, else a top-level one, a whole path, or one with a similar last part."""
    last_parts = {path.rpartition(".")[2]: path for path in reversed(paths)}
    parent, _, last = name.rpartition(".")
    siblings = {path.rpartition(".")[2]: path for path in all_paths if path.rpartition(".")[0] == parent}
    searches = (
        [(last, siblings)]
        if parent and siblings
        else [(name, dict(zip(paths, paths, strict=True))), (last, last_parts)]
    )
    for text, candidates in [*([] if parent else [(name, {key: key for key in top_level})]), *searches]:
        if close := get_close_matches(text, candidates, 1, MIN_SIMILARITY):
            return candidates[close[0]]
    return None


def is_derived(path: str, leaf) -> bool:
    """Whether a key of a node follows a top-level option."""
    return "." in path and isinstance(leaf, str) and leaf.startswith("${")


def find_equivalent(name: str, value: str, config: str, cfg: DictConfig, known: dict) -> str | None:
    """`use OPTION=VALUE` for a name of another tool; None if the program has no such option."""
    candidates = OPTION_BY_NAME[name].split("|")
    for option in candidates:
        key = option.strip("'").partition("=")[0]
        if option.startswith("sdft "):
            return f"after training: {option}"
        if "=" in option and key.partition(".")[0] in cfg:
            is_simple = re.fullmatch(r"[\w./~+-]+", value)
            return f"use {option.replace('VALUE', value) if is_simple else option.replace('=VALUE', '=…')}"
        if "=" not in option and (key in known or key in cfg or (key == "hydra.run.dir" and config == "train")):
            return f"use {key}={convert_value(name, key, value)}"
    for option in (option for option in candidates if "=" not in option):
        group, is_nested, _ = option.partition(".")
        if is_nested and group in cfg:
            return f"use {option}={convert_value(name, option, value)} with a choice {group}=NAME that has it"
        if choices := list_choices(option, cfg):
            return f"use {option}={convert_value(name, option, value)}, an option of {', '.join(choices)}"
    return None


def convert_value(name: str, option: str, value: str) -> str:
    """The value in our terms; `…` where the two options differ in unit or form."""
    if name in OTHER_VALUES.split() or not value:
        return "…"
    value = VALUES.get(option, {}).get(value, value)
    return value.lower() if option == "optimizer" else value


def find_training_option(name: str) -> str | None:
    """The option of train.py that a name, here or of another tool, stands for."""
    options = OmegaConf.load(CONF / "train.yaml")
    candidates = [name, *OPTION_BY_NAME.get(name, "").split("|")]
    return next(
        (option for option in candidates if option in options or (option and list_choices(option, options))), None
    )


def find_sweep_option(name: str) -> str | None:
    top = name.partition(".")[0]
    return top if top != "defaults" and top in {*OmegaConf.load(CONF / "sweep.yaml"), "launcher"} else None


def list_choices(name: str, cfg: DictConfig) -> list[str]:
    """The choices GROUP=NAME, of the groups in `cfg`, that bring the top-level option `name`, also through other files."""
    texts = {f"{file.parent.name}={file.stem}": file.read_text(encoding="utf-8") for file in CONF.glob("*/*.yaml")}
    texts = {c: t for c, t in texts.items() if t.startswith("# @package _global_") and not c.startswith("experiment=")}
    choices = {choice for choice, text in texts.items() if re.search(rf"^{re.escape(name)}:", text, re.MULTILINE)}
    for choice, text in texts.items():
        group = choice.partition("=")[0]
        bases = re.findall(r"^(?:  - |defaults: \[)(\w+)\]?$", text, re.MULTILINE)
        overridden = re.findall(r"^  - override /(\w+): (\w+)$", text, re.MULTILINE)
        if choices & ({f"{group}={base}" for base in bases} | {f"{key}={value}" for key, value in overridden}):
            choices = choices | {choice}
    return sorted(choice for choice in choices if choice.partition("=")[0] in cfg)


def flatten_config(node: dict, path: str = "") -> dict:
    """The values of a nested dict by dotted key; a list is one value."""
    leaves = {}
    for key, value in node.items():
        leaves |= flatten_config(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves


@cache
def list_groups(config: str, folder: Path = CONF) -> tuple[str, ...]:
    """The config groups of a program: the folders beside its config that its defaults list names."""
    entries = OmegaConf.load(folder / f"{config}.yaml").defaults
    return tuple(key for entry in entries if OmegaConf.is_dict(entry) for key in entry if (folder / key).is_dir())
