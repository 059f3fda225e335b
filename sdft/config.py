"""Fail before the first picture is read: every config node is checked against the signature that it will call."""

import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCALAR_TYPES = {int, float, str, bool}
MAX_INTEGER = 10**18
MAX_VALUE_LENGTH = 200  # letters of a value that an error repeats
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in the wheel, in the checkout
SECRET_NAMES = {
    "KEY",
    "APIKEY",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
}  # in names
MIN_SECRET_LENGTH = 8  # characters of a secret


def check_config(cfg: DictConfig) -> None:
    """Resolve the config in place, or raise one `ValueError` that names the key to mend."""
    if missing := sorted(find_missing_keys(OmegaConf.to_container(cfg, resolve=False))):
        raise ValueError("please set " + ", ".join(f"{key}=…" for key in missing))
    raw = dict(iterate_leaves(OmegaConf.to_container(cfg, resolve=False)))
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ValueError(f"{find_unresolved_key(cfg, raw)}: {str(error).splitlines()[0]}") from None
    for key, value in iterate_leaves(OmegaConf.to_container(cfg)):
        check_secret(key, value)
        check_number(key, value)
    for path, node in iterate_targets(cfg):
        check_node(path, node, raw)


def check_required_nodes(cfg: DictConfig, keys: tuple[str, ...]) -> None:
    """`ValueError` when one of the nodes that a program builds its objects from was taken away or made something else."""
    for key in keys:
        if not OmegaConf.is_dict(cfg.get(key)) or "_target_" not in cfg[key]:
            raise ValueError(
                f"{key}={str(cfg.get(key))[:MAX_VALUE_LENGTH]}: this builds a part of the run; choose {key}=NAME or {key}.WORD=VALUE"
            )
        if cfg[key].get("_partial_") and key != "optimizer":
            raise ValueError(
                f"{key}._partial_={cfg[key]._partial_}: only an optimizer is built in two steps; leave it out"
            )


def check_option_types(cfg: DictConfig, hints: dict) -> None:
    """Words that no signature takes, by their types."""
    for key, hint in hints.items():
        if key in cfg:
            check_value_type(cfg, key, hint, lambda key=key: key, "")


def iterate_leaves(node, path: str = ""):
    """Every value with its key; words before the nodes that read them."""
    if not isinstance(node, dict | list) or not node:
        yield path, node
        return
    children = list(node.items() if isinstance(node, dict) else enumerate(node))
    for key, child in sorted(children, key=lambda pair: isinstance(pair[1], dict)):
        yield from iterate_leaves(child, f"{path}.{key}" if path else str(key))


def find_option_name(key: str, raw: dict[str, Any]) -> str:
    """What a key is called on the command line: the word that `conf/` gives it another name by, else itself."""
    word = re.fullmatch(r"\$\{(\w+)\}", str(raw.get(key)))
    if not word or word[1] == key.rpartition(".")[2]:
        return key
    line = f"{key.rpartition('.')[2]}: {raw[key]}"
    return word[1] if any(line in file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")) else key


def check_number(key: str, value) -> None:
    """What is no number, or more than 64 bits hold, would ruin a run far from here."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}={value}: choose a finite number")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError(f"{key}={str(value)[:30]}…: choose a number of at most 18 digits")


def check_secret(key: str, value) -> None:
    """`ValueError` for a value of the environment that is one to keep: no word takes one, and every word is written down."""
    for name, secret in os.environ.items():
        if set(name.upper().split("_")) & SECRET_NAMES and len(secret) >= MIN_SECRET_LENGTH and secret in str(value):
            raise ValueError(
                f"{key}: holds the value of ${name}, which would be written down; no word here takes a secret"
            )


def check_known_targets(cfg: DictConfig, where: Path) -> None:
    """`ValueError` for a config from a folder that would build what no file of `conf/` names: it could call anything."""
    files = CONF.rglob("*.yaml")
    known = {name for file in files for name in re.findall(r"_target_: *(\S+)", file.read_text(encoding="utf-8"))}
    for path, node in iterate_targets(cfg):
        if node._target_ not in known:
            raise ValueError(f"{where}: its {path} is {node._target_}, which no file of conf/ names; it is not run")


def find_missing_keys(node, path: str = ""):
    """The keys that wait for a value."""
    if node == MISSING:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from find_missing_keys(child, f"{path}.{key}" if path else str(key))


def find_unresolved_key(cfg: DictConfig, raw: dict[str, Any]) -> str | None:
    """The first key whose value stands for what there is not."""
    for key in (key for key, value in raw.items() if isinstance(value, str) and "${" in value):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            return key
    return None


def iterate_targets(node, path: str = ""):
    """Every node that builds an object, with its path."""
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    children = node.items() if isinstance(node, DictConfig) else enumerate(node) if isinstance(node, ListConfig) else ()
    for key, child in children:
        yield from iterate_targets(child, f"{path}.{key}" if path else str(key))


def check_node(path: str, node: DictConfig, raw: dict[str, Any]) -> None:
    """Names and types against the signature of `_target_`; `raw` is what stands at each key of the config."""
    target = import_target(path, node._target_)
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in given.items():
        if key not in parameters and not open_ended:
            raise ValueError(f"{path}.{key}={value}: {target.__name__} takes {', '.join(parameters)}")
        check_value_type(
            node,
            key,
            hints.get(key, Any),
            lambda key=key: find_option_name(f"{path}.{key}", raw),
            f"{target.__name__} takes ",
        )
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if absent := [name for name in required if name not in given and not node.get("_partial_")]:
        raise ValueError(f"{path}: {target.__name__} needs {', '.join(absent)}")


def import_target(path: str, name) -> Callable:
    """What `_target_` names."""
    package = name.split(".")[0] if isinstance(name, str) else ""
    if not package or not package.isidentifier():
        raise ValueError(f"{path}._target_={name}: give what is to be built, such as torch.optim.AdamW")
    if find_spec(package) is None:
        raise ValueError(f"{path}: {name} needs a package that is not installed: pip install {package}")
    try:
        target = resolve_name(name)
    except Exception as error:  # of importing whatever it is
        raise ValueError(f"{path}._target_={name}: {str(error).splitlines()[0]}") from None
    if not callable(target):
        raise ValueError(f"{path}._target_={name}: nothing that can be built")
    return target


def check_value_type(node: DictConfig, key: str, hint, name: Callable[[], str], taker: str) -> None:
    """`ValueError` when the value is not of the type; text that says a number becomes one, and a number a text."""
    hint = to_checkable_type(hint)
    try:
        schema = OmegaConf.structured(make_dataclass("Node", [(key, hint, field(default=MISSING))]))
        value = OmegaConf.merge(schema, {key: node[key]})[key]
    except OmegaConfBaseException:
        raise ValueError(f"{name()}={str(node[key])[:MAX_VALUE_LENGTH]}: {taker}{describe_type(hint)}") from None
    if isinstance(value, str) != isinstance(node[key], str):
        check_number(name(), value)
        node[key] = value


def to_checkable_type(hint):
    """The type itself when OmegaConf can check it (a scalar, `scalar | None`, a list of scalars), else Any."""
    if get_origin(hint) is list and set(get_args(hint)) <= SCALAR_TYPES:
        return hint
    members = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    scalars = members - {NoneType}
    if scalars and scalars <= SCALAR_TYPES:
        return hint
    return float if scalars & SCALAR_TYPES == {float} else Any


def describe_type(hint) -> str:
    """What a signature accepts, in words."""
    if get_origin(hint) is list:
        return f"a list of {' or '.join(TYPE_NAMES[member] for member in get_args(hint))}"
    members = get_args(hint) or (hint,)
    return " or ".join(TYPE_NAMES.get(member, str(member)) for member in members)
