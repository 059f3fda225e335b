"""Check a config before any data is read: every node against the signature of its `_target_`."""

import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import field, make_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCALAR_TYPES = {int, float, str, bool}
MAX_INTEGER = 10**18
MAX_VALUE_LENGTH = 200  # characters of a value in an error message
TYPE_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in the wheel, in the checkout
SECRET_NAMES = frozenset(  # parts of the names of environment variables that hold secrets
    "KEY APIKEY TOKEN SECRET PASSWORD PASSWD PASSPHRASE CREDENTIAL CREDENTIALS".split()  # noqa: SIM905
)
MIN_SECRET_LENGTH = 8  # characters
PATH_OPTIONS = frozenset(  # last parts of the keys of options that take files and folders
    """path class_path folder to run runs adapter adapters adapter_cache resume reproduce base tuned images contact_sheet multirun
    checkpoint controlnet prompts class_prompts controls architecture faces detector dir name vae""".split()  # noqa: SIM905
)
URL_PASSWORD = re.compile(r"\w://[^/\s:@]*:[^/\s@]+@")  # as in postgres://user:password@host
RESOLVER_CALL = re.compile(r"\$\{\s*([\w.]*)\s*(?::|\$\{)")  # its name; empty if the name is an interpolation itself
ALLOWED_RESOLVERS = ("now", "hydra")  # those of conf/


def check_config(cfg: DictConfig) -> None:
    """Resolve the config in place. Raises `ValueError` that names the invalid key."""
    if missing := sorted(find_missing_keys(OmegaConf.to_container(cfg, resolve=False))):
        raise ValueError("please set " + ", ".join(f"{key}=…" for key in missing))
    raw = dict(iterate_leaves(OmegaConf.to_container(cfg, resolve=False)))
    for key, value in raw.items():
        check_resolvers(key, value)
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ValueError(f"{find_unresolved_key(cfg, raw)}: {str(error).splitlines()[0]}") from None
    for key, value in iterate_leaves(OmegaConf.to_container(cfg)):
        check_secret(key, value)
        check_number(key, value)
        check_path(key, value)
    for path, node in iterate_targets(cfg):
        check_node(path, node, raw)


def check_required_nodes(cfg: DictConfig, keys: tuple[str, ...]) -> None:
    """Raise `ValueError` unless each of `keys` is a config node that builds an object."""
    for key in keys:
        if not OmegaConf.is_dict(cfg.get(key)) or "_target_" not in cfg[key]:
            raise ValueError(
                f"{key}={str(cfg.get(key))[:MAX_VALUE_LENGTH]}: not a config node with a _target_; "
                f"choose {key}=NAME or {key}.OPTION=VALUE"
            )
        if cfg[key].get("_partial_") and key != "optimizer":
            raise ValueError(f"{key}._partial_={cfg[key]._partial_}: only supported by optimizer; remove this option")


def check_option_types(cfg: DictConfig, hints: dict) -> None:
    """Check the options that no signature accepts against the type hints in `hints`."""
    for key, hint in hints.items():
        if key in cfg:
            check_value_type(cfg, key, hint, lambda key=key: key, "expected ")


def iterate_leaves(node, path: str = ""):
    """Yield (key, value) of every leaf; options precede the nodes that read them."""
    if not isinstance(node, dict | list) or not node:
        yield path, node
        return
    children = list(node.items() if isinstance(node, dict) else enumerate(node))
    for key, child in sorted(children, key=lambda pair: isinstance(pair[1], dict)):
        yield from iterate_leaves(child, f"{path}.{key}" if path else str(key))


def find_option_name(key: str, raw: dict[str, Any]) -> str:
    """Command-line name of a key: the top-level option that the node refers to in `conf/`, else the key itself."""
    reference = re.fullmatch(r"\$\{(\w+)\}", str(raw.get(key)))
    if not reference or reference[1] == key.rpartition(".")[2]:
        return key
    line = f"{key.rpartition('.')[2]}: {raw[key]}"
    return reference[1] if any(line in file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")) else key


def check_number(key: str, value) -> None:
    """Raise `ValueError` for NaN, Inf, and integers beyond 64 bits, which would only fail during the run."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value}: choose a finite number")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError(f"{key}={str(value)[:30]}…: choose a number of at most 18 digits")


def check_path(key: str, value) -> None:
    """Raise `ValueError` for a blank path, which would mean the working folder; in lists of prompts, blank ones are allowed."""
    name, _, last = key.rpartition(".")
    option = name.rpartition(".")[2] if last.isdecimal() else last
    is_prompt = last.isdecimal() and option in ("prompts", "class_prompts", "controls")
    if isinstance(value, str) and not value.strip() and option in PATH_OPTIONS and not is_prompt:
        raise ValueError(f"{key}={value!r}: blank; give a file, folder or name, or leave the option out")


def check_secret(key: str, value) -> None:
    """Raise `ValueError` if the value contains a secret from the environment: all options are saved in the run folder."""
    for name, secret in os.environ.items():
        if set(name.upper().split("_")) & SECRET_NAMES and len(secret) >= MIN_SECRET_LENGTH and secret in str(value):
            raise ValueError(
                f"{key}: contains the value of ${name}, which would be saved to disk; options cannot hold secrets"
            )
    if URL_PASSWORD.search(str(value)):
        raise ValueError(
            f"{key}: contains an address with a password, which would be saved to disk; remove the password"
        )


def check_resolvers(key: str, value) -> None:
    """Raise `ValueError` if an option calls a resolver, such as `oc.env`: what it returns would be saved in the run folder."""
    for resolver in RESOLVER_CALL.findall(value) if isinstance(value, str) else ():
        if resolver not in ALLOWED_RESOLVERS:
            raise ValueError(
                f"{key}={value[:MAX_VALUE_LENGTH]}: calls the resolver {resolver or '${…}'}; options are saved to disk and "
                'refer only to other options, as ${lr}; let the shell insert a variable, as "$PHOTOS"'
            )


def find_missing_keys(node, path: str = ""):
    """Yield the keys of mandatory values that are not set."""
    if node == MISSING:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from find_missing_keys(child, f"{path}.{key}" if path else str(key))


def find_unresolved_key(cfg: DictConfig, raw: dict[str, Any]) -> str | None:
    """First key whose interpolation fails."""
    for key in (key for key, value in raw.items() if isinstance(value, str) and "${" in value):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            return key
    return None


def iterate_targets(node, path: str = ""):
    """Yield (path, node) of every node that builds an object."""
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    children = node.items() if isinstance(node, DictConfig) else enumerate(node) if isinstance(node, ListConfig) else ()
    for key, child in children:
        yield from iterate_targets(child, f"{path}.{key}" if path else str(key))


def check_node(path: str, node: DictConfig, raw: dict[str, Any]) -> None:
    """Check names and types of a node against the signature of its `_target_`; `raw` has the unresolved values by key."""
    target = import_target(path, node._target_)
    arguments = {key: value for key, value in node.items() if not str(key).startswith("_")}
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        raise ValueError(
            f"{path}._target_={node._target_}: has no signature; give a class or function written in Python"
        ) from None
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    accepts_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in arguments.items():
        if key not in parameters and not accepts_any_name:
            raise ValueError(f"{path}.{key}={value}: {target.__name__} accepts {', '.join(parameters)}")
        check_value_type(
            node,
            key,
            hints.get(key, Any),
            lambda key=key: find_option_name(f"{path}.{key}", raw),
            f"{target.__name__} expects ",
        )
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if unset := [name for name in required if name not in arguments and not node.get("_partial_")]:
        raise ValueError(f"{path}: {target.__name__} requires {', '.join(unset)}")


def import_target(path: str, name) -> Callable:
    """Import the class or function that `_target_` names."""
    package = name.split(".")[0] if isinstance(name, str) else ""
    if not package or not package.isidentifier():
        raise ValueError(f"{path}._target_={name}: give a class or function, such as torch.optim.AdamW")
    if find_spec(package) is None:
        raise ValueError(f"{path}: {name} requires a package that is not installed; pip install {package}")
    try:
        target = resolve_name(name)
    except Exception as error:  # imports run arbitrary code
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}._target_={name}: {reason}") from None
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: not callable; give a class or function")
    return target


def check_value_type(node: DictConfig, key: str, hint, get_name: Callable[[], str], prefix: str) -> None:
    """Raise `ValueError` unless the value has the type of `hint`; converts between numbers and text in place."""
    hint = to_checkable_type(hint)
    try:
        value = OmegaConf.merge(build_value_schema(hint), {"value": node[key]}).value
    except OmegaConfBaseException:
        raise ValueError(f"{get_name()}={str(node[key])[:MAX_VALUE_LENGTH]}: {prefix}{describe_type(hint)}") from None
    if isinstance(value, str) != isinstance(node[key], str):
        check_number(get_name(), value)
        node[key] = value


@cache
def build_value_schema(hint) -> DictConfig:
    """A config node with one `value` of type `hint`."""
    return OmegaConf.structured(make_dataclass("Node", [("value", hint, field(default=MISSING))]))


def to_checkable_type(hint):
    """Return `hint` if OmegaConf can check it (scalars, optional ones, lists and dicts of them), else Any."""
    if get_origin(hint) is list and set(get_args(hint)) <= SCALAR_TYPES:
        return hint
    if get_origin(hint) is dict and to_checkable_type(get_args(hint)[1]) is not Any:
        return hint
    members = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    scalars = members - {NoneType}
    if scalars and scalars <= SCALAR_TYPES:
        return hint
    if len(scalars) == 1 and NoneType in members and to_checkable_type(*scalars) is not Any:  # an optional list
        return hint
    return float if scalars & SCALAR_TYPES == {float} else Any


def describe_type(hint) -> str:
    """Plain-English description of a type."""
    if get_origin(hint) is list:
        return f"a list of {' or '.join(TYPE_NAMES[member] for member in get_args(hint))}"
    if get_origin(hint) is dict:
        return f"KEY: {describe_type(get_args(hint)[1])}"
    members = get_args(hint) or (hint,)
    return " or ".join(TYPE_NAMES.get(member) or describe_type(member) for member in members)
