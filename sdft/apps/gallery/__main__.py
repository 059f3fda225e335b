"""All runs in the browser, on this machine alone: sdft gallery"""

from importlib.util import find_spec
from pathlib import Path

from sdft.cli.entry_point import hydra_main


@hydra_main("gallery")
def main(cfg):
    from sdft.config import check_config, check_option_types

    check_config(cfg)
    check_option_types(cfg, {"folder": str, "multirun": str | None, "port": int, "open": bool})
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f'gallery: needs {missing[0]}, which is not installed; pip install -e ".[gallery]"')
    from sdft.apps.gallery.server import LOCALHOST, bind_socket, build_run_index, serve_gallery

    shelf = build_run_index(Path(cfg.folder).expanduser(), Path(cfg.multirun).expanduser() if cfg.multirun else None)
    opened = bind_socket(cfg.port)
    address = f"http://{LOCALHOST}:{opened.getsockname()[1]}/"
    print(f"look     {address}   Ctrl-C ends it", flush=True)
    if cfg.open:
        import webbrowser

        webbrowser.open(address)
    serve_gallery(shelf, opened)


if __name__ == "__main__":
    main()
