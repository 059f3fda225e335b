"""Publish a run's result as a folder or on the Hugging Face Hub: sdft publish run=FOLDER to=USER/NAME"""

from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.options.quoting import format_for_shell
from sdft.runs.terminal import print_text

OPTION_TYPES = {"run": str | None, "to": str | None, "license": str | None}
OPTION_TYPES |= dict.fromkeys(("best", "captions", "push", "private"), bool)


@hydra_main("publish")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, OPTION_TYPES)
    from sdft.apps.publish.publication import LICENSES, PublishRequest, write_publication
    from sdft.apps.publish.upload import upload_folder
    from sdft.runs.newest_run import find_newest_run

    if cfg.push and not cfg.to:
        raise ValueError("push=true: needs to=USER/NAME")
    if cfg.push and not cfg.license:
        raise ValueError(f"push=true: needs license=…; choose one of {', '.join(LICENSES.split())}")
    run = Path(cfg.run).expanduser() if cfg.run else find_newest_run()
    folder = write_publication(PublishRequest(run, cfg.to, cfg.license, cfg.best, cfg.captions))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    print_text(f"folder     {folder}/ ({size:.1f} MB)")
    if not cfg.license:
        print_text(
            f"license    none; others may not use the result, choose license=… of {', '.join(LICENSES.split()[:5])}, …"
        )
    print_text(f"card       {folder / 'README.md'}")
    if cfg.push:
        print_text(f"hub        {upload_folder(folder, cfg.to, cfg.private, f'{run.parent.name} of sdft')}")
    else:
        print_text(
            f"next       sdft publish {format_for_shell('run', run)} to={cfg.to or 'USER/NAME'} license=… push=true"
        )


if __name__ == "__main__":
    main()
