"""Start programs in processes forked from one that has imported the slow libraries: an import takes eight seconds.

Tests of imports, of the command line itself, and of processes that a launcher starts use `subprocess` instead.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from sdft.training.memory_estimate import MemoryEstimate

ROOT = Path(__file__).parent.parent
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "sdft.training.training_run",
        "sdft.training.run_callbacks",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "transformers.models.clip.modeling_clip",
        "peft",
        "lightning.pytorch.loggers",
    ]
)


def run_in_this_process(
    program: str, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], output: Path, prepare
) -> None:
    """Run the script of the repository, or `-m MODULE`, as if it had been started here."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)
    warnings.simplefilter("ignore")
    sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    # takes a quarter of a short run, whose output nothing here reads
    sys.modules["sdft.training.run_summary"].estimate_memory = lambda module, step: MemoryEstimate(0)
    if prepare:
        prepare()
    module = program.removeprefix("-m ")
    sys.argv = [str(ROOT / program), *arguments]
    if module != program:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


class ForkedProgram:
    """Like `subprocess.Popen` of a script of the repository, or of `-m MODULE`, with one thread.

    `prepare` is called first in its process.
    """

    def __init__(
        self, *arguments: str, cwd: Path, name: str = "train.py", prepare: Callable | None = None, **environment: str
    ):
        self.output = Path(tempfile.mkdtemp(dir=cwd.parent)) / "output"
        environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | environment
        settings = (name, arguments, cwd, environment, self.output, prepare)
        self.process = FORKSERVER.Process(target=run_in_this_process, args=settings)
        self.process.start()
        self.pid = self.process.pid
        atexit.register(self.send_signal, signal.SIGKILL)  # multiprocessing would wait for it

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.poll() is None:
            raise TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode

    def read(self, stream: str) -> str:
        """What it has written to `out` or `err`."""
        file = self.output.with_suffix(f".{stream}")
        return file.read_text() if file.exists() else ""

    def communicate(self, timeout: float = 300) -> CompletedProcess:
        self.wait(timeout)
        return CompletedProcess((), self.poll(), self.read("out"), self.read("err"))


def run_forked(*arguments: str, cwd: Path, **options) -> CompletedProcess:
    """Run a program to its end, which must be successful."""
    program = ForkedProgram(*arguments, cwd=cwd, **options)
    wait_for_success([program])
    return program.communicate()


def start_forked_ranks(
    *arguments: str, cwd: Path, nodes: int = 1, prepare: Callable | None = None
) -> list[ForkedProgram]:
    """Start two ranks, on one or two "machines", with the environment that torchrun would give them."""
    environments = build_rank_environments(nodes)
    return [ForkedProgram(*arguments, cwd=cwd, prepare=prepare, **environment) for environment in environments]


def build_rank_environments(nodes: int = 1) -> list[dict[str, str]]:
    """The variables that torchrun would give two ranks."""
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "forked", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common["LOCAL_WORLD_SIZE"] = str(2 // nodes)
    places = [(0, 0), (0, 1)] if nodes == 1 else [(0, 0), (1, 0)]
    return [
        common | {"RANK": str(rank), "GROUP_RANK": str(node), "LOCAL_RANK": str(local)}
        for rank, (node, local) in enumerate(places)
    ]


def wait_for_success(programs: list[ForkedProgram]) -> None:
    for program in programs:
        done = program.communicate()
        assert done.returncode == 0, done.stdout + done.stderr


def compile_without_kernels() -> None:
    """Let torch's compiler trace forward and backward passes, but generate no code, which takes a minute."""
    torch = sys.modules["torch"]
    torch.compile = partial(torch.compile, backend="aot_eager")


def die_at_rename(pattern: str, count: int, early: bool) -> None:
    """Kill this process when `count` files with `pattern` in the name get their names, before the last one or after it."""
    replace = os.replace

    def replace_and_count(*names):
        nonlocal count
        count -= pattern in str(names[1])
        is_last = count == 0 and pattern in str(names[1])
        if is_last and early:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_count


def call_in_rank(function: Callable, arguments: tuple, environment: dict[str, str], cwd: Path, connection) -> None:
    os.chdir(cwd)
    os.environ.update(environment)
    connection.send(function(*arguments))


def call_in_two_ranks(function: Callable, *arguments, cwd: Path) -> list:
    """What a function of a test module returns in each of two processes on one "machine", which it may join to a group."""
    ranks = []
    for environment in build_rank_environments():
        receiver, sender = FORKSERVER.Pipe(duplex=False)
        process = FORKSERVER.Process(target=call_in_rank, args=(function, arguments, environment, cwd, sender))
        process.start()
        sender.close()  # so that `recv` ends if the process does
        ranks.append((process, receiver))
    try:
        return [receiver.recv() for _, receiver in ranks]
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()
