"""Options stored in a run folder, perhaps by someone else: only known config choices and plain values are taken from it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from sdft.config import CONF
from sdft.options.quoting import format_override, parse_override

PLAIN_TYPES = (str, int, float, bool, type(None))
PLAIN_OVERRIDE_TYPES = (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD, OverrideType.DEL)
MAX_NESTED_VALUES = 8  # levels of lists and mappings in a value
PROMPT_OPTIONS = ("prompts", "class_prompts", "controls")  # as text they name a file
RESERVED_KEY = re.compile(r"(^|\.)(_\w*|hydra\b.*|defaults)(\.|$)")  # `_target_` and its like; Hydra's own options


def check_plain_value(value: Any, where: str, level: int = 0) -> None:
    """`ValueError` unless `value` is a scalar, or a list or mapping of such, without interpolation, `???` or `_target_`."""
    if level > MAX_NESTED_VALUES:
        raise ValueError(f"{where}: nested deeper than {MAX_NESTED_VALUES} levels; refused from a run folder")
    if isinstance(value, dict):
        for key, child in value.items():
            if RESERVED_KEY.search(str(key)):
                raise ValueError(f"{where}.{key}: would run other code; repeat this option to allow it")
            check_plain_value(child, f"{where}.{key}", level + 1)
    elif isinstance(value, list):
        for child in value:
            check_plain_value(child, where, level + 1)
    elif type(value) not in PLAIN_TYPES:
        raise ValueError(f"{where}={str(value)[:60]}: not a plain value; refused from a run folder")
    elif isinstance(value, str) and ("${" in value or value == "???"):
        raise ValueError(
            f"{where}={value[:60]}: interpolations of a run folder are never resolved; repeat this option with its value"
        )


def list_choices(group: str) -> list[str]:
    """Names of the files of a config group in `conf/`; empty for other names."""
    groups = {folder.name: folder for folder in CONF.iterdir() if folder.is_dir()}
    return sorted(file.stem for file in groups[group].glob("*.yaml")) if group in groups else []


def is_choice(group: str, names: Any) -> bool:
    """Whether `names`, one or a list, are files of a config group in `conf/`, or null."""
    names = names if isinstance(names, list) else [names]
    accepted = list_choices(group)
    return bool(accepted) and all(name is None or name in accepted for name in names)


def check_choice(group: str, names: Any, where: str) -> None:
    """`ValueError` unless `names` are files of the config group `group` in `conf/`."""
    if not is_choice(group, names):
        raise ValueError(f"{where}: {group}={str(names)[:60]} is not in conf/; choose {', '.join(list_choices(group))}")


def check_prompt_file(key: str, value: Any, where: str) -> None:
    """`ValueError` for a stored prompt file outside the working folder, whose lines would be copied into images and pages."""
    if key.rpartition(".")[2] not in PROMPT_OPTIONS or not isinstance(value, str):
        return
    root = Path.cwd().resolve()
    if not Path(value).expanduser().resolve().is_relative_to(root):
        raise ValueError(f"{where}: {key}={value[:60]} is outside the working folder; repeat this option to read it")


def parse_stored_override(text: str, where: str) -> Override:
    """Parse an override of a run folder; `ValueError` unless it is `key=value` with a plain value or a known choice."""
    if (override := parse_override(text)) is None:
        raise ValueError(f"{where}: {text[:60]!r} is not an option; refused from a run folder")
    key, value = override.key_or_group, override.value()
    if override.package or override.is_sweep_override() or override.type not in PLAIN_OVERRIDE_TYPES or "/" in key:
        raise ValueError(f"{where}: {text[:60]!r} is not a plain option; refused from a run folder")
    if RESERVED_KEY.search(key):
        raise ValueError(f"{where}: {text[:60]} would run other code; repeat this override to allow it")
    check_plain_value(value, f"{where}: {key}")
    if list_choices(key):
        check_choice(key, value, where)
    check_prompt_file(key, value, where)
    return override


def check_stored_overrides(texts: Iterable[str], where: str) -> None:
    """`ValueError` that names the first of the stored overrides that is refused."""
    for text in texts:
        parse_stored_override(text, where)


def are_plain_overrides(texts: Iterable[str]) -> bool:
    """Whether a run folder may set all of these options."""
    try:
        check_stored_overrides(texts, "")
    except ValueError:
        return False
    return True


def resolve_overrides(overrides: Iterable[str], cfg: DictConfig, choices: Mapping[str, Any]) -> list[str]:
    """Overrides of a command line with their interpolations replaced by the values in `cfg`, as a run stores them."""
    return [resolve_override(text, cfg, choices) if "${" in text else text for text in overrides]


def resolve_override(text: str, cfg: DictConfig, choices: Mapping[str, Any]) -> str:
    override = OverridesParser.create().parse_override(text)
    key = override.key_or_group
    value = choices[key] if key in choices else OmegaConf.select(cfg, key)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return format_override(override.get_key_element(), value)
