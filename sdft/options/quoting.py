"""Write overrides for Hydra's grammar and for a POSIX shell, and read them again."""

import os
import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

BARE_TEXT = re.compile(r"(\.{0,2}/|[A-Za-z_])[\w./@%+-]*", re.ASCII)  # read by Hydra as it is
RUN_OPTIONS = ("resume", "reproduce", "run")
NAME_OPTIONS = ("path", "class_path", "folder", "to", "base", "tuned", "adapter", "name")
RESERVED = {"null", "true", "false", "nan", "inf"}
KEY_AND_VALUE = re.compile(r"((?:\+\+?)?[\w./@-]+)=(.*)", re.ASCII | re.DOTALL)


def format_value(value) -> str:
    """A value in Hydra's grammar; composing the config returns it unchanged, also with `${` in it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{escape_key(str(key))}:{format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_value, value)) + "]"
    text = str(value)
    if BARE_TEXT.fullmatch(text) and text.lower() not in RESERVED:
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf: a literal `${`
    double_quoted, single_quoted = ('"' in text, "'" in text)
    quote = "'" if double_quoted and not single_quoted else '"'
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda match: match[1] * 2 + (f"\\{quote}" if match[2] else ""), text)
    return f"{quote}{escaped}{quote}"


def escape_key(key: str) -> str:
    """A key of a dict, which Hydra takes without quotes only."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)


def format_override(key: str, value) -> str:
    """`KEY=VALUE` as one argument of a program."""
    return f"{key}={format_value(value)}"


def format_for_shell(key: str, value) -> str:
    """`KEY=VALUE` to be pasted into a shell."""
    return shlex.quote(format_override(key, value))


def parse_override(text: str) -> Override | None:
    """The override as Hydra reads it; None if it does not follow the grammar."""
    try:
        override = OverridesParser.create().parse_override(text)
        override.value()
        return override
    except HydraException:
        return None


def parse_text_value(text: str) -> str:
    """The value of the override `text` without quotes and escapes; as it was written if Hydra cannot read it."""
    override = parse_override(text)
    value = None if override is None or override.is_sweep_override() else override.value()
    if not isinstance(value, str):
        return text.partition("=")[2]
    try:
        return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]
    except OmegaConfBaseException:
        return value


def read_literally(argument: str) -> str:
    """Quote an override whose value has one possible meaning although Hydra would read none, or another.

    These are `~` for the home folder, which no shell expands behind `KEY=`, letters beyond ASCII, numbers as names of files, and
    existing run folders.
    """
    match = KEY_AND_VALUE.fullmatch(argument)
    if not match:
        return argument
    key, value = match.groups()
    option = key.rpartition(".")[2].lstrip("+")
    if option in RUN_OPTIONS and os.path.lexists(os.path.expanduser(value)):
        return format_override(key, os.path.expanduser(value))
    if re.search(r"(^|^\[|,)\s*~", value):
        return expand_home(key, value)
    is_named_by_number = option in NAME_OPTIONS and re.fullmatch(r"[\d_.eE+-]*\d[\d_.eE+-]*", value)
    if is_named_by_number or (not value.isascii() and re.fullmatch(r"[\w./@%+ -]+", value)):
        return format_override(key, value)
    return argument


def expand_home(key: str, value: str) -> str:
    """The override with `~` replaced at the start of its value, or of each entry of a list."""
    if not value.startswith("["):
        home = os.path.expanduser(value)
        return f"{key}={value}" if home == value else format_override(key, home)
    return f"{key}=" + re.sub(r"(?<=[\[,])(\s*)(~[\w.-]*(?=/))", lambda m: m[1] + os.path.expanduser(m[2]), value)


def correct_override(argument: str) -> str | None:
    """`argument`, which Hydra cannot read as one value, quoted for the shell so that it can; None without KEY=VALUE."""
    match = KEY_AND_VALUE.fullmatch(argument)
    if not match:
        return None
    key, value = match.groups()
    if value.startswith("[") and value.endswith("]"):
        return format_for_shell(key, [strip_quotes(part.strip()) for part in value[1:-1].split(",")])
    return format_for_shell(key, strip_quotes(value))


def strip_quotes(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
