"""Pictures of a model, a run or LoRA files, one by one or in a grid: sdft generate prompts=['a cat']"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main


@hydra_main("generate")
def main(cfg):
    from hydra.core.hydra_config import HydraConfig

    generate(cfg, {word.lstrip("+~").split("=")[0] for word in HydraConfig.get().overrides.task})


def generate(cfg, given: set[str]) -> None:
    """`given` are the words on the command line."""
    from rich.console import Console
    from rich.progress import track

    from sdft.apps.generate.contact_sheet import write_contact_sheets
    from sdft.apps.generate.reproduce import describe_environment_changes, describe_pixel_difference
    from sdft.apps.generate.request import parse_request
    from sdft.config import check_config

    check_config(cfg)
    made, image_metadata = parse_request(cfg, given)
    folder, console = Path(cfg.folder).expanduser(), Console()
    print(f"draw     {len(made.cells)} picture{'s' * (len(made.cells) > 1)} in {folder}/", flush=True)
    bar = track(made.draw(folder), "draw", total=len(made.cells), console=console, disable=not console.is_terminal)
    for _ in bar:
        pass
    print(f"look     {'   '.join(map(str, write_contact_sheets(made, folder)))}")
    if made.batch_position:
        print(f"same     {describe_pixel_difference(Path(cfg['from']).expanduser(), made.files[made.cells[0]])}")
        if others := describe_environment_changes(image_metadata, made.last_metadata):
            print(f"note     {others}")


if __name__ == "__main__":
    main()
