"""The page in a real browser, against the real app on a loopback port."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.edge.keys import new_key
from service.models import Pair
from service.settings import Settings
from tests.service.edge.conftest import running

pytestmark = pytest.mark.full

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--window-size=1280,900",
)  # fmt: skip
EMOJI = "😀🎉 The mill was built by Ada Bell in Rome 👩\u200d🚀."
HEBREW = "שלום עולם Ada Bell שלום"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def address(pair: Pair) -> Iterator[str]:
    """The app, served as `pocketqa serve` does."""
    settings = Settings(max_question_chars=50, access_log=False)
    with running(create_app(settings, pair), settings) as served:
        yield f"http://127.0.0.1:{served.port}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a profile of its own."""
    chromium = os.environ.get("POCKETQA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chromium and driver, "expected chromium and chromedriver on the PATH; Debian: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


class Page:
    """The page as a person has it before them."""

    def __init__(self, browser: Any, address: str, ready: Callable[[Page], object] | None = None) -> None:
        self.browser = browser
        self.address = address
        self.requested: list[str] = []
        self.emulate(scheme="light")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.note_requests()
        self.requested.clear()
        browser.get(address + "/")
        self.wait(lambda: ready(self) if ready else self.all("#suggestions button") and self.text("models").startswith("Teacher"))

    def one(self, identity: str) -> Any:
        return self.browser.find_element(By.ID, identity)

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, selector))

    def text(self, identity: str) -> str:
        return str(self.browser.execute_script("return document.getElementById(arguments[0]).textContent.trim()", identity))

    def script(self, source: str, *values: object) -> Any:
        return self.browser.execute_script(source, *values)

    def emulate(self, scheme: str) -> None:
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"waited for 20 seconds; the page says {self.text('error')!r}"
            time.sleep(0.02)

    def paste(self, passage: str) -> None:
        """As from a clipboard; the driver itself cannot type emoji."""
        if self.one("edit").is_displayed():
            self.one("edit").click()
        self.script(
            "const e = arguments[0]; e.value = arguments[1]; e.dispatchEvent(new Event('input', {bubbles: true}))", self.one("context"), passage
        )

    def ask(self, passage: str, question: str = "who built it?") -> None:
        self.paste(passage)
        self.one("question").clear()
        self.one("question").send_keys(question)
        self.one("ask").click()
        self.wait_for_answers()

    def wait_for_answers(self) -> None:
        self.wait(lambda: self.one("results").is_displayed() and self.text("ask") == "Ask")

    def marks(self, role: str) -> list[str]:
        return [mark.get_attribute("textContent") for mark in self.all(f"#passage mark.{role}")]

    def answer(self, role: str) -> str:
        return str(self.all(f".card.{role} .answer")[0].text)

    def note_requests(self) -> list[str]:
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        return self.requested


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """A fresh load; afterwards nothing may have been asked of another host, and nothing complained of on the console."""
    page = Page(browser, address)
    yield page
    assert address + "/app.js" in page.note_requests()
    strangers = [request for request in page.note_requests() if not request.startswith((address + "/", "data:", "blob:"))]
    assert strangers == []
    assert [entry for entry in browser.get_log("browser") if "status of 422" not in entry["message"]] == []


def test_a_shadow_is_told_of(browser: Any, address: str, pair: Pair) -> None:
    settings = Settings(shadow=0.05, access_log=False)
    with running(create_app(settings, pair), settings) as served:
        said = Page(browser, f"http://127.0.0.1:{served.port}").text("models")
    assert said.endswith("Shadow: 5 % of the student's requests are put to the teacher too, to compare.")
    assert "Shadow" not in Page(browser, address).text("models")


@pytest.mark.parametrize("passage", [EMOJI, HEBREW, "Ada Bell", "x\n\n😀\r\nAda\tBell 😀"])
def test_the_marked_text_is_the_answer(page: Page, passage: str) -> None:
    page.ask(passage)
    assert page.answer("teacher") == "Ada"
    assert page.answer("student") == "Bell"
    assert page.marks("teacher") == ["Ada"]
    assert page.marks("student") == ["Bell"]
    # A text field turns every line end into one; nothing else may change.
    assert page.script("return document.getElementById('passage').textContent") == passage.replace("\r\n", "\n")


def test_times_confidence_and_ratio_are_shown(page: Page) -> None:
    page.ask(EMOJI)
    for role in ("teacher", "student"):
        card = page.all(f".card.{role}")[0]
        assert "confident" in card.text
        assert "tiny fp32" in card.text
        assert [term.text for term in card.find_elements(By.TAG_NAME, "dt")] == ["tokenise", "queue", "forward", "decode"]
        assert all(value.text.endswith(" ms") for value in card.find_elements(By.TAG_NAME, "dd"))
        widths = page.script("return [...arguments[0].querySelectorAll('.stages span')].map(s => s.getBoundingClientRect().width)", card)
        room = page.script("return arguments[0].querySelector('.stages').getBoundingClientRect().width", card)
        assert 0 < sum(widths) <= room + 1
    verdict = page.text("verdict")
    assert "Different answers" in verdict
    assert "faster" in verdict or "slower" in verdict
    assert "Teacher: Ada" in page.text("status")


def test_a_passage_without_the_answer_says_so(page: Page) -> None:
    page.ask("The mill was built in Rome.")
    assert page.answer("teacher") == page.answer("student") == "No answer in this passage"
    assert page.all("#passage mark") == []
    assert "Both find no answer" in page.text("verdict")


def test_markup_in_a_passage_stays_text(page: Page) -> None:
    passage = "<img src=x onerror=alert(1)> <b>Ada</b> <script>Bell</script>"
    page.ask(passage)
    assert page.text("passage") == passage
    assert page.all("#passage img, #passage b, #passage script") == []
    assert page.marks("student") == ["Bell"]


@pytest.mark.parametrize("place", ["context", "question"])
def test_control_and_enter_ask(page: Page, place: str) -> None:
    page.paste(EMOJI)
    page.one(place).send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait_for_answers()
    assert page.marks("teacher") == ["Ada"]
    assert page.script("return document.activeElement.id") == {"context": "passage", "question": "question"}[place]
    page.script(SLOW_FIRST)
    page.browser.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)  # again
    page.wait(lambda: page.script("return window.asked") == 1 and page.text("ask") == "Ask")


def test_everything_can_be_reached_with_the_keyboard(page: Page) -> None:
    page.ask(EMOJI)
    page.script("document.activeElement.blur(); window.getSelection().removeAllRanges(); document.body.focus()")
    reached, outlines = [], []
    for _ in range(12):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.script("return document.activeElement.id || document.activeElement.textContent"))
        outlines.append(page.script("return getComputedStyle(document.activeElement).outlineStyle"))
    for wanted in ("edit", "sample", "passage", "question", "ask", "API"):
        assert wanted in reached, reached
        assert outlines[reached.index(wanted)] == "solid"


def test_a_sample_fills_the_page_and_its_questions_ask(page: Page) -> None:
    titles = [option.text for option in page.all("#sample option")]
    assert titles[0] == "Your own passage"
    assert len(titles) > 5
    page.all("#sample option")[3].click()
    assert len(page.script("return document.getElementById('context').value")) > 200
    chip = page.all("#suggestions button")[1]
    question = chip.text
    chip.click()
    page.wait_for_answers()
    assert page.script("return document.getElementById('question').value") == question
    assert page.one("passage").is_displayed()
    page.one("edit").click()
    assert page.one("context").is_displayed()
    page.one("context").send_keys("x")
    assert page.script("return document.getElementById('sample').value") == ""
    assert not page.one("suggestions").is_displayed()


SLOW_FIRST = """
const real = window.fetch;
let first = true;
window.asked = 0;
window.fetch = async (path, options) => {
  if (!String(path).includes("compare")) return real(path, options);
  window.asked += 1;
  if (first) { first = false; await new Promise((resolve) => setTimeout(resolve, 1500)); }
  return real(path, options);
};
"""


def test_answers_belong_to_the_question_that_is_shown(page: Page) -> None:
    page.script(SLOW_FIRST)
    page.paste("in rome ada and bell")
    page.one("question").clear()
    page.one("question").send_keys("who built it?")
    page.one("ask").click()
    page.wait(lambda: page.text("ask") == "Asking…")
    page.one("ask").click()  # the same question is asked once
    page.paste("the mill was built by bell and ada")
    page.one("question").send_keys(Keys.ENTER)
    page.wait_for_answers()
    time.sleep(2)  # the first would have been answered by now
    assert page.script("return window.asked") == 2
    assert page.text("passage") == "the mill was built by bell and ada" and page.text("error") == "" and page.text("ask") == "Ask"


@pytest.mark.parametrize("place", ["question", "context"])
def test_typing_gives_up_the_question_that_runs(page: Page, place: str) -> None:
    page.script(SLOW_FIRST)
    page.paste("in rome ada and bell")
    page.one("ask").click()
    page.wait(lambda: page.text("ask") == "Asking…")
    page.one(place).send_keys(" more")
    page.wait(lambda: page.text("ask") == "Ask")
    time.sleep(2)  # it would have been answered by now
    assert not page.one("results").is_displayed() and page.one("context").is_displayed() and page.text("error") == ""


def test_a_low_limit_of_answers_is_kept(browser: Any, pair: Pair) -> None:
    settings = Settings(max_top_k=1, access_log=False)
    with running(create_app(settings, pair), settings) as served:
        page = Page(browser, f"http://127.0.0.1:{served.port}")
        page.ask("in rome ada and bell")
        assert page.answer("student") == "bell" and page.text("error") == ""


def test_errors_are_told_in_words_and_leave_the_text(page: Page) -> None:
    page.paste("")
    page.one("ask").click()
    assert "Paste a passage first" in page.text("error")
    page.paste(EMOJI)
    page.one("question").clear()
    page.one("question").send_keys("who " * 20)
    page.one("ask").click()
    page.wait(lambda: "At most 50 characters in the question are taken, found 80." in page.text("error"))
    assert page.one("ask").is_enabled()
    assert page.script("return document.getElementById('context').value") == EMOJI
    page.ask(EMOJI)
    assert not page.one("error").is_displayed()


def test_a_service_that_is_gone_is_told(page: Page) -> None:
    page.paste(EMOJI)
    page.browser.execute_cdp_cmd("Network.enable", {})
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
    try:
        page.one("ask").click()
        page.wait(lambda: page.text("error") == "The service did not answer. Is it still running?")
    finally:
        page.browser.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        )
        page.browser.get_log("browser")  # the lost connection is complained of, rightly


def test_a_key_is_asked_for_where_one_is_needed(browser: Any, pair: Pair, tmp_path: Path) -> None:
    key, line = new_key("tester")
    (tmp_path / "keys").write_text(line + "\n", "utf-8")
    settings = Settings(access_log=False, api_keys_file=tmp_path / "keys")
    with running(create_app(settings, pair), settings) as guarded:
        page = Page(browser, f"http://127.0.0.1:{guarded.port}", ready=lambda page: page.one("key").is_displayed())
        assert page.text("error") == "Expected a key that this service knows."
        page.one("key").send_keys(key[:9] + "…", Keys.TAB)  # as one that was cut short for display
        page.wait(lambda: page.text("error") == page.text("models") == "The API key holds a character that no key has. Copy it again.")
        page.one("key").clear()
        page.one("key").send_keys(key, Keys.TAB)
        page.wait(lambda: page.all("#suggestions button") and page.text("models").startswith("Teacher"))
        page.ask(EMOJI)
        assert page.answer("student") == "Bell"
        assert not page.one("error").is_displayed()
    browser.get_log("browser")  # the refusals are complained of, rightly


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_scrolls_sideways(page: Page, width: int) -> None:
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE | {"width": width, "mobile": width < 700})
    page.ask("x" * 300 + " " + EMOJI)
    assert page.script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    left = [page.script("return arguments[0].getBoundingClientRect().left", page.all(f".card.{role}")[0]) for role in ("teacher", "student")]
    assert (left[0] == left[1]) == (width < 540)


def test_dark_mode_is_dark_and_legible(page: Page) -> None:
    page.ask(EMOJI)
    light = luminances(page)
    page.emulate(scheme="dark")
    dark = luminances(page)
    assert light["ground"] > 0.7 > 0.1 > dark["ground"]
    for shown in (light, dark):
        assert contrast(shown["text"], shown["ground"]) > 7
        assert contrast(shown["text"], shown["mark"]) > 4.5
        assert contrast(shown["muted"], shown["ground"]) > 4.5


def luminances(page: Page) -> dict[str, float]:
    """Relative luminance (WCAG 2) of a few colours."""
    colours = page.script(
        "const of = (s, what) => getComputedStyle(document.querySelector(s))[what];"
        "return {ground: of('body', 'backgroundColor'), text: of('body', 'color'), mark: of('#passage mark.teacher', 'backgroundColor'),"
        " muted: of('header p', 'color')}"
    )
    return {name: luminance([int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) for name, colour in colours.items()}


def luminance(rgb: list[int]) -> float:
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_api_page_draws_every_endpoint(page: Page) -> None:
    page.browser.get(page.address + "/docs")
    page.wait(lambda: len(page.all("#docs section")) > 6)
    titles = [title.text for title in page.all("#docs section h2")]
    assert "POST /v1/compare" in titles
    assert "GET /readyz" in titles
    assert "limit_exceeded" in page.text("docs")
    assert page.text("status") == "" and page.script("return document.getElementById('docs').ariaLive") is None
    assert "authorization" not in page.text("docs").lower().split("objects")[0]


def test_the_api_pages_commands_carry_the_key_where_one_is_needed(browser: Any, pair: Pair, tmp_path: Path) -> None:
    _, line = new_key("page")
    (tmp_path / "keys").write_text(f"{line}\n")
    settings = Settings(api_keys_file=tmp_path / "keys", access_log=False)
    with running(create_app(settings, pair), settings) as served:
        page = Page(browser, f"http://127.0.0.1:{served.port}", lambda page: page.one("key").is_displayed())
        browser.get(page.address + "/docs")
        page.wait(lambda: len(page.all("#docs section")) > 6)
        commands = [command.text for command in page.all("#docs pre")]
        assert commands and all('-H "authorization: Bearer $POCKETQA_KEY"' in command for command in commands)
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/openapi.json"]})
        browser.refresh()
        page.wait(lambda: page.text("status").startswith("openapi.json could not be read."))
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
