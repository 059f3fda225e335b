"""The config of a run: composed anew from `conf/`, with the plain values of the options that its folder stores."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sdft.config import CONF, check_config, check_option_types, check_required_nodes
from sdft.options.quoting import format_override
from sdft.runs.files import read_yaml
from sdft.runs.links import check_links
from sdft.runs.metadata import read_record
from sdft.runs.stored_options import check_choice, check_plain_value, check_prompt_file
from sdft.runs.terminal import describe_error

CONFIG_FILE = "config.yaml"
# nodes and options taken from a run's config; the others configure training
RUN_NODES = ("data", "method", "model", "metrics", "protocol", "sampling", "prior", "precision")
REQUIRED_NODES = ("data", "method", "model")
TEXT_OPTIONS = ("caption_template", "instance_prompt", "class_prompt", "placeholder_token", "accelerator")
RUN_OPTION_TYPES = dict.fromkeys(TEXT_OPTIONS, str | None) | {"prompts": str | list[str] | None}
RUN_OPTION_TYPES |= {"name": str, "seed": int, "resolution": int, "validation_split": float, "prompt_chunks": int}


def read_stored_config(run: Path, structure: Any = dict) -> dict[str, Any]:
    """`config.yaml` of a run folder, which has no links out of it, as data; interpolations in it stay text."""
    check_links(run)
    if not (run / CONFIG_FILE).is_file():
        raise ValueError(f"run={run}: not a run folder (no {CONFIG_FILE}); give a run folder")
    return read_yaml(run / CONFIG_FILE, structure)


def read_run_config(run: Path, replaced: Collection[str] = ()) -> DictConfig:
    """The resolved config of `run`, without the nodes that only configure training.

    Nothing of the folder is resolved or built: its choices select files of `conf/`, and its plain values replace theirs.
    The nodes in `replaced`, which the command line gives, are not read.
    """
    record, stored, where = read_record(run, "choices"), read_stored_config(run), str(run / CONFIG_FILE)
    choices = {group: names for group, names in record["choices"].items() if group not in replaced}
    ours, merged = compose_choices(choices, str(run / "run.json")), {}
    for key, value in ours.items():
        if key in RUN_NODES and key not in replaced:
            merged[key] = merge_stored_node(value, stored[key], where, key) if key in stored else value
        elif key in RUN_OPTION_TYPES and key in stored:
            merged[key] = merge_stored_node(None, stored[key], where, key)
        elif key in replaced or not isinstance(value, dict):
            merged[key] = value
    cfg = OmegaConf.create(merged)
    check_config(cfg)
    check_option_types(cfg, RUN_OPTION_TYPES)
    check_required_nodes(cfg, REQUIRED_NODES)
    return cfg


def compose_choices(choices: dict[str, Any], where: str) -> dict[str, Any]:
    """Compose `conf/train.yaml` with these choices of config groups, without those that only configure training."""
    known = {group: names for group, names in choices.items() if group in RUN_NODES and names is not None}
    for group, names in known.items():
        check_choice(group, names, where)
    active = GlobalHydra.instance().hydra  # of the program that reads the run
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_container(
                compose("train", [format_override(*choice) for choice in known.items()]), resolve=False
            )
    except HydraException as error:
        raise ValueError(f"{where}: its choices do not fit conf/ ({describe_error(error)})") from None
    finally:
        GlobalHydra.instance().hydra = active


def merge_stored_node(node: Any, stored: Any, where: str, path: str) -> Any:
    """`node` of our config with the plain values of `stored`; its `_target_` and the like stay ours, and must be equal there."""
    if not (isinstance(node, dict) and isinstance(stored, dict)):
        check_plain_value(stored, f"{where}: {path}")
        check_prompt_file(path, stored, where)
        return stored
    merged = {key: value for key, value in node.items() if key in stored or str(key).startswith("_")}
    for key, value in stored.items():
        if not str(key).startswith("_"):
            merged[key] = merge_stored_node(node.get(key), value, where, f"{path}.{key}")
        elif value != node.get(key):
            raise ValueError(f"{where}: {path}.{key}={str(value)[:60]} is not that of conf/; refusing to run it")
    return merged
