"""The gallery in a real browser: no console errors, and interactive elements work."""

import threading

import pytest
from run_folders import PROMPTS, write_run, write_samples

pytest.importorskip("uvicorn")
import uvicorn
from browser import EXECUTABLE, Browser

from sdft.apps.gallery.app import create_app
from sdft.apps.gallery.server import bind_socket, build_run_index
from sdft.evaluation.plots.templates import get_jinja_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium or Chrome on this machine"),
]
LOADED = "[...document.images].every(image => image.complete)"


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("root") / "outputs"
    write_run(outputs / "x" / "one")
    hostile = "<img src=x onerror=document.title='hit'>"
    write_run(
        outputs / "x" / "two", prompts=(*PROMPTS, hostile), options={"rank": 8, hostile: hostile}, started="2026-01-03"
    )
    return outputs


@pytest.fixture(scope="module")
def address(outputs):
    listener = bind_socket(0)
    server = uvicorn.Server(uvicorn.Config(create_app(build_run_index(outputs, None)), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(autouse=True)
def no_console_errors(browser):
    """Fail on console errors."""
    browser.errors = []
    browser.set_viewport(1280, 900)
    yield
    assert browser.errors == []


@pytest.mark.parametrize(
    "page", ["/", "/run/runs/x/two", "/compare?run=runs/x/one&run=runs/x/two", "/compare?run=runs/x/two"]
)
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_screen(page, width, browser, address):
    browser.set_viewport(width, 800, dark=width == 390, phone=width == 390)
    browser.open(address + page)
    assert browser.wait_for(LOADED)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.title") != "hit"


def set_value(browser, query: str, value, event: str = "input") -> None:
    """Set the value of an input and dispatch its event."""
    browser.evaluate(
        f"{{const node = document.querySelector({query!r}); node.value = {value!r};"
        f"node.dispatchEvent(new Event({event!r}, {{bubbles: true}}))}}"
    )


def test_samples_follow_the_slider(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    assert browser.wait_for("document.querySelectorAll('#samples img').length === 2")
    source = "document.querySelector('#samples img').getAttribute('src')"
    assert "step-000020" in browser.evaluate(source)
    set_value(browser, "#samples input", 1)
    assert (
        "step-000010" in browser.evaluate(source)
        and browser.evaluate("document.querySelector('#samples output').value") == "step 10"
    )


def test_the_wipe_follows_slider_and_pointer(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    edge = "getComputedStyle(document.querySelectorAll('.stack .over')[1]).clipPath"
    assert browser.wait_for(LOADED) and browser.evaluate(edge) == "inset(0px 0px 0px 50%)"
    browser.evaluate(
        "{const r = document.querySelector('#wipe input'); r.value = 20; r.dispatchEvent(new Event('input'))}"
    )
    assert browser.evaluate(edge) == "inset(0px 0px 0px 20%)"
    box = browser.evaluate("document.querySelector('.stack').getBoundingClientRect().toJSON()")
    position = {"x": box["x"] + 0.75 * box["width"], "y": box["y"] + 20}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **position)
    assert browser.wait_for(f"Math.abs(parseFloat({edge}.split(' ')[3]) - 75) < 1")


def test_selecting_a_step_reloads_the_comparison(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    select_step = "{const s = document.querySelector('select'); s.value = '10';"
    select_step += "s.dispatchEvent(new Event('change', {bubbles: true}))}"
    browser.evaluate(select_step)
    assert browser.wait_for(
        "document.querySelector('.stack img').src.includes('step-000010') && document.querySelector('select').value === '10'"
    )


def test_curves_show_values_at_the_pointer(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    assert browser.wait_for("document.querySelectorAll('.chart svg').length >= 5")
    browser.evaluate("document.querySelector('.chart svg').scrollIntoView({block: 'center'})")
    key = "document.querySelector('.chart .key').textContent === 'step 19all timesteps 0.105'"
    for _ in range(15):  # images above the chart may still load and move it
        box = browser.evaluate("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] - 11, y=box["y"] + 60)
        if browser.wait_for(key, seconds=1):
            return
    pytest.fail("the chart shows no values at the pointer")


def test_two_runs_share_a_panel(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    assert browser.wait_for("document.querySelector('.chart path.s0') && document.querySelector('.chart path.s1')")


def test_a_command_is_copied(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    browser.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=address
    )
    browser.evaluate("document.querySelector('.copy').click()")
    assert browser.wait_for("document.querySelector('.copy').textContent === 'Copied'")
    assert browser.evaluate("navigator.clipboard.readText()") == "python train.py rank=4 steps=20"


def test_typing_filters_and_two_selected_runs_are_compared(browser, address):
    browser.open(address)
    assert browser.wait_for("document.querySelectorAll('.card').length === 2")
    browser.evaluate("document.querySelectorAll('.pick input')[0].click()")
    assert browser.evaluate("document.querySelector('#picks a').href") == ""
    browser.evaluate("document.querySelectorAll('.pick input')[1].click()")
    assert "/compare?run=runs%2Fx%2Ftwo&run=runs%2Fx%2Fone" in browser.evaluate(
        "document.querySelector('#picks a').href"
    )
    set_value(browser, "#filter input", "rank=8")
    assert browser.wait_for("document.querySelectorAll('.card').length === 1 && location.search === '?q=rank%3D8'")
    assert browser.evaluate("document.querySelector('.pick input').checked")


def test_the_page_of_a_running_run_updates(browser, address, outputs):
    import json
    import os
    import shutil
    import socket

    folder = write_run(outputs / "x" / "running", state="running", steps=(0,))
    (folder / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    browser.open(f"{address}/run/runs/x/running")
    assert browser.wait_for(
        "document.querySelector('#samples input').max === '0' && document.querySelector('#state progress')"
    )
    write_samples(folder / "samples" / "step-000010", PROMPTS, 80)
    with open(folder / "metrics.csv", "a") as file:
        file.write("20,0.1,0.1,0.1,0.1,0.1\n")
    updated = (
        "document.querySelector('#samples output').value === 'step 10' && document.querySelector('#state').textContent"
    )
    assert browser.wait_for(updated + ".includes('step 20 of 20')", 20)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"state": "finished"}))
    assert browser.wait_for("document.querySelector('#state').dataset.state === 'finished'", 20)
    shutil.rmtree(folder)


def test_only_the_script_of_this_project_runs_in_a_report(browser, address, outputs):
    script = (
        (get_jinja_environment().loader.get_source(get_jinja_environment(), "report.html")[0])
        .split("<script>")[1]
        .split("</script>")[0]
    )
    body = "<input id=scrub type=range max=1><output id=step></output><button id=play>Play</button>"
    body += "<div class='frame on' data-step=1></div><div class=frame data-step=2></div>"
    injected = "<script>document.title = 'hit'</script><img src=x onerror=\"document.title = 'hit'\">"
    (outputs / "x" / "one" / "evaluation" / "report.html").write_text(
        f"<title>t</title>{body}<script>{script}</script>{injected}"
    )
    browser.open(f"{address}/file/runs/x/one/evaluation/report.html")
    browser.evaluate("document.getElementById('play').click()")
    assert browser.wait_for("document.getElementById('step').textContent === 'step 2'")
    assert browser.evaluate("document.title") == "t" and browser.evaluate("origin") == "null"
    assert browser.errors and all("Content Security Policy" in error for error in browser.errors)
    browser.errors = []
