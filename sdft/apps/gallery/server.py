"""A server for this machine alone."""

import socket
from pathlib import Path

from sdft.apps.gallery.run_index import RunIndex

LOCALHOST = "127.0.0.1"


def build_run_index(folder: Path, sweeps: Path | None) -> RunIndex:
    """`ValueError` when there is no such folder; sweeps may still come."""
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: no such folder; train first, or give the folder that runs are in")
    apart = sweeps and sweeps.resolve() != folder.resolve()
    return RunIndex({"runs": folder} | ({"sweeps": sweeps} if apart else {}))


def bind_socket(port: int) -> socket.socket:
    """A socket of this machine's own address, at a free port for 0."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: choose 1024 to 65535, or 0 for a free one")
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((LOCALHOST, port))
    except OSError as error:
        opened.close()
        raise ValueError(f"port={port}: {error.strerror}; choose another, or 0 for a free one") from None
    opened.listen(128)
    return opened


def serve_gallery(shelf: RunIndex, opened: socket.socket) -> None:
    """Until Ctrl-C."""
    import uvicorn

    from sdft.apps.gallery.app import create_app

    config = uvicorn.Config(
        create_app(shelf), log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off"
    )
    try:
        uvicorn.Server(config).run(sockets=[opened])
    except KeyboardInterrupt:
        pass  # how it is meant to end
    finally:
        opened.close()
