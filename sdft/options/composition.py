"""Check a composed config: every key is one that something reads, and the user's choices win over a recipe's values."""

import inspect
import re

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from sdft.config import CONF, import_target, iterate_leaves
from sdft.options.requirements import check_requirements
from sdft.options.suggestions import describe_unknown_option, flatten_config, list_groups

RECIPE = "experiment"  # the config group of recipes
MODEL_OPTIONS = ("resolution", "sampling")  # top-level options whose values belong to a model
CHECKED_WHEN_BUILT = ("trainer", "callbacks")  # flags of Lightning's Trainer, objects of the user
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def check_composition(config: str, cfg: DictConfig, hydra_config: DictConfig, is_job: bool = False) -> list[str]:
    """Check `cfg`, composed from `conf/CONFIG.yaml`, in place; call it where Hydra's `compose` works.

    Raises `ValueError` for keys that nothing reads. Where the command line selects another choice of a config group than the
    recipe, the recipe's values for that group, and those that nothing reads any more, give way. A job of a sweep may have options
    without effect, as those of a sweep are given to all of its jobs. Returns lines on values that gave way.
    """
    notes = []
    texts = OmegaConf.to_container(hydra_config.overrides, resolve=False)
    overrides = OverridesParser.create().parse_overrides(texts["task"])
    choices = {key: value for key, value in hydra_config.runtime.choices.items() if value is not None}
    recipe = choices.get(RECIPE)
    given = {override.key_or_group: override for override in overrides if not (CONF / override.key_or_group).is_dir()}
    added = {override.key_or_group: override for override in overrides if override.is_add() or override.is_force_add()}
    if recipe or added:
        places = [text for text in texts["hydra"] if text.startswith("hydra.searchpath=")]
        chosen = compose_choices(config, choices, places)
        if recipe:
            own_choices = read_own_choices(config, recipe, places)
            if changed := [key for key in list_groups(config) if own_choices.get(key) != choices.get(key)]:
                meant_for = compose_choices(config, own_choices, places)
                if dropped := drop_recipe_values(cfg, chosen, recipe, changed, given, meant_for):
                    notes = [f"{recipe} without {', '.join(dropped)}: set for its own {', '.join(changed)}"]
        check_added_keys(config, cfg, chosen, recipe, given | added)
        check_added_arguments(config, cfg, chosen, added)
    if config == "train" and "epochs" in given and "steps" not in given and "steps" in cfg:
        cfg.steps = None  # a recipe's
    check_given_options_are_read(config, cfg, given)
    if not is_job and "sweep" not in given:
        check_requirements(config, cfg, {key: override for key, override in given.items() if not is_neutral(override)})
    return notes


def is_neutral(override: Override) -> bool:
    """Whether an override deletes a key or sets it to null or false, which asks for nothing."""
    return override.is_delete() or override.value() in (None, False)


def compose_choices(config: str, choices: dict[str, str], places: list[str]) -> DictConfig:
    """The config of the choices alone, without a recipe and without values; `places` set Hydra's search path."""
    groups = [f"{key}={choices[key]}" for key in list_groups(config) if key in choices and key != RECIPE]
    return compose(config, [*places, *groups])


def read_own_choices(config: str, recipe: str, places: list[str]) -> dict[str, str]:
    """The choices of a recipe on its own."""
    choices = compose(config, [*places, f"{RECIPE}={recipe}"], return_hydra_config=True).hydra.runtime.choices
    return {key: value for key, value in choices.items() if value is not None}


def drop_recipe_values(
    cfg: DictConfig, chosen: DictConfig, recipe: str, changed: list[str], given: dict, meant_for: DictConfig
) -> list[str]:
    """Replace the recipe's values for `changed` groups by those of the choices, and remove those that nothing reads any more.

    Returns them. The recipe is `meant_for` the config of its own choices.
    """
    keys = [*changed, *(MODEL_OPTIONS if "model" in changed else ())]
    leaves, chosen_leaves = (flatten_config(OmegaConf.to_container(config, resolve=False)) for config in (cfg, chosen))
    references = list_references(cfg)
    dropped = []
    for path, value in leaves.items():
        top = path.partition(".")[0]
        is_unread = path == top and path not in chosen and path in meant_for and path not in references
        is_replaced = top in keys and (path not in chosen_leaves or chosen_leaves[path] != value)
        if (is_unread or is_replaced) and not any(covers(key, path) for key in given):
            dropped.append(f"{path}={value}")
            with open_dict(cfg):
                if path in chosen_leaves:
                    OmegaConf.update(cfg, path, chosen_leaves[path], force_add=True)
                else:
                    delete_key(cfg, path)
    return dropped


def covers(key: str, path: str) -> bool:
    """Whether an override of `key` sets `path`."""
    return path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.")


def delete_key(cfg: DictConfig, path: str) -> None:
    parent, _, name = path.rpartition(".")
    del (OmegaConf.select(cfg, parent) if parent else cfg)[name]


def check_added_keys(config: str, cfg: DictConfig, chosen: DictConfig, recipe: str | None, given: dict) -> None:
    """Raise `ValueError` for a key that the choices do not declare, no object takes and no other key refers to."""
    references = list_references(cfg)
    for path in iterate_added_keys(
        OmegaConf.to_container(cfg, resolve=False), OmegaConf.to_container(chosen, resolve=False)
    ):
        if any(covers(path, reference) for reference in references):
            continue
        override = next((override for key, override in given.items() if covers(key, path)), None)
        if override is not None:
            raise ValueError(describe_unknown_option(override.input_line, config, chosen))
        text = f"{path}={select_raw(cfg, path)}"
        raise ValueError(f"{RECIPE}={recipe}: {describe_unknown_option(text, config, chosen)}")


def check_added_arguments(config: str, cfg: DictConfig, chosen: DictConfig, added: dict[str, Override]) -> None:
    """Raise `ValueError` for an added argument that the `_target_` of its node does not take."""
    for key, override in added.items():
        parent, _, name = key.rpartition(".")
        node = select_raw(cfg, parent) if parent else None
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str) or name.startswith("_"):
            continue
        parameters = inspect.signature(import_target(parent, node["_target_"])).parameters
        if name not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(describe_unknown_option(override.input_line, config, chosen))


def select_raw(cfg: DictConfig, path: str):
    """The value of a dotted key without resolving it; None if there is none."""
    node = OmegaConf.to_container(cfg, resolve=False)
    for name in path.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def iterate_added_keys(node: dict, declared: dict, path: str = ""):
    """Yield the paths of keys in `node` that are not in `declared`; what is inside an object is checked by its signature."""
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        name, is_object = f"{path}{key}", isinstance(value, dict) and "_target_" in value
        if key not in declared:
            yield name
        elif isinstance(value, dict) and not is_object and name not in CHECKED_WHEN_BUILT:
            yield from iterate_added_keys(value, declared[key] if isinstance(declared[key], dict) else {}, f"{name}.")


def list_references(cfg: DictConfig) -> set[str]:
    """The keys that interpolations in the config refer to."""
    leaves = iterate_leaves(OmegaConf.to_container(cfg, resolve=False))
    return {reference for _, value in leaves if isinstance(value, str) for reference in REFERENCE.findall(value)}


def check_given_options_are_read(config: str, cfg: DictConfig, given: dict) -> None:
    """Raise `ValueError` for a top-level option on the command line that the chosen nodes do not refer to.

    Options that `conf/CONFIG.yaml` declares and does not refer to, or refers to for Hydra alone, are read by the code.
    """
    text = (CONF / f"{config}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    references, raw = list_references(cfg), OmegaConf.to_container(cfg, resolve=False)
    for key, override in given.items():
        is_read_by_code = re.search(rf"^{re.escape(key)}:", text, re.MULTILINE) and f"${{{key}}}" not in text
        if "." in key or override.is_delete() or isinstance(raw.get(key), dict) or key not in raw:
            continue
        if is_read_by_code or any(covers(key, reference) for reference in references):
            continue
        replacing = [other for other in given if other.rpartition(".")[2] == key and "." in other]
        if replacing:
            raise ValueError(
                f"{override.input_line}: replaced by {given[replacing[0]].input_line}; give one of the two"
            )
        users = list_users(key)
        nodes = [other for other in given if re.search(rf"^{re.escape(other)}:[ ]*$", text, re.MULTILINE)]
        if nodes and not users:
            raise ValueError(f"{given[nodes[0]].input_line}: replaces all of {nodes[0]}; give {nodes[0]}.KEY=VALUE")
        raise ValueError(f"{override.input_line}: not read by the chosen {config} config; only by {', '.join(users)}")


def list_users(key: str) -> list[str]:
    """The choices GROUP=NAME whose files refer to a top-level option."""
    files = sorted(CONF.glob("*/*.yaml"))
    return [f"{f.parent.name}={f.stem}" for f in files if f"${{{key}}}" in f.read_text(encoding="utf-8")]


def explain_unknown_override(error: HydraException, config: str, overrides: list[str]) -> str | None:
    """Our message for Hydra's refusal of a key that is not in the config; None for its other errors."""
    match = re.match(r"Could not override '([^']+)'", str(error))
    text = match and next((text for text in overrides if text.partition("=")[0].lstrip("+") == match[1]), None)
    if not text:
        return None
    groups = list_groups(config)
    choices = [other for other in overrides if other.partition("=")[0] in groups and "," not in other]
    try:
        chosen = compose(config, choices)
    except HydraException:
        chosen = compose(config)
    return describe_unknown_option(text, config, chosen)
