"""The page in a real browser: no console errors, and the gallery's filters, layers, keys and dialog work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from visionsft.evaluation import evaluate
from visionsft.evaluation.reporting import report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run",
                 "disable-dev-shm-usage", "force-prefers-reduced-motion", "window-size=1200,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def press(browser: webdriver.Chrome, key: str) -> None:
    webdriver.ActionChains(browser).send_keys(key).perform()


def choose(browser: webdriver.Chrome, name: str, value: str) -> None:
    """As a user does: the element takes the value and tells of it."""
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name, value,
    )  # fmt: skip


def shown(browser: webdriver.Chrome) -> list[str]:
    """Names of the visible cards, in order."""
    cards = browser.find_elements("css selector", ".card")
    return [card.get_attribute("data-text") for card in cards if card.is_displayed()]


def layers(browser: webdriver.Chrome) -> set[str | None]:
    """What the visible pictures of the gallery show."""
    pictures = browser.find_elements("css selector", ".card .layered > span")
    return {picture.get_attribute("data-layer") for picture in pictures if picture.is_displayed()}


def test_the_gallery_works(browser, make_run, evidence):
    path = report(make_run("one", **evidence))
    browser.get(f"file://{path}")
    everything = [f"images/<b>{i}</b>.png" for i in range(8)]
    assert shown(browser) == everything
    assert layers(browser) == {"image"}

    press(browser, "3")
    assert layers(browser) == {"prediction"}
    browser.find_element("css selector", "button[data-layer=error]").click()
    assert layers(browser) == {"error"}
    pressed = browser.find_elements("css selector", ".layers button[aria-pressed=true]")
    assert [button.get_attribute("data-layer") for button in pressed] == ["error"]
    press(browser, "5")
    assert layers(browser) == {"image", "truth", "prediction", "error"}

    choose(browser, "present", "2")  # not in the first sample
    assert shown(browser) == everything[1:]
    choose(browser, "group", "1")
    choose(browser, "order", "best")
    assert shown(browser) == everything[:3:-1]
    assert browser.find_element("id", "shown").text == "4 of 8 samples"
    search = browser.find_element("id", "search")
    search.send_keys("5")  # a digit typed into a field chooses no layer
    assert shown(browser) == [everything[5]]
    assert layers(browser) == {"image", "truth", "prediction", "error"}
    search.clear()
    choose(browser, "search", "nowhere")
    assert shown(browser) == []

    for name in ("present", "group", "search"):
        choose(browser, name, "")
    choose(browser, "order", "worst")
    assert shown(browser) == everything
    browser.find_element("css selector", ".card .open").send_keys("\n")
    assert browser.find_element("id", "zoom-title").text == everything[0]
    press(browser, webdriver.Keys.ARROW_RIGHT)
    assert browser.find_element("id", "zoom-title").text == everything[1]
    press(browser, webdriver.Keys.ESCAPE)
    assert not browser.find_element("id", "zoom").is_displayed()

    sizes = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert all(size == [True, 32] for size in sizes)
    assert "pwned" not in browser.title
    assert browser.get_log("browser") == []


def drawn(browser: webdriver.Chrome, where: str = ".card") -> set[str]:
    """Layers of boxes that are shown."""
    groups = browser.find_elements("css selector", f"{where} .boxes g")
    return {group.get_attribute("data-layer") for group in groups if group.value_of_css_property("display") != "none"}


def test_the_gallery_of_boxes_works(browser, make_box_run, box_evidence):
    browser.get(f"file://{report(make_box_run('boxes', extra=box_evidence))}")
    count = len(shown(browser))
    assert drawn(browser) == {"truth", "prediction", "error"}
    press(browser, "1")
    assert drawn(browser) == set()
    press(browser, "4")
    assert drawn(browser) == {"error"}

    options = browser.find_elements("css selector", "#kind option")
    names = [option.get_attribute("textContent") for option in options]
    assert names == ["any", "false alarm", "bad fit", "wrong label", "miss"]
    choose(browser, "kind", str(names.index("miss") - 1))
    misses = shown(browser)
    assert 0 < len(misses) < count
    assert all("is not found" in card.text for card in browser.find_elements("css selector", ".card:not([hidden])"))
    assert browser.find_element("id", "shown").text == f"{len(misses)} of {count} samples"
    choose(browser, "kind", "")

    browser.find_element("css selector", ".card .open").send_keys("\n")
    assert drawn(browser, "#zoom-pictures") == {"error"}
    press(browser, "5")  # works on the enlarged picture, too
    assert drawn(browser, "#zoom-pictures") == {"truth", "prediction", "error"}
    picture, boxes = (browser.find_element("css selector", f"#zoom-pictures {tag}").rect for tag in ("img", "svg"))
    assert boxes == pytest.approx(picture, abs=1)
    press(browser, webdriver.Keys.ESCAPE)
    assert browser.get_log("browser") == []


def test_the_galleries_of_labels_and_of_two_runs_work(browser, make_run, make_box_run, label_run):
    evaluate(label_run)
    browser.get(f"file://{report(label_run)}")
    everything = shown(browser)
    choose(browser, "true", "0")
    assert 0 < len(shown(browser)) < len(everything)
    press(browser, "2")  # there are no layers to choose
    assert len(shown(browser)) == len(everything) / 2
    for runs in ((make_run("a"), make_run("b", seed=1)), (make_box_run("a"), make_box_run("b", seed=3))):
        browser.get(f"file://{report(*runs)}")
        everything = shown(browser)
        choose(browser, "change", "0")
        better = shown(browser)
        choose(browser, "change", "1")
        worse = shown(browser)
        choose(browser, "change", "2")
        assert len(better) + len(worse) + len(shown(browser)) == len(everything) > 0
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out(browser, make_run, make_box_run, label_run, evidence, box_evidence, width):
    """Wide tables scroll in their own box."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    evaluate(label_run)
    box_runs = make_box_run("four", extra=box_evidence), make_box_run("five", seed=3)
    paths = [report(*runs) for runs in ((make_run("two"), make_run("three")), box_runs)]
    paths += [report(run) for run in (make_run("one", **evidence), box_runs[0], label_run)]
    for path in paths:
        browser.get(f"file://{path}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == []


def test_text_has_contrast_in_light_and_dark(browser, make_run):
    """WCAG 2.2 AA: 4.5 to 1 for text; the page's colours are custom properties."""
    browser.get(f"file://{report(make_run('one'))}")
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for ground in ("--paper", "--sheet", "--note"):
            for text in ("--ink", "--muted", "--good", "--bad"):
                assert contrast(colour(browser, text), colour(browser, ground)) >= 4.5, (scheme, text, ground)
        for mark in ("--blue", "--vermilion", "--green"):
            assert contrast(colour(browser, mark), colour(browser, "--paper")) >= 3, (scheme, mark)
        cells = browser.find_elements("css selector", ".confusion td.right")
        assert cells
        for cell in cells:
            background = cell.value_of_css_property("background-color")
            assert contrast(colour(browser, "--ink"), parse(background)) >= 4.5


def colour(browser: webdriver.Chrome, name: str) -> tuple[float, ...]:
    """What a custom property of the style sheet comes to."""
    script = """document.body.style.outlineColor = `var(${arguments[0]})`;
                return getComputedStyle(document.body).outlineColor"""
    return parse(browser.execute_script(script, name))


def parse(text: str) -> tuple[float, ...]:
    """'rgb(1, 2, 3)', or 'color(srgb 0.1 0.2 0.3)' -> 0..1."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", text)[:3]]
    return tuple(number / (1 if "srgb" in text else 255) for number in numbers)


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(rgb: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)
