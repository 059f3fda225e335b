"""Check the form of flags and overrides before Hydra reads them, with errors that name the override."""

import argparse

from sdft.config import CONF
from sdft.options.foreign_names import OPTION_BY_NAME
from sdft.options.quoting import correct_override, parse_override, read_literally
from sdft.runs.terminal import is_unicode

MULTIRUN_FLAGS = ("-m", "--multirun")
INFO_FLAGS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version")  # print and exit


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are `ValueError`s."""

    def error(self, message: str):
        raise ValueError(f"{message}; options are KEY=VALUE, and --help lists them")


def build_flag_parser() -> FlagParser:
    """Hydra's flags."""
    parser = FlagParser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    for flags in (
        "--help -h",
        "--hydra-help",
        "--version",
        "--resolve",
        "--run -r",
        "--multirun -m",
        "--shell-completion -sc",
    ):
        parser.add_argument(*flags.split(), action="store_true")
    for flags in ("--package -p", "--config-path -cp", "--config-name -cn", "--config-dir -cd", "--experimental-rerun"):
        parser.add_argument(*flags.split())
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    info = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=info)
    return parser


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The flags, which may stand between overrides, with their values, and the overrides.

    Raises `ValueError` for flags that Hydra would answer with a page or a traceback.
    """
    if wrong := [argument for argument in arguments if not is_unicode(argument)]:
        raise ValueError(f"{wrong[0]}: not UTF-8; rename the file or folder")
    arguments = list(map(read_literally, arguments))
    parsed, unknown = build_flag_parser().parse_known_intermixed_args(arguments)
    if unknown:
        raise ValueError(describe_unknown_flag(unknown))
    if parsed.experimental_rerun is not None:
        raise ValueError(
            f"--experimental-rerun={parsed.experimental_rerun}: reads a pickle, which can execute code; "
            "give the overrides instead"
        )
    if parsed.resolve and not (parsed.cfg or parsed.help):
        raise ValueError("--resolve: only with --cfg job")
    modes = {"--run": parsed.run, "--multirun": parsed.multirun, "--cfg": parsed.cfg, "--info": parsed.info}
    if len(selected := [flag for flag, value in modes.items() if value]) > 1:
        raise ValueError(f"{' '.join(selected)}: mutually exclusive; give one of them")
    for override in parsed.overrides:
        check_override(override)
    return [argument for argument in arguments if argument not in parsed.overrides], parsed.overrides


def describe_unknown_flag(unknown: list[str]) -> str:
    """The error for arguments that are neither overrides nor flags of Hydra."""
    name = unknown[0].partition("=")[0].lstrip("-").replace("-", "_")
    option = OPTION_BY_NAME.get(name, name).split("|")[0]
    is_option = unknown[0].startswith("-") and name.isidentifier()
    advice = (
        f"options have no dashes, such as {option}{'' if '=' in option else '=…'}"
        if is_option
        else "options are KEY=VALUE"
    )
    return f"{' '.join(unknown)}: {advice}, and --help lists them"


def describe_unreadable_override(text: str) -> str:
    """The error for an override that does not follow Hydra's grammar, with the corrected argument."""
    if correction := correct_override(text):
        return f"{text}: has characters that must be quoted for the shell and for Hydra; give {correction}"
    return f"{text!r}: not KEY=VALUE; --help lists the options"


def check_single_values(overrides: list[str]) -> None:
    """Raise `ValueError` for an override with several values, which only a sweep takes."""
    for text in overrides:
        if (override := parse_override(text)) and override.is_sweep_override():
            raise ValueError(
                f"{text}: several values; give {correct_override(text)} for one, or train.py -m for a sweep"
            )


def check_override(text: str) -> None:
    """Check the form KEY=VALUE and the name of a group's choice; Hydra's own errors do not name the override."""
    override = parse_override(text)
    if override is None:
        raise ValueError(describe_unreadable_override(text))
    value = override.value()
    if not override.is_delete() and not text.partition("=")[2].strip():
        raise ValueError(f"{text}: no value, as of an unset shell variable; give one, or leave the option out")
    key = override.key_or_group
    groups = {folder.name: folder for folder in CONF.iterdir() if folder.is_dir()}
    if not key:
        raise ValueError(f"{text!r}: not KEY=VALUE; --help lists the options")
    if key == "hydra.mode":
        raise ValueError(f"{text}: Hydra's own sweeps run all jobs in one process; use -m")
    if key == "hydra.output_subdir" and value is not None:
        raise ValueError(f"{text}: fixed; a run stores its overrides in .hydra, other programs store none")
    is_group = key in groups or key == "hydra" or "/" in key
    is_interpolation = key in groups and "${" in text
    if not is_group or override.is_sweep_override() or (isinstance(value, str | list | dict) and not is_interpolation):
        return
    if not (override.is_delete() and value is None):
        names = sorted(file.stem for file in groups[key].glob("*.yaml")) if key in groups else ["a name"]
        raise ValueError(f"{text}: choose {', '.join(names)}")
