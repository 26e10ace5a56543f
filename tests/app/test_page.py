"""The page in a real browser: an image is dropped, its score seen, the threshold moved."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vlad.cli import main

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
pytest.importorskip("gradio", reason="the extra app is not installed")
CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
browser_needed = pytest.mark.skipif(
    CHROME is None or shutil.which("chromedriver") is None, reason="no chromium with chromedriver on this machine"
)


@pytest.fixture
def page(tmp_path, tiny):
    model = ["sdp", "--model.backbone", tiny, "--model.image_size", "64", "--model.layers", "[2,4]"]
    command = [sys.executable, "-m", "vlad", "app", *model, "--class-name", "bolt", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    address = next((found[1] for line in process.stdout if (found := re.search(r"open (http://\S+)", line))), None)
    assert address, process.wait()
    yield process, address
    process.kill()
    process.wait()


@pytest.fixture
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def requested(browser):
    """Returns the hosts that were asked for anything."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in {"Network.requestWillBeSent", "Network.webSocketCreated"}:
            url = message["params"].get("url") or message["params"]["request"]["url"]
            if not url.startswith(("data:", "blob:", "chrome:", "about:")):
                found.add(url.split("/")[2].split(":")[0])
    return found


@pytest.mark.slow
@browser_needed
def test_an_image_is_dropped_and_the_threshold_flips_its_decision(page, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    process, address = page
    files = []
    for seed in range(2):
        files.append(str(tmp_path / f"part{seed}.png"))
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 90, 3), np.uint8)).save(files[-1])

    def wait(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition())

    def text(name):
        return browser.find_element(By.ID, name).text

    def decisions():
        return re.findall(r"anomalous|normal|^-$", text("table"), re.MULTILINE)

    def move(value):
        browser.execute_script(
            "const e = document.querySelector('#threshold input[type=range]');"
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(e, arguments[0]);"
            "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}))",
            str(value),
        )

    browser.get(address)
    (field,) = wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#images input[type=file]"))
    field.send_keys("\n".join(files))
    wait(lambda: "part1" in text("images"))
    browser.find_element(By.ID, "score").click()
    wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#maps img")) == 2)
    scores = sorted(float(number) for number in re.findall(r"-?\d+\.\d{4}", text("table")))
    assert len(scores) == 2
    assert decisions() == ["-", "-"]
    assert "Nothing decides yet" in text("told")
    move(sum(scores) / 2)
    wait(lambda: "1 anomalous, 1 normal" in text("counts"))
    assert sorted(decisions()) == ["anomalous", "normal"]
    assert "moved by hand" in text("told")
    move(browser.execute_script("return document.querySelector('#threshold input[type=range]').min"))
    wait(lambda: decisions() == ["anomalous", "anomalous"])

    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert requested(browser) == {"127.0.0.1"}
    process.send_signal(signal.SIGTERM)  # while the page is open
    assert process.wait(20) == 0
    assert not list(tmp_path.glob("vlad-app-*"))  # what was dropped is gone


def test_wrong_options_are_told(capsys):
    for options, status, text in (
        (["sdpp"], 1, "did you mean sdp"),
        (["sdp", "--port", "70000"], 2, "--port"),
        (["sdp", "--data.roi", "x"], 2, "--data.roi"),
        (["runs/nothing/here"], 1, "does not exist"),
    ):
        assert main(["app", *options]) == status
        assert text in capsys.readouterr().err
