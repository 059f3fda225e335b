"""What to do with a finished run: commands to copy from the end of its output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft.options.quoting import format_for_shell
from sdft.runs.evaluations import DIGITS_DATA, list_missing_options


def list_next_commands(folder: Path, choices: Mapping[str, Any]) -> list[str]:
    """Commands that continue with a run of these choices: evaluate it if that was not done, then use it; after the digits,
    train on photos.
    """
    run = format_for_shell("run", folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    evaluate = [f"sdft evaluate {run} {option}" for option in list_missing_options(choices)]
    is_digits = choices.get("data") in DIGITS_DATA
    use = "sdft train model=sd15 data=folder data.path=PHOTOS" if is_digits else f"sdft publish {run}"
    return [*evaluate, f"sdft generate {run}", use]
