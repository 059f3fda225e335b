"""Run a program by its name: `sdft generate KEY=VALUE …`, or `python -m sdft generate …` without installing."""

import sys
from importlib import import_module

from sdft.cli.output import protect_output
from sdft.runs.terminal import escape_unprintable, print_text

PROGRAMS = {
    "compare": "sdft.apps.compare",
    "convert": "sdft.apps.lora.convert",
    "evaluate": "sdft.apps.evaluate",
    "extract": "sdft.apps.lora.extract",
    "gallery": "sdft.apps.gallery.__main__",
    "generate": "sdft.apps.generate.__main__",
    "inspect": "sdft.apps.inspect_dataset",
    "merge": "sdft.apps.lora.merge",
    "mix": "sdft.apps.lora.mix",
    "morph": "sdft.apps.morph.__main__",
    "publish": "sdft.apps.publish.__main__",
    "resize": "sdft.apps.lora.resize",
    "show": "sdft.apps.lora.show",
    "stylize": "sdft.apps.stylize.__main__",
    "train": "sdft.apps.train",
    "wandb_report": "sdft.apps.wandb_report.__main__",
}


def main() -> None:
    protect_output()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print_text(
            "sdft PROGRAM KEY=VALUE …",
            "",
            f"programs: {', '.join(PROGRAMS)}",
            "",
            "`sdft PROGRAM --help` lists its options.",
        )
        return
    if name not in PROGRAMS:
        sys.exit(f"error: {escape_unprintable(name)}: unknown program; choose {', '.join(PROGRAMS)}")
    del sys.argv[1]
    run_program(PROGRAMS[name], name)


def run_program(module: str, name: str | None = None) -> None:
    """Run the `main` of a program; Ctrl-C ends it in one line, also during its imports, which take seconds."""
    protect_output()
    try:
        import_module(module).main(name)
    except KeyboardInterrupt:
        print_text("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
