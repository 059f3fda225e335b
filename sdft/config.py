"""Fail before the first picture is read: every config node is checked against the signature that it will call."""

import inspect
import os
import re
from dataclasses import field, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCALARS = {int, float, str, bool}
KIND = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}

CONF = Path(__file__).parent.parent / "conf"
SECRETS = {
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
LEAST = 8  # characters of a secret


def check(cfg: DictConfig) -> None:
    """Resolve the config in place, or raise one `ValueError` that names the key to mend."""
    if missing := sorted(unset(OmegaConf.to_container(cfg, resolve=False))):
        raise ValueError("please set " + ", ".join(f"{key}=…" for key in missing))
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    check_secrets(OmegaConf.to_container(cfg))
    for path, node in targets(cfg):
        check_node(path, node)


def check_secrets(node, path: str = "") -> None:
    """`ValueError` for a value of the environment that is one to keep: no word takes one, and every word is written down."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            check_secrets(child, f"{path}.{key}" if path else str(key))
        return
    for name, value in os.environ.items():
        if set(name.upper().split("_")) & SECRETS and len(value) >= LEAST and value in str(node):
            raise ValueError(
                f"{path}: holds the value of ${name}, which would be written down; no word here takes a secret"
            )


def check_origin(cfg: DictConfig, where: Path) -> None:
    """`ValueError` for a config from a folder that would build what no file of `conf/` names: it could call anything."""
    files = CONF.rglob("*.yaml")
    known = {name for file in files for name in re.findall(r"_target_: *(\S+)", file.read_text(encoding="utf-8"))}
    for path, node in targets(cfg):
        if node._target_ not in known:
            raise ValueError(f"{where}: its {path} is {node._target_}, which no file of conf/ names; it is not run")


def unset(node, path: str = ""):
    """The keys that wait for a value."""
    if node == MISSING:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from unset(child, f"{path}.{key}" if path else str(key))


def targets(node, path: str = ""):
    """Every node that builds an object, with its path."""
    if isinstance(node, DictConfig) and "_target_" in node:
        yield path, node
    children = node.items() if isinstance(node, DictConfig) else enumerate(node) if isinstance(node, ListConfig) else ()
    for key, child in children:
        yield from targets(child, f"{path}.{key}" if path else str(key))


def check_node(path: str, node: DictConfig) -> None:
    """Names and types against the signature of `_target_`."""
    package = node._target_.split(".")[0]
    if find_spec(package) is None:
        raise ValueError(f"{path}: {node._target_} needs a package that is not installed: pip install {package}")
    target = get_object(node._target_)
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in given.items():
        if key not in parameters and not open_ended:
            raise ValueError(f"{path}.{key}={value}: {target.__name__} takes {', '.join(parameters)}")
        hint = checkable(hints.get(key, Any))
        try:
            OmegaConf.merge(
                OmegaConf.structured(make_dataclass("Node", [(key, hint, field(default=MISSING))])), {key: value}
            )
        except OmegaConfBaseException:
            raise ValueError(f"{path}.{key}={value}: {target.__name__} takes {accepted(hint)}") from None
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if absent := [name for name in required if name not in given and not node.get("_partial_")]:
        raise ValueError(f"{path}: {target.__name__} needs {', '.join(absent)}")


def checkable(hint):
    """The type itself when OmegaConf can check it (a scalar, `scalar | None`, a list of scalars), else Any."""
    if get_origin(hint) is list and set(get_args(hint)) <= SCALARS:
        return hint
    members = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    scalars = members - {NoneType}
    if scalars and scalars <= SCALARS:
        return hint
    return float if scalars & SCALARS == {float} else Any


def accepted(hint) -> str:
    """What a signature accepts, in words."""
    if get_origin(hint) is list:
        return f"a list of {' or '.join(KIND[member] for member in get_args(hint))}"
    members = get_args(hint) or (hint,)
    return " or ".join(KIND.get(member, str(member)) for member in members)
