"""The gallery in a real browser: no error on its console, and what moves moves."""

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
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("home") / "outputs"
    write_run(outputs / "x" / "one")
    hostile = "<img src=x onerror=document.title='hit'>"
    write_run(
        outputs / "x" / "two", prompts=(*PROMPTS, hostile), options={"rank": 8, hostile: hostile}, started="2026-01-03"
    )
    return outputs


@pytest.fixture(scope="module")
def address(outputs):
    opened = bind_socket(0)
    server = uvicorn.Server(uvicorn.Config(create_app(build_run_index(outputs, None)), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    yield f"http://127.0.0.1:{opened.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(autouse=True)
def quiet(browser):
    """Nothing that a console calls an error."""
    browser.errors = []
    browser.size(1280, 900)
    yield
    assert browser.errors == []


@pytest.mark.parametrize(
    "page", ["/", "/run/runs/x/two", "/compare?run=runs/x/one&run=runs/x/two", "/compare?run=runs/x/two"]
)
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_screen(page, width, browser, address):
    browser.size(width, 800, dark=width == 390, phone=width == 390)
    browser.open(address + page)
    assert browser.until(LOADED)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.title") != "hit"


def turn(browser, query: str, value, event: str = "input") -> None:
    """As a hand would."""
    browser.value(
        f"{{const node = document.querySelector({query!r}); node.value = {value!r};"
        f"node.dispatchEvent(new Event({event!r}, {{bubbles: true}}))}}"
    )


def test_samples_follow_the_slider(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    assert browser.until("document.querySelectorAll('#samples img').length === 2")
    source = "document.querySelector('#samples img').getAttribute('src')"
    assert "step-000020" in browser.value(source)
    turn(browser, "#samples input", 1)
    assert (
        "step-000010" in browser.value(source)
        and browser.value("document.querySelector('#samples output').value") == "step 10"
    )


def test_the_wipe_moves_with_slider_and_finger(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    edge = "getComputedStyle(document.querySelectorAll('.stack .over')[1]).clipPath"
    assert browser.until(LOADED) and browser.value(edge) == "inset(0px 0px 0px 50%)"
    browser.value(
        "{const r = document.querySelector('#wipe input'); r.value = 20; r.dispatchEvent(new Event('input'))}"
    )
    assert browser.value(edge) == "inset(0px 0px 0px 20%)"
    box = browser.value("document.querySelector('.stack').getBoundingClientRect().toJSON()")
    at = {"x": box["x"] + 0.75 * box["width"], "y": box["y"] + 20}
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
    assert browser.until(f"Math.abs(parseFloat({edge}.split(' ')[3]) - 75) < 1")


def test_another_step_is_compared_by_choosing_it(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    choose = "{const s = document.querySelector('select'); s.value = '10'; s.dispatchEvent(new Event('change', {bubbles: true}))}"
    browser.value(choose)
    assert browser.until(
        "document.querySelector('.stack img').src.includes('step-000010') && document.querySelector('select').value === '10'"
    )


def test_curves_are_drawn_and_tell_their_values(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    assert browser.until("document.querySelectorAll('.chart svg').length >= 5")
    box = browser.value("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
    browser.value("document.querySelector('.chart svg').scrollIntoView({block: 'center'})")
    box = browser.value("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] - 11, y=box["y"] + 60)
    assert browser.until("document.querySelector('.chart .key').textContent === 'step 19all timesteps 0.105'")


def test_two_runs_share_a_panel(browser, address):
    browser.open(f"{address}/compare?run=runs/x/one&run=runs/x/two")
    assert browser.until("document.querySelector('.chart path.s0') && document.querySelector('.chart path.s1')")


def test_a_command_is_copied(browser, address):
    browser.open(f"{address}/run/runs/x/one")
    browser.call(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=address
    )
    browser.value("document.querySelector('.copy').click()")
    assert browser.until("document.querySelector('.copy').textContent === 'Copied'")
    assert browser.value("navigator.clipboard.readText()") == "python train.py rank=4 steps=20"


def test_typing_filters_and_two_choices_lead_to_their_comparison(browser, address):
    browser.open(address)
    assert browser.until("document.querySelectorAll('.card').length === 2")
    browser.value("document.querySelectorAll('.pick input')[0].click()")
    assert browser.value("document.querySelector('#picks a').href") == ""
    browser.value("document.querySelectorAll('.pick input')[1].click()")
    assert "/compare?run=runs%2Fx%2Ftwo&run=runs%2Fx%2Fone" in browser.value("document.querySelector('#picks a').href")
    turn(browser, "#filter input", "rank=8")
    assert browser.until("document.querySelectorAll('.card').length === 1 && location.search === '?q=rank%3D8'")
    assert browser.value("document.querySelector('.pick input').checked")


def test_a_run_that_goes_on_is_shown_as_it_goes_on(browser, address, outputs):
    import json
    import os
    import shutil
    import socket

    folder = write_run(outputs / "x" / "going", state="running", steps=(0,))
    (folder / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    browser.open(f"{address}/run/runs/x/going")
    assert browser.until(
        "document.querySelector('#samples input').max === '0' && document.querySelector('#state progress')"
    )
    write_samples(folder / "samples" / "step-000010", PROMPTS, 80)
    with open(folder / "metrics.csv", "a") as file:
        file.write("20,0.1,0.1,0.1,0.1,0.1\n")
    told = (
        "document.querySelector('#samples output').value === 'step 10' && document.querySelector('#state').textContent"
    )
    assert browser.until(told + ".includes('step 20 of 20')", 20)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"state": "finished"}))
    assert browser.until("document.querySelector('#state').dataset.state === 'finished'", 20)
    shutil.rmtree(folder)


def test_of_a_report_its_own_script_runs_and_no_other(browser, address, outputs):
    page = (
        (get_jinja_environment().loader.get_source(get_jinja_environment(), "report.html")[0])
        .split("<script>")[1]
        .split("</script>")[0]
    )
    body = "<input id=scrub type=range max=1><output id=step></output><button id=play>Play</button>"
    body += "<div class='frame on' data-step=1></div><div class=frame data-step=2></div>"
    bad = "<script>document.title = 'hit'</script><img src=x onerror=\"document.title = 'hit'\">"
    (outputs / "x" / "one" / "evaluation" / "report.html").write_text(
        f"<title>t</title>{body}<script>{page}</script>{bad}"
    )
    browser.open(f"{address}/file/runs/x/one/evaluation/report.html")
    browser.value("document.getElementById('play').click()")
    assert browser.until("document.getElementById('step').textContent === 'step 2'")
    assert browser.value("document.title") == "t" and browser.value("origin") == "null"
    assert browser.errors and all("Content Security Policy" in error for error in browser.errors)
    browser.errors = []
