"""What the gallery shows of runs, whole and broken."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from run_folders import PROMPTS, write_run, write_samples

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from sdft.apps.gallery.app import create_app
from sdft.apps.gallery.overview_page import RunFilter, build_overview
from sdft.apps.gallery.server import bind_socket, build_run_index

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def client(outputs, sweeps=None) -> TestClient:
    return TestClient(create_app(build_run_index(outputs, sweeps)), base_url=HERE)


def names(outputs, sweeps=None, **run_filter) -> list[str]:
    cards = build_overview(build_run_index(outputs, sweeps), RunFilter(**run_filter))["cards"]
    return [(card.get("run") or card["sweep"]).name for card in cards]


def test_runs_stand_newest_first(outputs):
    for day in (2, 4, 3):
        write_run(outputs / "lora" / f"day{day}", started=f"2026-01-0{day}T00:00:00+0000")
    assert names(outputs) == ["lora/day4", "lora/day3", "lora/day2"]
    page = client(outputs).get("/").text
    assert page.index("day4") < page.index("day3") < page.index("day2")


def test_words_are_searched_for_and_a_word_with_a_value_is_that_value(outputs):
    for rank in (4, 48):
        write_run(outputs / "lora" / f"r{rank}", options={"rank": rank, "style": "candy" if rank == 4 else "neon"})
    assert names(outputs, options="rank=4") == ["lora/r4"]
    assert names(outputs, options="rank=48 NEON") == ["lora/r48"]
    assert sorted(names(outputs, options="r4")) == ["lora/r4", "lora/r48"]
    assert names(outputs, options="candy neon") == []
    assert "No run fits" in client(outputs).get("/?q=nothing+like+it").text


def test_states_are_told_and_filtered(outputs):
    for state in ("finished", "failed", "stopped"):
        write_run(outputs / "x" / state, state=state)
    for state in ("finished", "failed", "stopped"):
        assert names(outputs, state=state) == [f"x/{state}"]
    assert names(outputs, state="running") == []
    assert client(outputs).get("/?state=nonsense").status_code == 200


def test_a_run_goes_on_while_its_process_is_there(outputs):
    folder = write_run(outputs / "x" / "run", state="running")
    told = lambda **lock: (folder / "lock").write_text(json.dumps(lock))  # noqa: E731
    shelf = build_run_index(outputs, None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    told(pid=os.getpid(), host=socket.gethostname())
    assert shelf.find("runs/x/run").state == "running"
    told(pid=ended.pid, host=socket.gethostname())
    assert shelf.find("runs/x/run").state == "stopped"
    told(pid=ended.pid, host="another-machine")
    run = shelf.find("runs/x/run")
    assert run.state == "running" and "another-machine" in run.detail
    (folder / "lock").unlink()
    assert shelf.find("runs/x/run").state == "stopped"


def test_a_run_that_goes_on_says_how_far_it_is_and_is_looked_at_again(outputs):
    folder = write_run(outputs / "x" / "run", state="running")
    (folder / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    page = client(outputs).get("/").text
    assert "step 19 of 20" in page and 'data-live="4"' in page
    assert 'data-live="5"' in client(outputs).get("/run/runs/x/run").text


def test_jobs_of_a_sweep_stand_together(outputs, tmp_path):
    outputs.mkdir()
    sweep = tmp_path / "multirun" / "ranks" / "stamp"
    for job in range(12):
        write_run(sweep / str(job), steps=())
    (sweep / "sweep.json").write_text(json.dumps({"jobs": [[]] * 14}))
    (sweep / "compare.html").write_text("<h1>what came of it</h1>")
    assert names(outputs, tmp_path / "multirun") == ["ranks/stamp"]
    page = client(outputs, tmp_path / "multirun").get("/").text
    assert "12 of 14 jobs begun" in page and "/file/sweeps/ranks/stamp/compare.html" in page
    assert len(names(outputs, tmp_path / "multirun", inside="sweeps/ranks/stamp")) == 12
    assert len(names(outputs, tmp_path / "multirun", options="rank=4")) == 12
    assert client(outputs, tmp_path / "multirun").get("/run/sweeps/ranks/stamp/11").status_code == 200


def test_many_runs_come_in_pages(outputs):
    for n in range(50):
        (outputs / "x" / f"run{n:02d}").mkdir(parents=True)
        (outputs / "x" / f"run{n:02d}" / "run.json").write_text(json.dumps({"state": "finished"}))
    assert len(names(outputs)) == 48 and len(names(outputs, page=2)) == 2
    assert "1 of 2" in client(outputs).get("/").text
    assert client(outputs).get("/?page=99999").status_code == 200


def test_a_thousand_runs_are_read_once(outputs, monkeypatch):
    import sdft.apps.gallery.run_index as module

    for n in range(1000):
        (outputs / "x" / f"run{n}").mkdir(parents=True)
        (outputs / "x" / f"run{n}" / "run.json").write_text(json.dumps({"state": "finished", "options": {"n": n}}))
    read, plain = [], module.parse_run_json
    monkeypatch.setattr(module, "understood", lambda folder: read.append(folder) or plain(folder))
    shelf = build_run_index(outputs, None)
    start = time.process_time()
    assert build_overview(shelf, RunFilter(options="n=500"))["matching"] == 1
    assert time.process_time() - start < 5 and len(read) == 1000
    (outputs / "x" / "run7" / "run.json").write_text(json.dumps({"state": "failed"}))
    assert build_overview(shelf, RunFilter(state="failed"))["matching"] == 1
    assert len(read) == 1001


def test_a_runs_page_holds_its_words_scores_commands_and_files(outputs):
    write_run(outputs / "lora" / "run")
    page = client(outputs).get("/run/runs/lora/run").text
    folder = outputs / "lora" / "run"
    for said in (
        "python train.py rank=4 steps=20",
        f"reproduce={folder}",
        f"resume={folder} steps=40 allow_config_change=true",
    ):
        assert said in page
    for said in ("CLIP-T", "0.400", "0.600", "+0.200", "better", "0.2000 → 0.1000 (-50.0%)", "abc1234"):
        assert said in page
    for link in ("/file/runs/lora/run/evaluation/report.html", "/file/runs/lora/run/data.png"):
        assert f'"{link}"' in page
    assert "checkpoints/" in page and "2.0 kB" in page and 'last.ckpt"' not in page and "overrides.yaml" not in page
    assert page.count('class="copy"') == 4


def test_samples_of_every_step_keep_their_prompts_apart(outputs):
    write_run(outputs / "x" / "run")
    (outputs / "x" / "run" / "samples" / "step-000010" / "001.png").unlink()
    told = client(outputs).get("/samples/runs/x/run").json()
    assert told["steps"] == [0, 10, 20] and [row["prompt"] for row in told["rows"]] == list(PROMPTS)
    assert [bool(file) for file in told["rows"][1]["files"]] == [True, False, True]
    for file in told["rows"][0]["files"]:
        assert client(outputs).get(file).headers["content-type"] == "image/png"


def test_the_strip_is_of_the_last_step(outputs):
    import io

    from PIL import Image

    folder = write_run(outputs / "x" / "run")
    there = client(outputs)
    strip = Image.open(io.BytesIO(there.get("/strip/runs/x/run").content))
    assert strip.size == (256, 128) and strip.getpixel((0, 0)) == (80, 0, 90) and strip.getpixel((200, 0))[1] == 100
    (folder / "samples" / "step-000020" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert Image.open(io.BytesIO(client(outputs).get("/strip/runs/x/run").content)).size == (128, 128)
    shutil.rmtree(folder / "samples")
    assert client(outputs).get("/strip/runs/x/run").status_code == 204


def test_two_runs_are_compared_by_prompt_and_seed(outputs):
    write_run(outputs / "x" / "one")
    options = {"method": "lora", "rank": 8, "model": "tiny", "data": "digits", "tags": [], "flip": False}
    prompts = ("something else", PROMPTS[0])
    write_run(outputs / "x" / "two", options=options, prompts=prompts, digests={"data": "d2"}, seconds=99)
    page = client(outputs).get("/compare?run=runs/x/one&run=runs/x/two").text
    assert page.count('class="stack"') == 1 and "/file/runs/x/one/samples/step-000020/000.png" in page
    assert "/file/runs/x/two/samples/step-000020/001.png" in page
    rows = page[page.index("Words that differ") : page.index("Curves")]
    assert "<td>rank</td><td>4</td><td>8</td>" in rows and "flip" not in rows
    assert "trained on other pictures" in page and "<td>12 s</td><td>2 min</td>" in page
    assert "/curves/runs/x/one /curves/runs/x/two" in page
    page = client(outputs).get("/compare?run=runs/x/one&run=runs/x/two&step=10&step=0").text
    assert "one/samples/step-000010" in page and "two/samples/step-000000" in page


def test_a_run_beside_itself_is_before_and_after(outputs):
    write_run(outputs / "x" / "one")
    page = client(outputs).get("/compare?run=runs/x/one").text
    assert "Before and after" in page and page.count('class="stack"') == 2
    assert "samples/step-000000/000.png" in page and "samples/step-000020/000.png" in page


@pytest.mark.parametrize(
    "run_filter", ["", "?run=runs/x/one&run=runs/x/one&run=runs/x/one", "?run=runs/nowhere", "?run="]
)
def test_what_cannot_be_compared_is_said(run_filter, outputs):
    write_run(outputs / "x" / "one")
    answer = client(outputs).get(f"/compare{run_filter}")
    assert answer.status_code in (400, 404) and "Not there" in answer.text


BROKEN = {
    "no run.json": lambda run: (run / "run.json").unlink(),
    "a run.json that is cut off": lambda run: (run / "run.json").write_text('{"state": "finis'),
    "a run.json that is no object": lambda run: (run / "run.json").write_text("[1, 2]"),
    "a run.json that is no text": lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"),
    "a run.json nested too deep": lambda run: (run / "run.json").write_text("[" * 100_000),
    "a run.json that is a folder": lambda run: ((run / "run.json").unlink(), (run / "run.json").mkdir()),
    "a state nobody knows": lambda run: (run / "run.json").write_text('{"state": "flying"}'),
}
MISSING = {
    "no samples": lambda run: shutil.rmtree(run / "samples"),
    "a sample that is no picture": lambda run: (run / "samples/step-000020/000.png").write_bytes(b"no picture"),
    "samples.json cut off": lambda run: (run / "samples/step-000020/samples.json").write_text("[{"),
    "samples.json of other things": lambda run: (run / "samples/step-000020/samples.json").write_text(
        '[1, {"file": []}]'
    ),
    "no metrics": lambda run: (run / "metrics.csv").unlink(),
    "metrics of no text": lambda run: (run / "metrics.csv").write_bytes(b"step,a\n\xff\x00,\x00\n" * 3),
    "metrics of one long field": lambda run: (run / "metrics.csv").write_text("step,a\n1," + "9" * 200_000 + "\n"),
    "metrics without steps": lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"),
    "metrics of other lengths": lambda run: (run / "metrics.csv").write_text("step,a\n1\n1,2,3\n2,inf\n3,nan\n"),
    "scores cut off": lambda run: (run / "evaluation/scores.json").write_text('{"states": [1, null], "metrics": 3}'),
    "data.json of other things": lambda run: (run / "data.json").write_text('{"a": {"b": [1]}, "c": [{}], "d": null}'),
}
ROUTES = (
    "/",
    "/run/{}",
    "/curves/{}",
    "/samples/{}",
    "/strip/{}",
    "/compare?run={}",
    "/compare?run={}&run=runs/x/whole",
)


@pytest.mark.parametrize("harm", [*BROKEN, *MISSING])
def test_a_broken_run_is_shown_as_such_and_harms_no_page(harm, outputs):
    write_run(outputs / "x" / "whole")
    folder = write_run(outputs / "x" / "run")
    ({**BROKEN, **MISSING}[harm])(folder)
    os.utime(folder, (1e9, 1e9))  # it is not about to start
    there = client(outputs)
    for route in ROUTES:
        assert there.get(route.format("runs/x/run")).status_code in (200, 204), route
    assert build_run_index(outputs, None).find("runs/x/run").state == ("broken" if harm in BROKEN else "finished")


WEIRD = [None, True, -1, 1e308, 0, "", "x" * 5000, "\ud800", [], [None], [[]], {}, {"a": None}, {"": {"": []}}]


def test_whatever_a_run_says_of_itself_harms_no_page(outputs):
    write_run(outputs / "x" / "whole")
    folder = write_run(outputs / "x" / "run")
    there, told = client(outputs), json.loads((folder / "run.json").read_text())
    for n, (key, value) in enumerate([(key, value) for key in told for value in WEIRD]):
        (folder / "run.json").write_text(json.dumps(told | {key: value, "n": "n" * n}))
        for route in ("/?q=rank=4+digits", "/run/{}", "/compare?run={}&run=runs/x/whole"):
            assert there.get(route.format("runs/x/run")).status_code == 200, (key, value)


def test_whatever_scores_say_harms_no_page(outputs):
    folder = write_run(outputs / "x" / "run")
    file = folder / "evaluation" / "scores.json"
    told = json.loads(file.read_text())
    forms = ["{:>999999999}", "{0.__class__}", "{", "{:d}", "{:.9%}", "{:,.0f}"]
    for n, number_format in enumerate(forms):
        told["metrics"]["prompts"]["CLIP-T"]["number_format"] = number_format
        file.write_text(json.dumps(told | {"n": "n" * n}))
        page = client(outputs).get("/run/runs/x/run")
        assert page.status_code == 200 and len(page.text) < 100_000 and "class &" not in page.text
    for n, value in enumerate(WEIRD):
        for spoilt in ({"states": value}, {"metrics": value}, {"states": [value]}, {"metrics": {"prompts": value}}):
            file.write_text(json.dumps(told | spoilt | {"n": "n" * n}))
            assert client(outputs).get("/run/runs/x/run").status_code == 200, spoilt


def test_a_folder_may_vanish_while_it_is_looked_at(outputs, monkeypatch):
    import sdft.apps.gallery.run_page as module

    folder = write_run(outputs / "x" / "run")
    there, plain = client(outputs), module.list_run_facts
    assert there.get("/run/runs/x/run").status_code == 200

    def vanishing(run):
        shutil.rmtree(folder, ignore_errors=True)
        return plain(run)

    monkeypatch.setattr(module, "list_run_facts", vanishing)
    assert there.get("/run/runs/x/run").status_code == 200  # of what was known
    for route in ROUTES[1:]:
        answer = there.get(route.format("runs/x/run"))
        assert answer.status_code == 404 and "Not there" in answer.text
    assert there.get("/").status_code == 200
    shutil.rmtree(outputs)
    assert "No runs yet" in there.get("/").text


def test_a_run_that_has_just_begun_is_no_broken_one(outputs):
    (outputs / "x" / "run" / ".hydra").mkdir(parents=True)
    assert build_run_index(outputs, None).find("runs/x/run").state == "running"
    os.utime(outputs / "x" / "run", (1e9, 1e9))
    assert build_run_index(outputs, None).find("runs/x/run").state == "broken"


def test_a_job_that_failed_shows_what_it_said(outputs):
    folder = write_run(outputs / "x" / "run", state="failed")
    (folder / "log.txt").write_text("\n".join(f"line {n}" for n in range(40)) + "\nerror: <b>no room</b>\n")
    page = client(outputs).get("/run/runs/x/run").text
    assert "error: &lt;b&gt;no room" in page and "line 39" in page and "line 3\n" not in page


def test_folders_of_other_names_and_letters_are_found(outputs):
    for name in ("läufe & co", "a b#c?d", "100%", "ночь"):
        write_run(outputs / name / "run", steps=(0,))
        there = client(outputs)
        assert there.get(f"/run/runs/{quote(name)}/run").status_code == 200
        assert f'href="/run/runs/{quote(name)}/run"' in there.get("/").text
    write_run(outputs / os.fsdecode(b"\xff\xfe") / "run", steps=(0,))
    assert client(outputs).get("/").status_code == 200


def test_a_runs_folder_itself_can_be_given(outputs):
    write_run(outputs / "x" / "run")
    assert names(outputs / "x") == ["run"] and names(outputs / "x" / "run") == ["run"]
    there = client(outputs / "x" / "run")
    assert there.get("/run/runs").status_code == 200 and there.get("/strip/runs").status_code == 200


def test_the_cache_of_latents_is_no_run(outputs):
    write_samples(outputs / "cache" / "latents", PROMPTS, 0)
    (outputs / "cache" / "latents" / "config.yaml").write_text("")
    assert names(outputs) == []


def test_a_real_run_is_shown(shared):
    _, folder = shared("steps=2", "sample_every=1", "save_every=1", "data.style=candy")
    there = client(folder.parent)
    page = there.get(f"/run/runs/{folder.name}").text
    assert "finished" in page and "data.style=candy" in page and "python train.py" in page
    told = there.get(f"/samples/runs/{folder.name}").json()
    assert told["steps"] == [0, 1, 2] and told["rows"][0]["prompt"] and all(told["rows"][0]["files"])
    titles = [panel["title"] for panel in there.get(f"/curves/runs/{folder.name}").json()]
    for title in ("Loss at fixed noise", "Training loss", "Learning rate", "Gradient norm"):
        assert title in titles
    assert there.get(f"/strip/runs/{folder.name}").status_code == 200
    facts = page[page.index("How it was made") :]
    assert all(
        f"<dt>{name}</dt>" in facts for name in ("started", "memory", "trainable", "loss at fixed noise", "result")
    )


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_refused(tmp_path):
    with pytest.raises(ValueError, match="folder=.*nowhere: no such folder"):
        build_run_index(tmp_path / "nowhere", None)
    with pytest.raises(ValueError, match="port=70000: choose"):
        bind_socket(70000)
    first = bind_socket(0)
    with pytest.raises(ValueError, match=f"port={first.getsockname()[1]}: "):
        bind_socket(first.getsockname()[1])
    first.close()
