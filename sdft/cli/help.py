"""`--help`: the choices and options of a program by topic, with the comments of its config files."""

import re
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sdft.options.suggestions import list_groups

COMMENT_COLUMN = 40
TOPIC = re.compile(r"^# --- ([^:\n]+?)(?:: (.+?))? ---$")  # "# --- data: data, prior ---": a topic and its config nodes


def render_help(conf: Path, config: str, overrides: list[str]) -> str:
    """Fill in the help template of `conf/CONFIG.yaml`, with `overrides` applied; twice as fast as Hydra's own help."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(config, overrides, return_hydra_config=True)
    options = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    groups = list_groups(config, conf)
    choices = {key: sorted(file.stem for file in (conf / key).glob("*.yaml")) for key in groups}
    files = {key: conf / key / f"{cfg.hydra.runtime.choices.get(key)}.yaml" for key in choices}
    texts = {key: file.read_text(encoding="utf-8") for key, file in files.items() if file.is_file()}
    text = (conf / f"{config}.yaml").read_text(encoding="utf-8")
    comments = {}
    for source in (*texts.values(), text):
        comments |= parse_comments(source)
    if topics := parse_topics(text):
        known = {key for keys in topics.values() for key in keys}
        for group, source in texts.items():  # options that a group's file brings to the top level
            topic = next((name for name, keys in topics.items() if group in keys), "other")
            new = [key for key in re.findall(r"^(\w+):", source, re.MULTILINE) if key not in known]
            topics.setdefault(topic, []).extend(new)
            known |= set(new)
        lines, choice_lines = render_topics(OmegaConf.to_container(options), topics, choices, comments), ""
    else:
        lines = add_comments(OmegaConf.to_yaml(options), comments)
        choice_lines = "\n".join(f"{key}: {', '.join(names)}" for key, names in choices.items())
    return Template(cfg.hydra.help.template).substitute(APP_CONFIG_GROUPS=choice_lines, CONFIG=lines)


def parse_comments(text: str) -> dict[str, str]:
    """Comments behind the top-level options of a config file."""
    return dict(re.findall(r"^(\w+):.*?# (.+)$", text, re.MULTILINE))


def parse_topics(text: str) -> dict[str, list[str]]:
    """Topics of a config file, each with its top-level options and config nodes; empty if the file has no topics."""
    topics, keys = {}, None
    for line in text.splitlines():
        if match := TOPIC.match(line):
            keys = topics.setdefault(match[1], [])
            keys += match[2].split(", ") if match[2] else []
        elif keys is not None and (option := re.match(r"(\w+):", line)) and not is_node(option[1], topics):
            keys.append(option[1])
    return topics


def is_node(key: str, topics: dict[str, list[str]]) -> bool:
    """Whether a topic's heading names the key; the text has its node further down."""
    return any(key in keys for keys in topics.values())


def render_topics(options: dict, topics: dict[str, list[str]], choices: dict, comments: dict[str, str]) -> str:
    """Per topic: its options, then the choices and the options of its config nodes, one line each."""
    lines, printed = [], {"hydra"}
    for topic, keys in topics.items():
        plain = [key for key in dict.fromkeys(keys) if key in options and not isinstance(options[key], dict)]
        nodes = [key for key in dict.fromkeys(keys) if isinstance(options.get(key), dict) or key in choices]
        plain, nodes = ([key for key in group if key not in printed] for group in (plain, nodes))
        printed |= {*plain, *nodes}
        if not plain and not nodes:
            continue
        lines.append(f"== {topic} ==")
        lines += [format_line(key, options[key], comments.get(key)) for key in plain]
        for node in nodes:
            if node in choices:
                lines.append(f"{node}={' | '.join(choices[node])}")
            for key, value in (options.get(node) or {}).items():
                is_derived = isinstance(value, str) and value.startswith("${")
                if not key.startswith("_") and not is_derived and not isinstance(value, dict):
                    lines.append(format_line(f"  {node}.{key}", value, comments.get(node)))
        lines.append("")
    return "\n".join(lines).rstrip()


def format_line(key: str, value, comment: str | None) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{f'{key}={text}':<{COMMENT_COLUMN}} # {comment}" if comment else f"{key}={text}"


def add_comments(text: str, comments: dict[str, str]) -> str:
    """Append its comment to each top-level option of a YAML text."""
    lines = []
    for line in text.splitlines():
        key = line.partition(":")[0]
        lines.append(f"{line:<{COMMENT_COLUMN}}# {comments[key]}" if key in comments else line)
    return "\n".join(lines)
