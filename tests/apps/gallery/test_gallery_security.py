"""The gallery serves only localhost, is read-only, stays inside the runs folder, and runs no foreign scripts."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from urllib.request import urlopen

import pytest
from conftest import ROOT
from pages import Page
from run_folders import write_run

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from sdft.apps.gallery.app import create_app
from sdft.apps.gallery.run_facts import format_command
from sdft.apps.gallery.server import build_run_index

HOSTILE = [
    "<script>alert(1)</script> \"><img src=x onerror='alert(1)'>",
    "{{ 7*7 }} {% raw %} </textarea></title><svg onload=alert(1)>",
    "javascript:alert(1)//' style='x:y' onclick='alert(1)",
]
PAGES = ("/", "/?q=%22%3E%3Cscript%3E", "/?in=%22%3E%3Cscript%3E", "/run/runs/x/run", "/compare?run=runs/x/run")


@pytest.fixture
def outputs(tmp_path):
    write_run(tmp_path / "outputs" / "x" / "run")
    (tmp_path / "secret.txt").write_text("a secret")
    (tmp_path / "outside").mkdir()
    write_run(tmp_path / "outside" / "run")
    return tmp_path / "outputs"


@pytest.fixture
def client(outputs):
    return TestClient(create_app(build_run_index(outputs, None)), base_url="http://127.0.0.1:8000")


class StrictPage(Page):
    """Counts styles and external links as code, and attribute texts as visible."""

    code_tags = ("script", "style")

    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        values = dict(attributes)
        self.code += [f"{key}={value}" for key, value in attributes if key == "style"]
        self.code += [value for key, value in attributes if key in ("href", "src") and not value.startswith(("/", "?"))]
        self.visible_text += " ".join(filter(None, (values.get("alt"), values.get("value"))))


@pytest.mark.parametrize(
    "host", ["evil.com", "127.0.0.1.evil.com", "evil.com:8000", "127.0.0.1:8000@evil.com", "", "0.0.0.0"]
)
def test_other_host_names_are_refused(host, client):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 421 and "Runs" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.1:54321", "localhost:9"])
def test_localhost_is_served_on_any_port(host, client):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_only_reading_methods_are_allowed(method, client):
    for address in ("/", "/run/runs/x/run", "/file/runs/x/run/config.yaml"):
        answer = client.request(method, address)
        assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def test_head_has_no_body(client):
    answer = client.head("/file/runs/x/run/config.yaml")
    assert answer.status_code == 200 and answer.content == b""


@pytest.mark.parametrize(
    "address", [*PAGES, "/nowhere", "/run/runs/no", "/static/gallery.js", "/file/runs/x/run/config.yaml"]
)
def test_every_response_has_security_headers(address, client):
    headers = client.get(address, headers={"origin": "http://evil.com"}).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not [name for name in headers if name.startswith("access-control")]


FORBIDDEN_PATHS = [
    "runs/../../secret.txt",
    "runs/x/../../../secret.txt",
    "runs/..%2f..%2fsecret.txt",
    "runs/%2e%2e/%2e%2e/secret.txt",
    "runs/x/run/..\\..\\..\\secret.txt",
    "runs//etc/passwd",
    "/etc/passwd",
    "runs/x/run/%00.txt",
    "elsewhere/x/run/config.yaml",
    "runs",
    "runs/",
    "",
    "runs/x/run",
    "runs/x/run/.hydra/overrides.yaml",
    "runs/x/run/checkpoints/last.ckpt",
    "runs/x/run/link.txt",
    "runs/x/run/links/secret.txt",
    "runs/x/run/hidden.txt",
    "runs/x/run/pipe.txt",
    "runs/x/run/circle.txt",
    "runs/" + "x" * 5000 + ".txt",
    "runs/x/run/page.svg",
]


@pytest.mark.parametrize("address", FORBIDDEN_PATHS)
def test_only_visible_files_of_runs_are_served(address, client, outputs):
    run = outputs / "x" / "run"
    (run / "link.txt").symlink_to(outputs.parent / "secret.txt")
    (run / "links").symlink_to(outputs.parent)
    (run / "hidden.txt").symlink_to(run / ".hydra" / "overrides.yaml")
    (run / "circle.txt").symlink_to(run / "circle.txt")
    (run / "page.svg").write_text("<svg onload='alert(1)'/>")
    os.mkfifo(run / "pipe.txt")
    answer = client.get(f"/file/{address}")
    assert answer.status_code == 404 and "secret" not in answer.text
    with pytest.raises(OSError):  # independent of URL normalization
        from urllib.parse import unquote

        content = client.app.app.routes[6].endpoint.__self__.run_index.read_file(unquote(address))
        assert address.endswith((".ckpt", ".svg")) and not content.startswith(b"a secret")
        raise FileNotFoundError


def test_links_inside_the_folder_are_followed(client, outputs):
    (outputs / "x" / "run" / "link.txt").symlink_to(outputs / "x" / "run" / "config.yaml")
    assert client.get("/file/runs/x/run/link.txt").text == "rank: 4\n"


OUTSIDE_IDS = ["runs/../outside/run", "runs/x/../../outside/run", "runs/x/link", "runs/link/run", "runs/x/.hydra"]


@pytest.mark.parametrize("id", OUTSIDE_IDS)
def test_runs_outside_the_folder_are_not_found(id, client, outputs):
    (outputs / "x" / "link").symlink_to(outputs.parent / "outside" / "run")
    (outputs / "link").symlink_to(outputs.parent / "outside")
    for page in ("/run/", "/curves/", "/samples/", "/strip/", "/compare?run="):
        assert client.get(page + id.replace("..", "%2e%2e")).status_code == 404
    assert client.get("/").text.count('class="card"') == 1


@pytest.mark.parametrize("name", ["run.json", "data.json", "metrics.csv", "evaluation/scores.json", "log.txt", "lock"])
def test_pages_read_no_files_through_links(name, client, outputs, tmp_path):
    run = outputs / "x" / "run"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"state": "failed"}))
    secret = tmp_path / "secret.json"
    run_json = {
        "format": 1,
        "a secret": "a secret",
        "state": "failed",
        "device": "a secret",
        "options": {"a secret": 1},
    }
    report = json.loads((run / "evaluation/scores.json").read_text().replace("CLIP-T", "a secret"))
    text = (
        "step,a secret\n1,2\n"
        if name == "metrics.csv"
        else json.dumps(run_json | report | {"host": "a secret", "pid": 1})
    )
    secret.write_text(text)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret)
    for page in ("/", "/run/runs/x/run", "/curves/runs/x/run", "/compare?run=runs/x/run&run=runs/x/run"):
        assert "a secret" not in client.get(page).text


def test_samples_are_not_read_through_links(client, outputs, tmp_path):
    samples = outputs / "x" / "run" / "samples"
    for step in (0, 10):
        for file in (samples / f"step-{step:06d}").iterdir():
            file.unlink()
    last = samples / "step-000020"
    (last / "000.png").rename(tmp_path / "secret.png")
    (last / "000.png").symlink_to(tmp_path / "secret.png")
    (last / "001.png").unlink()
    facts = [
        {"file": "../../../../../secret.png", "prompt": "x", "seed": 0},
        {"file": "000.png", "prompt": "y", "seed": 0},
    ]
    (last / "samples.json").write_text(json.dumps(facts))
    assert client.get("/strip/runs/x/run").status_code == 204
    samples_json = client.get("/samples/runs/x/run").json()
    assert [row["prompt"] for row in samples_json["rows"]] == [
        "image 1"
    ]  # a samples.json that names other folders is not used
    assert client.get(samples_json["rows"][0]["files"][-1]).status_code == 404


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_escaped(text, outputs, client):
    options = {text: text, "method": text, "rank": 4}
    facts = {"overrides": [text, f"x={text}"], "command": ["train.py", text], "options": options, "warnings": [text]}
    facts |= {"device": text, "commit": text, "started": text, "versions": {text: text}}
    facts["best"] = {"step": 1, "metric": text, "value": 0.5}
    run = write_run(outputs / "h" / "run", prompts=(text, "another"), state="failed", **facts)
    write_run(outputs / "<img src=x onerror=alert(1)>" / "run", prompts=(text,))
    (run / "log.txt").write_text(text)
    (run / "data.json").write_text(json.dumps({text: text}))
    (run / "<svg onload=alert(1)>.txt").write_text("")
    report = json.loads((run / "evaluation" / "scores.json").read_text())
    report["metrics"]["prompts"]["CLIP-T"]["description"] = text
    (run / "evaluation" / "scores.json").write_text(json.dumps(report))
    for address in ("/", "/run/runs/h/run", "/compare?run=runs/h/run", "/compare?run=runs/h/run&run=runs/x/run"):
        page = StrictPage(client.get(address).text)
        assert not page.code, (address, page.code)
        assert text in page.visible_text, address
    assert client.get("/samples/runs/h/run").json()["rows"][0]["prompt"] == text


@pytest.mark.parametrize("address", PAGES)
def test_pages_have_no_inline_code_or_style(address, client):
    assert not StrictPage(client.get(address).text).code


def test_texts_are_sent_as_plain_text_and_reports_are_sandboxed(client, outputs):
    (outputs / "x" / "run" / "notes.md").write_text("<script>alert(1)</script>")
    assert client.get("/file/runs/x/run/notes.md").headers["content-type"].startswith("text/plain")
    assert client.get("/file/runs/x/run/run.json").headers["content-type"].startswith("text/plain")
    policy = client.get("/file/runs/x/run/evaluation/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;") and "allow-same-origin" not in policy
    assert "script-src 'sha256-" in policy and "default-src 'none'" in policy and "img-src data:" in policy


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import os"],
        ["evil.py", "rank=4"],
        ["../train.py"],
        ["train.py", "+model._target_=os.system"],
        ["train.py", "--config-dir=/nowhere/evil"],
        ["train.py", "hydra.searchpath=[/nowhere/evil]"],
        ["train.py", "experiment=../../../nowhere/evil"],
        ["train.py", "tags=['${oc.env:HOME}']"],
        ["train.py", "-m", "rank=4"],
        ["train.py", "rank=4\x1b[201~; rm -rf ~\n"],
        ["train.py", "rank=\u202e4"],
    ],
)
def test_commands_that_run_other_programs_are_not_copyable(command, outputs, client):
    run = write_run(outputs / "c" / "run", state="running", command=command)
    line, safe = format_command(command)
    assert not safe and line.isprintable()
    (run / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    assert 'class="copy"' not in client.get("/run/runs/c/run").text


def test_commands_that_restore_hostile_options_are_not_copyable(outputs, client):
    write_run(outputs / "c" / "run", overrides=["experiment=../../../nowhere/evil"], command=["evil.py"])
    assert 'class="copy"' not in client.get("/run/runs/c/run").text


def test_commands_are_quoted_for_the_shell():
    command = ["train.py", "prompts=[a cat,a dog]", "caption_template='{caption} in oil'", "~ema", "rank=4"]
    line, safe = format_command(command)
    assert safe and line.startswith("python train.py 'prompts=[a cat,a dog]'")
    assert format_command(["train.py", "rank=4", "hydra.run.dir=multirun/x/0"]) == ("python train.py rank=4", True)


def test_the_app_prints_its_address_and_listens_only_on_localhost(outputs):
    command = [sys.executable, "-m", "sdft", "gallery", f"folder={outputs}", "multirun=null"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = line.split()[1]
        assert line.startswith("address    http://127.0.0.1:")
        with urlopen(address, timeout=120) as answer:
            assert b"x/run" in answer.read() or answer.status == 200
        port = int(address.rsplit(":", 1)[1].strip("/"))
        if sys.platform == "linux":
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.2", port), timeout=5)
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 130) and output == "" and "Traceback" not in errors


def test_half_sent_requests_are_closed_and_long_ones_refused(outputs, monkeypatch):
    import sdft.apps.gallery.http_protocol as module
    from sdft.apps.gallery.server import bind_socket, build_run_index, serve_gallery

    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.3)
    listener = bind_socket(0)
    address = listener.getsockname()
    threading.Thread(target=serve_gallery, args=(build_run_index(outputs, None), listener), daemon=True).start()
    for start in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /s"):
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(start)
            answer = b""
            while data := client.recv(2**16):  # ends when the server closes the connection
                answer += data
            assert answer.startswith(b"HTTP/1.1 200") == (b"localhost" in start)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**17)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_missing_libraries_are_named_in_the_error(monkeypatch, capsys):
    import sdft.apps.gallery.__main__ as program

    monkeypatch.setattr(program, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gallery"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # set by the program; restored after the test
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: gallery: ") and "starlette" in err and 'pip install -e ".[gallery]"\n' in err
    assert err.count("\n") == 1


def test_a_missing_folder_gives_a_one_line_error(tmp_path):
    command = [sys.executable, "-m", "sdft", "gallery", f"folder={tmp_path / 'nowhere'}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert (
        process.returncode == 1
        and process.stderr.count("\n") == 1
        and f"folder={tmp_path / 'nowhere'}: " in process.stderr
    )
