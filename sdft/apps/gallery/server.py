"""HTTP server on localhost."""

import socket
from pathlib import Path

from sdft.apps.gallery.run_index import RunIndex

LOCALHOST = "127.0.0.1"
MAX_CONNECTIONS = 64
MAX_HEADER_BYTES = 2**14


def build_run_index(folder: Path, sweeps: Path | None) -> RunIndex:
    """Index of runs and sweeps; `ValueError` if `folder` does not exist, while `sweeps` may be missing."""
    if not folder.is_dir():
        raise ValueError(f"folder={folder}: no such folder; train first, or give the folder of the runs")
    is_separate = sweeps and sweeps.resolve() != folder.resolve()
    return RunIndex({"runs": folder} | ({"sweeps": sweeps} if is_separate else {}))


def bind_socket(port: int) -> socket.socket:
    """Listening socket on localhost; port 0 chooses a free port."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port}: choose 1024 to 65535, or 0 for a free one")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCALHOST, port))
    except OSError as error:
        listener.close()
        raise ValueError(f"port={port}: {error.strerror}; choose another, or 0 for a free one") from None
    listener.listen(128)
    return listener


def serve_gallery(run_index: RunIndex, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    from sdft.apps.gallery.app import create_app
    from sdft.apps.gallery.http_protocol import TimedHttpProtocol

    config = uvicorn.Config(
        create_app(run_index),
        http=TimedHttpProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # regular exit
    finally:
        listener.close()
