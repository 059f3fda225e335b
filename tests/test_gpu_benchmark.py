"""benchmarks/gpu.sh runs its parts within its time, and collects what they measured."""

import json
import os
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STAND_IN = """#!/bin/bash
if [[ $1 == *gpu_table.py ]]; then cat "$2/parts.txt"; exit; fi
echo "$@" >>"$RECORD"
for argument in "$@"; do [[ $argument == json=* ]] && echo '{}' >"${argument#json=}"; done
[[ $* != *channels_last=0* ]]
"""


@pytest.fixture
def run_script(tmp_path):
    """A function that runs gpu.sh with a stand-in for Python; returns (output, commands)."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(**variables: str) -> tuple[list[list[str]], list[str]]:
        record = tmp_path / "commands"
        record.write_text("")
        environment = os.environ | {"PYTHON": str(python), "RECORD": str(record)} | variables
        folder = tmp_path / "results"
        done = subprocess.run(
            [BENCHMARKS / "gpu.sh", folder], env=environment, capture_output=True, text=True, check=True
        )
        assert (folder / "gpu.txt").read_text() in done.stdout and not done.stderr
        return [line.split() for line in (folder / "gpu.txt").read_text().splitlines()], record.read_text().splitlines()

    return run


def test_every_part_runs_and_a_failure_stops_none(run_script):
    parts, commands = run_script(PEER="script.py", MODEL="folder")
    states = {name: state for name, state, _ in parts}
    assert len(commands) == len(states) == 20 and "peer" in states and list(states)[-1] == "sd15_graphs"
    assert [name for name, state in states.items() if state != "0"] == ["sd15_lora_b16_contiguous"]


def test_parts_that_no_longer_fit_are_left_out(run_script):
    parts, commands = run_script(DEADLINE="20")
    left_out = [name for name, state, _ in parts if state == "left-out"]
    assert "sdxl_lora_b1" in left_out and "sd15_lora_b1" not in left_out
    assert len(commands) == len(parts) - len(left_out)


def test_the_table_has_each_part_with_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_table

    (tmp_path / "parts.txt").write_text("a 0 12\nb 124 45\nc left-out 0\nd 0 9\n")
    step = {"rows": [{"loop": "ours", "ms a step": "61.5"}], "ratio": 1.02, "memory_gb": 2.5, "expected_gb": 2.25}
    (tmp_path / "a.json").write_text(json.dumps(step))
    (tmp_path / "d.json").write_text(json.dumps({"rows": [], "waits": {"module.py:3": 6}}))
    gpu_table.main(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert lines[0] == ["a", "ok", "12", "61.5", "ms", "a", "step", "1.02", "2.50", "2.25"]
    assert lines[1][:4] == ["b", "time", "limit", "45"] and lines[2][:3] == ["c", "left", "out"]
    assert lines[3] == ["d", "ok", "9", "1", "lines", "wait"]
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["a"] == step
