"""Browse all runs in the web browser, served on localhost only: sdft gallery"""

from importlib.util import find_spec
from pathlib import Path

from sdft.cli.entry_point import hydra_main
from sdft.runs.terminal import print_text


@hydra_main("gallery")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, {"folder": str, "multirun": str | None, "port": int, "open": bool})
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f'gallery: requires {missing[0]}, which is not installed; pip install -e ".[gallery]"')
    from sdft.apps.gallery.server import LOCALHOST, bind_socket, build_run_index, serve_gallery

    run_index = build_run_index(
        Path(cfg.folder).expanduser(), Path(cfg.multirun).expanduser() if cfg.multirun else None
    )
    listener = bind_socket(cfg.port)
    address = f"http://{LOCALHOST}:{listener.getsockname()[1]}/"
    print_text(f"address    {address}   Ctrl-C to stop", flush=True)
    if cfg.open:
        import webbrowser

        webbrowser.open(address)
    serve_gallery(run_index, listener)


if __name__ == "__main__":
    main()
