"""Compare runs: sdft compare FOLDER… [metric=CLIP-I]"""

import sys
from pathlib import Path

from sdft.cli.errors import report_errors_in_one_line
from sdft.cli.output import protect_output
from sdft.runs.metadata import read_record
from sdft.runs.terminal import print_text
from sdft.sweeps.compare import compare_runs


def job_sort_key(file: Path) -> tuple[int, str]:
    """Sort jobs by number, runs by name."""
    name = file.parent.name
    return (int(name), "") if name.isdigit() else (0, name)


def main(name: str | None = None) -> None:
    """sdft compare FOLDER… [metric=CLIP-I]: one folder of runs, results in it, or several, results in outputs/comparison/."""
    protect_output()
    options = [argument for argument in sys.argv[1:] if "=" in argument]
    metric = next((option.removeprefix("metric=") for option in options if option.startswith("metric=")), None)
    paths = [argument for argument in sys.argv[1:] if "=" not in argument]
    folders = [Path(path) for path in paths]
    runs = [
        file.parent
        for folder in folders
        for file in sorted(folder.glob("run.json")) or sorted(folder.glob("*/run.json"), key=job_sort_key)
    ]
    with report_errors_in_one_line(show_traceback=False):
        if any(not path.strip() for path in paths):
            raise ValueError(f"{' '.join(map(repr, paths))}: a blank folder; give run folders")
        if not runs:
            raise ValueError(
                f"{' '.join(paths) or 'no folder'}: no run.json; give run folders, or a folder of run folders"
            )
        single = len(folders) == 1 and not (folders[0] / "run.json").is_file()
        output = folders[0] if single else Path("outputs/comparison")
        if invalid := [option for option in options if not option.startswith("metric=")]:
            raise ValueError(f"{invalid[0]}: not an option; give folders and, optionally, metric=NAME")
        if empty := [str(folder) for folder in folders if not any(run.is_relative_to(folder) for run in runs)]:
            raise ValueError(f"{empty[0]}: no run.json; give run folders, or a folder of run folders")
        states = {run: read_record(run)["state"] for run in runs}
        for run, state in states.items():
            if state != "finished":
                print_text(f"skipped    {run}: {state}")
        finished = [run for run, state in states.items() if state == "finished"]
        if not finished:
            raise ValueError("no finished run in the given folders")
        compare_runs(finished, output, metric)


if __name__ == "__main__":
    main()
