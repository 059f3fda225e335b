"""Pages of the gallery, for intact and broken runs."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from conftest import ROOT, compose_config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from run_folders import PROMPTS, write_run, write_samples

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from sdft.apps.gallery.app import create_app
from sdft.apps.gallery.overview_page import RunFilter, build_overview
from sdft.apps.gallery.run_page import list_commands, summarize_data_sheet
from sdft.apps.gallery.server import bind_socket, build_run_index
from sdft.data.inventory import Inventory
from sdft.evaluation.jobs import build_evaluation_jobs

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def build_client(outputs, sweeps=None) -> TestClient:
    return TestClient(create_app(build_run_index(outputs, sweeps)), base_url=BASE_URL)


def list_names(outputs, sweeps=None, **run_filter) -> list[str]:
    cards = build_overview(build_run_index(outputs, sweeps), RunFilter(**run_filter))["cards"]
    return [(card.get("run") or card["sweep"]).name for card in cards]


def read_run(outputs, name: str):
    (card,) = build_overview(build_run_index(outputs, None), RunFilter(query=name))["cards"]
    return card["run"]


def test_runs_are_sorted_newest_first(outputs):
    for day in (2, 4, 3):
        write_run(outputs / "lora" / f"day{day}", started=f"2026-01-0{day}T00:00:00+0000")
    assert list_names(outputs) == ["lora/day4", "lora/day3", "lora/day2"]
    page = build_client(outputs).get("/").text
    assert page.index("day4") < page.index("day3") < page.index("day2")


def test_search_terms_match_substrings_and_options_match_exactly(outputs):
    for rank in (4, 48):
        write_run(outputs / "lora" / f"r{rank}", options={"rank": rank, "style": "candy" if rank == 4 else "neon"})
    assert list_names(outputs, query="rank=4") == ["lora/r4"]
    assert list_names(outputs, query="rank=48 NEON") == ["lora/r48"]
    assert sorted(list_names(outputs, query="r4")) == ["lora/r4", "lora/r48"]
    assert list_names(outputs, query="candy neon") == []
    assert "No matching runs" in build_client(outputs).get("/?q=nothing+like+it").text


def test_states_are_filtered(outputs):
    for state in ("finished", "failed", "stopped"):
        write_run(outputs / "x" / state, state=state)
    for state in ("finished", "failed", "stopped"):
        assert list_names(outputs, state=state) == [f"x/{state}"]
    assert list_names(outputs, state="running") == []
    assert build_client(outputs).get("/?state=nonsense").status_code == 200


def test_a_run_is_running_while_its_process_is_alive(outputs):
    folder = write_run(outputs / "x" / "run", state="running")
    write_lock = lambda **lock: (folder / "lock").write_text(json.dumps(lock))  # noqa: E731
    run_index = build_run_index(outputs, None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_lock(pid=os.getpid(), host=socket.gethostname())
    assert run_index.find_run("runs/x/run").state == "running"
    write_lock(pid=ended.pid, host=socket.gethostname())
    assert run_index.find_run("runs/x/run").state == "stopped"
    write_lock(pid=ended.pid, host="another-machine")
    run = run_index.find_run("runs/x/run")
    assert run.state == "running" and "another-machine" in run.detail
    (folder / "lock").unlink()
    assert run_index.find_run("runs/x/run").state == "stopped"


def test_a_running_run_shows_its_progress_and_is_refreshed(outputs):
    folder = write_run(outputs / "x" / "run", state="running")
    (folder / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    page = build_client(outputs).get("/").text
    assert "step 19 of 20" in page and 'data-live="4"' in page
    assert 'data-live="5"' in build_client(outputs).get("/run/runs/x/run").text


def test_jobs_of_a_sweep_are_grouped(outputs, tmp_path):
    outputs.mkdir()
    sweep = tmp_path / "multirun" / "ranks" / "stamp"
    for job in range(12):
        write_run(sweep / str(job), steps=())
    (sweep / "sweep.json").write_text(json.dumps({"jobs": [[]] * 14}))
    (sweep / "compare.html").write_text("<h1>comparison</h1>")
    assert list_names(outputs, tmp_path / "multirun") == ["ranks/stamp"]
    page = build_client(outputs, tmp_path / "multirun").get("/").text
    assert "12 of 14 jobs started" in page and "/file/sweeps/ranks/stamp/compare.html" in page
    assert len(list_names(outputs, tmp_path / "multirun", sweep="sweeps/ranks/stamp")) == 12
    assert len(list_names(outputs, tmp_path / "multirun", query="rank=4")) == 12
    assert build_client(outputs, tmp_path / "multirun").get("/run/sweeps/ranks/stamp/11").status_code == 200


def test_many_runs_are_paginated(outputs):
    for n in range(50):
        (outputs / "x" / f"run{n:02d}").mkdir(parents=True)
        (outputs / "x" / f"run{n:02d}" / "run.json").write_text(json.dumps({"format": 1, "state": "finished"}))
    assert len(list_names(outputs)) == 48 and len(list_names(outputs, page=2)) == 2
    assert "1 of 2" in build_client(outputs).get("/").text
    assert build_client(outputs).get("/?page=99999").status_code == 200


def test_run_json_is_parsed_once_per_change(outputs, monkeypatch):
    import sdft.apps.gallery.run_index as module

    for n in range(1000):
        (outputs / "x" / f"run{n}").mkdir(parents=True)
        (outputs / "x" / f"run{n}" / "run.json").write_text(
            json.dumps({"format": 1, "state": "finished", "options": {"n": n}})
        )
    parsed, parse_run_json = [], module.parse_run_json
    monkeypatch.setattr(module, "parse_run_json", lambda folder: parsed.append(folder) or parse_run_json(folder))
    run_index = build_run_index(outputs, None)
    start = time.process_time()
    assert build_overview(run_index, RunFilter(query="n=500"))["matching"] == 1
    assert time.process_time() - start < 5 and len(parsed) == 1000
    (outputs / "x" / "run7" / "run.json").write_text(json.dumps({"format": 1, "state": "failed"}))
    assert build_overview(run_index, RunFilter(state="failed"))["matching"] == 1
    assert len(parsed) == 1001


def test_a_run_page_contains_options_scores_commands_and_files(outputs):
    write_run(outputs / "lora" / "run")
    page = build_client(outputs).get("/run/runs/lora/run").text
    folder = outputs / "lora" / "run"
    for text in (
        "python train.py rank=4 steps=20",
        f"sdft train reproduce={folder}",
        f"resume={folder} steps=40 allow_config_change=true",
    ):
        assert text in page
    for text in ("CLIP-T", "0.400", "0.600", "+0.200", "better", "0.2000 → 0.1000 (-50.0%)", "abc1234"):
        assert text in page
    for link in ("/file/runs/lora/run/evaluation/report.html", "/file/runs/lora/run/data.png"):
        assert f'"{link}"' in page
    assert "checkpoints/" in page and "2.0 kB" in page and 'last.ckpt"' not in page and "overrides.yaml" not in page
    assert page.count('class="copy"') == 4


@pytest.mark.parametrize(("data", "needed"), [("digits", "digits"), ("folder", "clip")])
def test_the_evaluate_command_gives_the_metrics_that_a_run_lacks(outputs, monkeypatch, data, needed):
    monkeypatch.setattr("sdft.evaluation.jobs.build_run_variants", lambda *_: [])
    for metrics in (needed, "none"):
        choices = {"method": "lora", "model": "tiny", "data": data, "metrics": metrics}
        run = write_run(outputs / metrics / "a run", choices=choices)
        overrides = ["data.path=x"] if data == "folder" else []
        cfg = compose_config(f"data={data}", f"metrics={metrics}", *overrides)
        with open_dict(cfg):
            cfg.pop("hydra")
        (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        (command,) = (
            one["text"] for one in list_commands(read_run(outputs, f"{metrics}/a")) if one["name"] == "evaluate"
        )
        program, name, *options = shlex.split(command)
        assert (program, name) == ("sdft", "evaluate")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            (job,) = build_evaluation_jobs(compose("evaluate", options))
        assert job.cfg.metrics and job.folder == run / "evaluation"


def test_commands_that_the_programs_would_refuse_are_not_offered(outputs):
    write_run(outputs / "own" / "a run", overrides=["+callbacks.mine={_target_: my.Callback}"])
    assert [command["name"] for command in list_commands(read_run(outputs, "own/a"))] == ["this run"]
    run = write_run(outputs / "small" / "a run")
    (run / "checkpoints" / "last.ckpt").unlink()
    assert "train longer" not in [command["name"] for command in list_commands(read_run(outputs, "small/a"))]


def test_scores_of_an_earlier_result_are_marked(outputs):
    for name in ("a", "b"):
        run = write_run(outputs / "x" / name, result_digest="later")
        file = run / "evaluation" / "scores.json"
        scores = json.loads(file.read_text()) | {"result": {"weights": "earlier", "steps": 10}}
        file.write_text(json.dumps(scores))
    client = build_client(outputs)
    assert client.get("/").text.count("<dt>CLIP-T of step 10</dt>") == 2
    page = client.get("/run/runs/x/a").text
    assert "Scores of step 10, before training was resumed" in page
    assert "B: scores of step 10" in client.get("/compare?run=runs/x/a&run=runs/x/b").text
    file.write_text(json.dumps(scores | {"result": {"weights": "later", "steps": 20}}))
    assert "of step 10" not in build_client(outputs).get("/run/runs/x/b").text


def test_samples_are_grouped_by_prompt(outputs):
    write_run(outputs / "x" / "run")
    (outputs / "x" / "run" / "samples" / "step-000010" / "001.png").unlink()
    samples = build_client(outputs).get("/samples/runs/x/run").json()
    assert samples["steps"] == [0, 10, 20] and [row["prompt"] for row in samples["rows"]] == list(PROMPTS)
    assert [bool(file) for file in samples["rows"][1]["files"]] == [True, False, True]
    for file in samples["rows"][0]["files"]:
        assert build_client(outputs).get(file).headers["content-type"] == "image/png"


def test_the_strip_shows_the_last_step(outputs):
    import io

    from PIL import Image

    folder = write_run(outputs / "x" / "run")
    client = build_client(outputs)
    strip = Image.open(io.BytesIO(client.get("/strip/runs/x/run").content))
    assert strip.size == (256, 128) and strip.getpixel((0, 0)) == (80, 0, 90) and strip.getpixel((200, 0))[1] == 100
    (folder / "samples" / "step-000020" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert Image.open(io.BytesIO(build_client(outputs).get("/strip/runs/x/run").content)).size == (128, 128)
    shutil.rmtree(folder / "samples")
    assert build_client(outputs).get("/strip/runs/x/run").status_code == 204


def test_two_runs_are_compared_by_prompt_and_seed(outputs):
    write_run(outputs / "x" / "one")
    options = {"method": "lora", "rank": 8, "model": "tiny", "data": "digits", "tags": [], "flip": False}
    prompts = ("something else", PROMPTS[0])
    write_run(outputs / "x" / "two", options=options, prompts=prompts, digests={"data": "d2"}, seconds=99)
    page = build_client(outputs).get("/compare?run=runs/x/one&run=runs/x/two").text
    assert page.count('class="stack"') == 1 and "/file/runs/x/one/samples/step-000020/000.png" in page
    assert "/file/runs/x/two/samples/step-000020/001.png" in page
    rows = page[page.index("Different options") : page.index("Curves")]
    assert "<td>rank</td><td>4</td><td>8</td>" in rows and "flip" not in rows
    assert "different training data" in page and "<td>12 s</td><td>2 min</td>" in page
    assert "/curves/runs/x/one /curves/runs/x/two" in page
    page = build_client(outputs).get("/compare?run=runs/x/one&run=runs/x/two&step=10&step=0").text
    assert "one/samples/step-000010" in page and "two/samples/step-000000" in page


def test_a_run_compared_to_itself_is_before_and_after(outputs):
    write_run(outputs / "x" / "one")
    page = build_client(outputs).get("/compare?run=runs/x/one").text
    assert "Before and after" in page and page.count('class="stack"') == 2
    assert "samples/step-000000/000.png" in page and "samples/step-000020/000.png" in page


@pytest.mark.parametrize("query", ["", "?run=runs/x/one&run=runs/x/one&run=runs/x/one", "?run=runs/nowhere", "?run="])
def test_invalid_comparisons_are_errors(query, outputs):
    write_run(outputs / "x" / "one")
    answer = build_client(outputs).get(f"/compare{query}")
    assert answer.status_code in (400, 404) and "Not found" in answer.text


BROKEN = {
    "no run.json": lambda run: (run / "run.json").unlink(),
    "a truncated run.json": lambda run: (run / "run.json").write_text('{"state": "finis'),
    "a run.json that is not an object": lambda run: (run / "run.json").write_text("[1, 2]"),
    "a run.json that is not text": lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"),
    "a deeply nested run.json": lambda run: (run / "run.json").write_text("[" * 100_000),
    "a run.json that is a folder": lambda run: ((run / "run.json").unlink(), (run / "run.json").mkdir()),
    "an unknown state": lambda run: (run / "run.json").write_text('{"format": 1, "state": "flying"}'),
    "an older format": lambda run: (run / "run.json").write_text('{"state": "finished"}'),
}
DAMAGED = {
    "no samples": lambda run: shutil.rmtree(run / "samples"),
    "a sample that is not an image": lambda run: (run / "samples/step-000020/000.png").write_bytes(b"not an image"),
    "truncated samples.json": lambda run: (run / "samples/step-000020/samples.json").write_text("[{"),
    "invalid samples.json": lambda run: (run / "samples/step-000020/samples.json").write_text('[1, {"file": []}]'),
    "no metrics": lambda run: (run / "metrics.csv").unlink(),
    "binary metrics": lambda run: (run / "metrics.csv").write_bytes(b"step,a\n\xff\x00,\x00\n" * 3),
    "metrics of one long field": lambda run: (run / "metrics.csv").write_text("step,a\n1," + "9" * 200_000 + "\n"),
    "metrics without steps": lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
    "metrics with rows of other lengths": lambda run: (run / "metrics.csv").write_text(
        "step,a\n1\n1,2,3\n2,inf\n3,nan\n"
    ),
    "invalid scores": lambda run: (run / "evaluation/scores.json").write_text('{"states": [1, null], "metrics": 3}'),
    "invalid data.json": lambda run: (run / "data.json").write_text('{"a": {"b": [1]}, "c": [{}], "d": null}'),
}
ROUTES = (
    "/",
    "/run/{}",
    "/curves/{}",
    "/samples/{}",
    "/strip/{}",
    "/compare?run={}",
    "/compare?run={}&run=runs/x/intact",
)


@pytest.mark.parametrize("damage", [*BROKEN, *DAMAGED])
def test_damaged_runs_break_no_page(damage, outputs):
    write_run(outputs / "x" / "intact")
    folder = write_run(outputs / "x" / "run")
    ({**BROKEN, **DAMAGED}[damage])(folder)
    os.utime(folder, (1e9, 1e9))  # not a starting run
    client = build_client(outputs)
    for route in ROUTES:
        assert client.get(route.format("runs/x/run")).status_code in (200, 204), route
    assert build_run_index(outputs, None).find_run("runs/x/run").state == ("broken" if damage in BROKEN else "finished")


INVALID_VALUES = [None, True, -1, 1e308, 0, "", "x" * 5000, "\ud800", [], [None], [[]], {}, {"a": None}, {"": {"": []}}]


@pytest.mark.slow
def test_invalid_run_json_values_break_no_page(outputs):
    write_run(outputs / "x" / "intact")
    folder = write_run(outputs / "x" / "run")
    client, content = build_client(outputs), json.loads((folder / "run.json").read_text())
    for n, (key, value) in enumerate([(key, value) for key in content for value in INVALID_VALUES]):
        (folder / "run.json").write_text(json.dumps(content | {key: value, "n": "n" * n}))
        for route in ("/?q=rank=4+digits", "/run/{}", "/compare?run={}&run=runs/x/intact"):
            assert client.get(route.format("runs/x/run")).status_code == 200, (key, value)


def test_invalid_scores_break_no_page(outputs):
    folder = write_run(outputs / "x" / "run")
    file = folder / "evaluation" / "scores.json"
    scores = json.loads(file.read_text())
    forms = ["{:>999999999}", "{0.__class__}", "{", "{:d}", "{:.9%}", "{:,.0f}"]
    for n, number_format in enumerate(forms):
        scores["metrics"]["prompts"]["CLIP-T"]["number_format"] = number_format
        file.write_text(json.dumps(scores | {"n": "n" * n}))
        page = build_client(outputs).get("/run/runs/x/run")
        assert page.status_code == 200 and len(page.text) < 100_000 and "class &" not in page.text
    for n, value in enumerate(INVALID_VALUES):
        for changes in ({"states": value}, {"metrics": value}, {"states": [value]}, {"metrics": {"prompts": value}}):
            file.write_text(json.dumps(scores | changes | {"n": "n" * n}))
            assert build_client(outputs).get("/run/runs/x/run").status_code == 200, changes


def test_a_folder_may_be_deleted_while_it_is_read(outputs, monkeypatch):
    import sdft.apps.gallery.run_page as module

    folder = write_run(outputs / "x" / "run")
    client, list_run_facts = build_client(outputs), module.list_run_facts
    assert client.get("/run/runs/x/run").status_code == 200

    def delete_and_list_facts(run):
        shutil.rmtree(folder, ignore_errors=True)
        return list_run_facts(run)

    monkeypatch.setattr(module, "list_run_facts", delete_and_list_facts)
    assert client.get("/run/runs/x/run").status_code == 200  # from cached facts
    for route in ROUTES[1:]:
        answer = client.get(route.format("runs/x/run"))
        assert answer.status_code == 404 and "Not found" in answer.text
    assert client.get("/").status_code == 200
    shutil.rmtree(outputs)
    assert "No runs yet" in client.get("/").text


def test_a_starting_run_is_not_broken(outputs):
    (outputs / "x" / "run" / ".hydra").mkdir(parents=True)
    assert build_run_index(outputs, None).find_run("runs/x/run").state == "running"
    os.utime(outputs / "x" / "run", (1e9, 1e9))
    assert build_run_index(outputs, None).find_run("runs/x/run").state == "broken"


def test_a_failed_job_shows_its_log(outputs):
    folder = write_run(outputs / "x" / "run", state="failed")
    (folder / "log.txt").write_text("\n".join(f"line {n}" for n in range(40)) + "\nerror: <b>disk full</b>\n")
    page = build_client(outputs).get("/run/runs/x/run").text
    assert "error: &lt;b&gt;disk full" in page and "line 39" in page and "line 3\n" not in page


def test_folder_names_are_quoted(outputs):
    for name in ("läufe & co", "a b#c?d", "100%", "ночь"):
        write_run(outputs / name / "run", steps=(0,))
        client = build_client(outputs)
        assert client.get(f"/run/runs/{quote(name)}/run").status_code == 200
        assert f'href="/run/runs/{quote(name)}/run"' in client.get("/").text
    write_run(outputs / os.fsdecode(b"\xff\xfe") / "run", steps=(0,))
    assert build_client(outputs).get("/").status_code == 200


def test_the_root_may_be_a_run_folder(outputs):
    write_run(outputs / "x" / "run")
    assert list_names(outputs / "x") == ["run"] and list_names(outputs / "x" / "run") == ["run"]
    client = build_client(outputs / "x" / "run")
    assert client.get("/run/runs").status_code == 200 and client.get("/strip/runs").status_code == 200


def test_the_latent_cache_is_not_a_run(outputs):
    write_samples(outputs / "cache" / "latents", PROMPTS, 0)
    (outputs / "cache" / "latents" / "config.yaml").write_text("")
    assert list_names(outputs) == []


def test_pages_of_a_real_run(shared_run):
    _, folder = shared_run("steps=2", "sample_every=1", "save_every=1", "data.style=candy")
    client = build_client(folder.parent)
    page = client.get(f"/run/runs/{folder.name}").text
    assert "finished" in page and "data.style=candy" in page and "python train.py" in page
    samples = client.get(f"/samples/runs/{folder.name}").json()
    assert samples["steps"] == [0, 1, 2] and samples["rows"][0]["prompt"] and all(samples["rows"][0]["files"])
    titles = [panel["title"] for panel in client.get(f"/curves/runs/{folder.name}").json()]
    for title in ("Loss at fixed noise", "Training loss", "Learning rate", "Gradient norm"):
        assert title in titles
    assert client.get(f"/strip/runs/{folder.name}").status_code == 200
    facts = page[page.index("<h2>Details") :]
    assert all(
        f"<dt>{name}</dt>" in facts for name in ("started", "memory", "trainable", "loss at fixed noise", "result")
    )


def test_a_missing_folder_and_a_used_port_are_errors(tmp_path):
    with pytest.raises(ValueError, match="folder=.*nowhere: "):
        build_run_index(tmp_path / "nowhere", None)
    with pytest.raises(ValueError, match="port=70000: "):
        bind_socket(70000)
    first = bind_socket(0)
    with pytest.raises(ValueError, match=f"port={first.getsockname()[1]}: "):
        bind_socket(first.getsockname()[1])
    first.close()


def test_run_page_names_the_files_that_were_not_used(tmp_path):
    inventory = Inventory({"captions from text files": 2}, unused={"linked folders": ["a", "b"], "other files": ["c"]})
    (tmp_path / "data.json").write_text(json.dumps({"images": 2, **inventory.to_json()}))
    assert summarize_data_sheet(tmp_path) == [
        ("images", "2"),
        ("used", "captions from text files 2"),
        ("not used", "linked folders a, b; other files c"),
    ]
