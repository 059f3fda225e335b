"""Generate images with a model, a run or LoRA files, also as a labelled grid: sdft generate prompts=['a cat']"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text


@hydra_main("generate")
def main(cfg):
    from hydra.core.hydra_config import HydraConfig

    generate(cfg, {override.lstrip("+~").split("=")[0] for override in HydraConfig.get().overrides.task})


def generate(cfg, overrides: set[str]) -> None:
    """Write the images and sheets of `cfg`; `overrides` are the option names on the command line."""
    from rich.console import Console
    from rich.progress import track

    from sdft.apps.generate.contact_sheet import write_contact_sheets
    from sdft.apps.generate.request import parse_request
    from sdft.config import check_config

    check_config(cfg)
    grid = parse_request(cfg, overrides)
    folder, console = Path(cfg.folder).expanduser(), Console()
    print_text(f"generate   {len(grid.cells)} image{'s' * (len(grid.cells) > 1)} in {folder}/", flush=True)
    bar = track(
        grid.generate_images(folder),
        "generate",
        total=len(grid.cells),
        console=console,
        disable=not console.is_terminal,
    )
    for _ in bar:
        pass
    print_text(f"images     {'   '.join(map(str, write_contact_sheets(grid, folder)))}")


if __name__ == "__main__":
    main()
