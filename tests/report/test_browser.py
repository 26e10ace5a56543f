"""The page in a real browser: it opens without an error, and its controls do what they say."""

import shutil

import pytest
from report.pages import HOSTILE, write_report

from vlad.report import Row

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROME is None or shutil.which("chromedriver") is None, reason="no chromium with chromedriver on this machine"
)

# two categories; scores far apart, so that one number is a threshold of each
ROWS = [(g, f"{'good' if not label else 'bad'}/{g}{i}", label, g * 10 + label + i / 10) for g in (0, 1)
        for label in (0, 1) for i in range(8)]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Reader:
    """A person in front of a page."""

    def __init__(self, browser, path, width=1280):
        self.browser = browser
        browser.set_window_size(width, 900)
        browser.get_log("browser")  # of the page before
        browser.get(path.as_uri())
        self.wait("return document.documentElement.dataset.ready === '1'")

    def run(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, code):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: self.run(code))

    def text(self, name):
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def set(self, name, value, event="change"):
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
            *(name, str(value), event),
        )

    def filter(self, **values):
        self.run("document.getElementById('gallery').scrollIntoView()")
        for name, value in values.items():
            self.set(f"f-{name}", value, "input" if name == "name" else "change")

    def shown(self):
        return self.text("shown")

    def tiles(self):
        """Returns the rows of the images in the grid once a frame is drawn; it must be on the screen."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return self.run("return [...document.querySelectorAll('#grid .tile')].map((e) => Number(e.dataset.row))")

    def counts(self):
        return [int(self.text(f"c-{name}")) for name in ("tp", "fn", "fp", "tn")]

    def press(self, *keys):
        from selenium.webdriver.common.keys import Keys

        active = self.browser.switch_to.active_element
        for key in keys:
            active.send_keys(getattr(Keys, key))
            active = self.browser.switch_to.active_element

    def errors(self):
        return self.browser.get_log("browser")


@pytest.fixture
def page(browser, tmp_path):
    reader = Reader(browser, write_report(tmp_path, ROWS, ("bottle", "screw")))
    yield reader
    assert reader.errors() == []


def test_slider_moves_counts_line_and_what_flips(page):
    page.set("group", 0)
    assert page.counts() == [8, 0, 0, 8]  # separable: the first threshold is the lowest anomalous score
    assert page.run("return Number(document.getElementById('threshold').value)") == 1.0
    assert "No image flips" in page.text("flips")
    before = page.run("return document.getElementById('line').getAttribute('x1')")
    page.set("threshold", 1.25)
    assert page.counts() == [5, 3, 0, 8]
    assert page.run("return document.getElementById('line').getAttribute('x1')") != before
    assert page.text("flips").startswith("3 flip against the first threshold: 0 to anomalous, 3 to normal")
    assert (page.text("c-recall"), page.text("c-fpr"), page.text("c-precision")) == ("62.5 %", "0.0 %", "100.0 %")
    page.set("threshold", 0.55)
    assert page.counts() == [8, 0, 2, 6]
    assert (page.text("c-fpr"), page.text("c-balanced")) == ("25.0 %", "87.5 %")
    page.run("document.getElementById('slider').focus()")
    page.press("HOME")
    assert page.counts() == [8, 0, 8, 0]
    page.press("END")
    assert page.counts() == [0, 8, 0, 8]
    page.run("document.getElementById('reset').click()")
    assert page.counts() == [8, 0, 0, 8]


def test_all_categories_share_a_rate_of_false_alarms(page):
    assert page.run("return document.getElementById('group').value") == "-1"
    assert page.counts() == [16, 0, 0, 16]
    page.set("threshold", 0.25)
    assert page.counts() == [16, 0, 4, 12]  # two of eight in each
    page.set("group", 1)
    assert page.counts() == [8, 0, 2, 6]
    assert page.run("return Number(document.getElementById('threshold').value)") == pytest.approx(10.6)


def test_gallery_filters_by_category_label_decision_error_and_name(page):
    assert page.shown() == "32 of 32 images"
    page.filter(group=0)
    assert page.shown() == "16 of 32 images"
    page.filter(label=1)
    assert sorted(page.tiles()) == list(range(8, 16))
    page.filter(label="", decision=0)
    assert sorted(page.tiles()) == list(range(8))
    page.filter(decision="", group="")
    page.set("group", 0)
    page.set("threshold", 1.25)
    page.wait("return document.querySelectorAll('#grid .mark').length > 0")
    page.filter(error="miss")
    assert sorted(page.tiles()) == [8, 9, 10]
    page.filter(error="flips", order="low")
    assert page.tiles() == [8, 9, 10]
    page.filter(error="false alarm")
    assert page.shown() == "0 of 32 images"
    page.filter(error="", name="GOOD/1")
    assert sorted(page.tiles()) == list(range(16, 24))


def test_images_open_large_and_are_walked_through_by_keys(page):
    page.filter(group=0, order="high")
    page.tiles()
    page.run("document.querySelector('#grid .tile').focus()")
    page.press("ARROW_RIGHT", "ENTER")
    page.wait("return document.getElementById('large').open")
    page.browser.get_log("browser")  # the originals of this page are not there
    assert page.text("large-name") == "bad/06"
    names = "return [...document.querySelectorAll('#views figcaption')].map((e) => e.textContent.split(',')[0])"
    assert page.run(names) == ["image", "anomaly map", "ground truth", "overlay"]
    page.wait("return [...document.querySelectorAll('#views canvas')].every((e) => e.width > 40)")
    assert "score 1.6 ≥ threshold 1: anomalous · label anomalous" in page.text("large-facts")
    page.wait("return document.getElementById('large-links').textContent.includes('not where it was')")
    page.press("ARROW_RIGHT")
    assert page.text("large-name") == "bad/05"
    page.press("ARROW_LEFT", "ARROW_LEFT")
    assert page.text("large-name") == "bad/07"
    assert page.run("return document.getElementById('previous').disabled")
    page.press("ESCAPE")
    assert not page.run("return document.getElementById('large').open")
    page.browser.get_log("browser")


def test_images_that_another_run_ranks_differently_come_first(browser, tmp_path):
    above = [(0.0, 0.25), (0.5, 0.5), (1.0, 0.0), (None, None)]
    rows = [Row(0, f"{i}", f"images/{i}.tif", 1, float(i), above=a, other_above=b) for i, (a, b) in enumerate(above)]
    reader = Reader(browser, write_report(tmp_path, rows, against="runs/<b>"))
    reader.filter(order="differs")
    assert reader.tiles() == [2, 0, 1, 3]
    reader.run("document.querySelector('#grid .tile').click()")
    assert "100.0 % here, 0.0 % in runs/<b>" in reader.text("large-facts")
    assert reader.errors() == []


def test_curves_of_one_category_have_the_operating_point(page):
    assert page.run("return document.querySelectorAll('#charts .point').length") == 0
    page.set("group", 0)
    page.set("threshold", 1.25)
    assert page.run("return document.querySelectorAll('#charts .point').length") == 2


def test_hostile_names_are_text(browser, tmp_path):
    rows = [Row(0, name, f"x/{name}.png", i % 2, float(i)) for i, name in enumerate(HOSTILE)]
    rows.append(Row(0, "broken", "b.png", error=HOSTILE[0]))
    page = Reader(browser, write_report(tmp_path, rows, (HOSTILE[1],)))
    page.filter(order="high")
    page.tiles()
    page.run("document.querySelectorAll('#grid .tile')[4].click()")
    assert page.text("large-name") == HOSTILE[0]
    assert not page.run("return window.hacked")
    assert page.run("return document.querySelectorAll('#failed td')[1].textContent") == HOSTILE[0]
    assert page.run("return document.querySelector('#f-group').options[1].text") == HOSTILE[1]


def test_prediction_has_counts_alone(browser, tmp_path):
    rows = [Row(0, str(i), f"{i}.png", -1, i / 20, p_value=1 - i / 20) for i in range(20)]
    page = Reader(browser, write_report(tmp_path, rows, ("parts",), verb="predict", thresholds={"parts": 0.9}))
    assert page.text("c-flagged") == "2 of 20 (10.0 %)"
    assert page.run("return [document.getElementById('c-tp'), document.querySelector('#curves').hidden]") == [
        None,
        True,
    ]
    page.set("threshold", 0.5)
    assert page.text("c-flagged") == "10 of 20 (50.0 %)"
    assert page.text("flips").startswith("8 flip against the first threshold: 8 to anomalous, 0 to normal")
    assert page.errors() == []


def test_p_values_are_one_slider_for_all_categories(browser, tmp_path):
    rows = [Row(g, f"{g}{i}", f"{g}{i}.png", -1, 100 * g + i, p_value=1 - i / 10) for g in (0, 1) for i in range(10)]
    page = Reader(browser, write_report(tmp_path, rows, ("a", "b"), verb="predict", thresholds={"a": 9, "b": 109}))
    assert "p-value" in page.text("slider-name")
    page.set("threshold", 0.31)
    assert page.text("c-flagged") == "6 of 20 (30.0 %)"
    assert page.errors() == []


def test_nothing_scored_is_a_page_too(browser, tmp_path):
    page = Reader(browser, write_report(tmp_path, [Row(0, "a", "a.png", error="cannot be read")], verb="predict"))
    assert page.run(
        "return [document.getElementById('gallery').hidden, document.getElementById('failures').hidden]"
    ) == [
        True,
        False,
    ]
    assert page.errors() == []


def test_narrow_screens_scroll_one_way(browser, tmp_path):
    page = Reader(browser, write_report(tmp_path, ROWS, ("bottle", "screw")), width=390)
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    assert page.run("return document.documentElement.scrollWidth <= 390")
    page.filter(group=0)
    assert len(page.tiles()) > 2
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_only_what_is_on_the_screen_exists(browser, tmp_path):
    rows = [(0, str(i), i % 2, i / 1000) for i in range(1500)]
    page = Reader(browser, write_report(tmp_path, rows))
    assert len(page.tiles()) < 200
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.wait("return [...document.querySelectorAll('#grid .tile')].some((e) => e.dataset.row === '0')")
    assert len(page.tiles()) < 200
    assert page.errors() == []
