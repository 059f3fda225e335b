"""Start one process per device on this machine, as torchrun would."""

import os
import signal
import sys
from dataclasses import fields

from sdft.distributed import RUN_FOLDER_VARIABLE, count_cpu_cores
from sdft.runs.terminal import print_text


def launch_processes(count: int, folder, command: list[str]) -> int:
    """Run the Python program and arguments `command` in `count` processes on this machine, with run folder `folder`.

    Returns the first failing exit status, or 0.
    """
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cpu_cores() // count)))
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "45")  # seconds for the other ranks to save
    options = {"max_restarts": 0, "monitor_interval": 0.2, "local_addr": "localhost"}
    if any(field.name == "signals_to_handle" for field in fields(LaunchConfig)):
        forwarded = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"]  # to all ranks
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            forwarded.append("SIGHUP")
        options["signals_to_handle"] = ",".join(forwarded)
    config = LaunchConfig(1, 1, count, **rendezvous, **options)
    try:
        elastic_launch(config, sys.executable)("-u", *command)
    except ChildFailedError as error:
        # a killed process is the cause; the others may have failed because of it
        first_rank, first = min(error.failures.items(), key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
        if first.exitcode < 0:
            print_text(f"error: rank {first_rank} of {count} was killed ({first.signal_name()})", file=sys.stderr)
            return 128 - first.exitcode
        return first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0
