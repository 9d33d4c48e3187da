"""Pages in a real browser, from a file: nothing is loaded, everything works by keyboard, and axe finds no violation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pytest

from scoresde import load
from scoresde.page import Page
from scoresde.page.make import SAID
from scoresde.page.write import fill

FIGURES = ("forward", "reverse", "compass", "field", "flows", "schedules", "solvers", "density")
WAIT = "new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 60))"
PICTURE = """(name) => document.querySelector(`#${name} canvas`).toDataURL()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with pages.browser() as found:
        yield found


class Opened:
    """A page that is opened from a file, with all that it asked for and all that it complained about."""

    def __init__(self, browser: Any, text: str, folder: Path, **options: Any) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.path = folder / "page.html"
        self.path.write_text(text, encoding="utf-8")
        self.context = browser.new_context(**{"viewport": {"width": 1000, "height": 740}, **options})
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.scripted = options.get("java_script_enabled", True)
        self.go()

    def go(self, hash: str = "") -> None:
        self.page.goto(f"{self.path.as_uri()}{hash}")
        if self.scripted:
            self.until("page.state && Object.keys(page.state()).length > 3")
            self.until("[...document.querySelectorAll('canvas')].every((c) => c.width > 0 && c.width !== 300)")
            self.rest()

    def until(self, condition: str) -> None:
        """Wait for a condition. The policy of a page forbids what Playwright's own waiting does."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{condition} did not become true")

    def rest(self) -> None:
        self.page.evaluate(WAIT)

    def state(self) -> dict[str, str]:
        found: dict[str, str] = self.page.evaluate("page.state()")
        return found

    def picture(self, name: str) -> str:
        self.page.evaluate(f"document.getElementById('{name}').scrollIntoView()")
        self.rest()
        found: str = self.page.evaluate(PICTURE, name)
        return found

    def close(self) -> None:
        self.context.close()

    def quiet(self) -> None:
        assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
        assert all(url.startswith(("data:", self.path.as_uri())) for url in self.requests)
        assert self.complaints == []

    def accessible(self) -> None:
        self.page.evaluate(pages.axe())
        found = self.page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa']})")
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
        assert len(found["passes"]) > 10


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    kept: list[Opened] = []

    def open_(page: Page | str, **options: Any) -> Opened:
        kept.append(Opened(chromium, page if isinstance(page, str) else page.text, tmp_path, **options))
        return kept[-1]

    yield open_
    for each in kept:
        each.close()


@pytest.fixture(scope="module")
def digits(trained: Path) -> Page:
    return pages.little(load(trained / "digits"))


def made(name: str, digits: Page) -> Page:
    return {"exact": pages.exact, "learned": pages.learned, "digits": lambda: digits}[name]()


def filled(parts: Any) -> Page:
    """A page of changed numbers, without its words."""
    words = dict.fromkeys(("title", "lead", "things", "who", "facts", "version", "compass-words"), "")
    return fill(parts, words | {f"poster-{name}": "" for name in SAID}, dict.fromkeys(SAID, "data:,"), 2, {})


KINDS = ("exact", "learned", "digits")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_loaded_and_nothing_fails(opened: Any, digits: Page, kind: str) -> None:
    tab = opened(made(kind, digits))
    shown = [name for name in FIGURES if tab.page.query_selector(f"#{name}")]
    assert len(shown) == (4 if kind == "digits" else 8)
    for name in shown:  # each figure is complete before anything is touched
        colours = tab.page.evaluate(
            """(name) => { const c = document.querySelector(`#${name} canvas`);
            const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
            return new Set(new Uint32Array(data.buffer)).size; }""",
            name,
        )
        assert colours > 8, name
        said = tab.page.inner_text(f"#{name} figcaption")
        assert len(said) > 40 and "NaN" not in said and "undefined" not in said, said
    tab.page.wait_for_timeout(400)
    for name in shown:
        label = tab.page.get_attribute(f"#{name} canvas", "aria-label")
        assert label == tab.page.inner_text(f"#{name} figcaption")
    tab.quiet()


def works_by_keyboard(tab: Opened, least: int) -> None:
    """Each slider and each menu changes the state and the picture, and a slider says where it is."""
    controls = tab.page.query_selector_all("input[type=range], select:not([hidden])")
    assert len(controls) >= least
    for control in controls:
        name = control.get_attribute("id")
        if not control.is_visible():
            continue
        figure = name.partition("-")[0]
        before, state = tab.picture(figure), tab.state()
        control.focus()
        low = control.evaluate("(e) => e.tagName === 'SELECT' ? e.selectedIndex === 0 : +e.value < +e.max")
        menu = control.evaluate("(e) => e.tagName === 'SELECT'")
        for _ in range(1 if menu else 3):
            control.press("ArrowDown" if menu else "ArrowRight" if low else "ArrowLeft")
        tab.rest()
        assert tab.state()[name] != state[name], f"{name} does not move"
        assert tab.picture(figure) != before, f"{name} changes nothing"
        if control.evaluate("(e) => e.type") == "range":
            spoken = control.get_attribute("aria-valuetext")
            assert spoken and spoken == tab.page.inner_text(f'output[for="{name}"]')
    tab.quiet()


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_works_by_keyboard(opened: Any, digits: Page, kind: str) -> None:
    works_by_keyboard(opened(made(kind, digits)), 6 if kind == "digits" else 18)


def test_arrow_keys_and_clicks_place_the_state(opened: Any) -> None:
    tab = opened(pages.learned())
    for name in ("compass", "density"):
        state = tab.state()
        canvas = tab.page.query_selector(f"#{name} canvas")
        canvas.focus()
        canvas.press("ArrowLeft")
        canvas.press("ArrowUp")
        moved = tab.state()
        assert int(moved[f"{name}-x"]) == int(state[f"{name}-x"]) - 2
        assert int(moved[f"{name}-y"]) == int(state[f"{name}-y"]) + 2
        canvas.scroll_into_view_if_needed()
        canvas.click(position={"x": 60, "y": 60})
        assert int(tab.state()[f"{name}-x"]) < -60 and int(tab.state()[f"{name}-y"]) > 60
    state, box = tab.state(), canvas.bounding_box()
    canvas.click(position={"x": 0.8 * box["width"], "y": 0.5 * box["height"]})  # the curves beside the map
    assert tab.state() == state


def test_walkers_take_at_most_eight_live_points_a_frame(opened: Any) -> None:
    tab = opened(pages.learned())
    before = tab.picture("compass")
    tab.page.click("#compass-walk")
    tab.until("document.querySelector('#compass figcaption').textContent.includes('The walkers')")
    assert tab.page.evaluate("page.most") == 4
    assert tab.picture("compass") != before
    tab.quiet()


def said(tab: Opened, hash: str, name: str) -> str:
    tab.go(hash)
    tab.picture(name)
    return str(tab.page.inner_text(f"#{name} figcaption"))


def test_the_sentence_of_the_field_says_what_is_drawn(opened: Any) -> None:
    tab = opened(pages.exact())
    assert "log-SNR 0.0" in said(tab, "#field-noise=100", "field")
    assert "one hill" in said(tab, "#field-noise=100", "field") and "one hill" in said(tab, "#field-noise=150", "field")
    assert "ridge around a hollow" in said(tab, "#field-noise=80", "field")
    assert "8 hills" in said(tab, "#field-noise=40", "field")
    clouds = filled(pages.parts(pages.learned()) | {"mixture": None})
    told = said(opened(clouds), "#field-noise=100", "field")
    assert "hill" not in told and "1 times as wide as the data" in told


def test_a_figure_says_why_it_is_empty(opened: Any) -> None:
    tab = opened(pages.exact())
    told = said(tab, "#solvers-name=heun&solvers-budget=0", "solvers")
    assert told == "heun with 1 evaluation. Each step of heun needs two evaluations, so one is too few."
    told = said(tab, "#compass-noise=1&compass-x=65&compass-y=0", "compass")
    assert "The noise is smaller than the dot" in told and "the dot hides it" in told
    assert "turned away" in said(tab, "#compass-accuracy=0", "compass")
    assert tab.page.evaluate("[fixed(-0.001), fixed(-0.01), fixed(-0.04, 1)]") == ["0.00", "−0.01", "0.0"]
    tab.quiet()


def test_the_address_keeps_the_state(opened: Any) -> None:
    tab = opened(pages.exact())
    tab.go("#forward-time=150&flows-steps=12&reverse-shown=estimate&forward-path=2")
    state = tab.state()
    assert (state["forward-time"], state["flows-steps"], state["reverse-shown"]) == ("150", "12", "estimate")
    tab.page.focus("#field-noise")
    tab.page.keyboard.press("ArrowRight")
    tab.until("location.hash.includes('field-noise=')")
    kept = tab.page.evaluate("location.hash")
    assert {"forward-time=150", "flows-steps=12", "forward-path=2"} <= set(kept[1:].split("&"))
    tab.go("#forward-path=99&field-noise=%3Cb%3E&nonsense=1")
    assert tab.state()["forward-path"] == "0"
    tab.page.click("#reset")
    tab.until("location.hash.length < 2")
    tab.quiet()


def test_the_address_keeps_the_noise_of_the_paths(opened: Any) -> None:
    tab = opened(pages.exact())
    first = tab.picture("flows")
    tab.page.click("#flows-noise")
    second = tab.picture("flows")
    assert tab.state()["flows-seed"] == "2" and second != first
    tab.until("location.hash === '#flows-seed=2'")
    tab.page.reload()
    tab.until("page.state && page.state()['flows-seed'] === '2'")
    assert tab.picture("flows") == second
    tab.page.click("#reset")
    tab.until("location.hash.length < 2")
    assert tab.picture("flows") == first
    for wrong, seed in (("x", "1"), ("", "1"), ("-4", "1"), ("1e9", "999"), ("NaN", "1"), ("0x5", "1")):
        tab.go(f"#flows-seed={wrong}")
        assert tab.state()["flows-seed"] == seed, wrong
    tab.quiet()


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_screens(opened: Any, digits: Page, kind: str) -> None:
    tab = opened(made(kind, digits), viewport={"width": 360, "height": 740})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    small = tab.page.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter((e) => e.offsetParent && e.offsetHeight < 44)"
        ".map((e) => e.id || e.textContent)"
    )
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_violation(opened: Any, digits: Page, kind: str, scheme: str) -> None:
    opened(made(kind, digits), color_scheme=scheme).accessible()


def test_motion_is_reduced(opened: Any) -> None:
    tab = opened(pages.exact(), reduced_motion="reduce")
    assert not [button for button in tab.page.query_selector_all(".play") if button.is_visible()]
    tab.close()
    moving = opened(pages.exact())
    button = moving.page.query_selector('[data-plays="forward-time"]')
    button.click()
    assert button.inner_text() == "Pause"
    moving.page.wait_for_timeout(400)
    button.click()
    assert button.inner_text() == "Play"
    stopped = moving.state()["forward-time"]
    moving.page.wait_for_timeout(200)
    assert moving.state()["forward-time"] == stopped != "30"


@pytest.mark.parametrize("kind", KINDS)
def test_play_moves_each_slider_to_its_end(opened: Any, digits: Page, kind: str) -> None:
    tab = opened(made(kind, digits))
    tab.page.evaluate(  # a faster clock, and the places of the sliders that play
        """() => { const own = advance, seen = window.seen = {};
        advance = (now) => { own(8 * now); for (const id of playing.keys()) (seen[id] ||= []).push(value(id)); }; }"""
    )
    buttons = tab.page.query_selector_all(".play")
    assert len(buttons) == (2 if kind == "digits" else 3)
    for button in buttons:
        name, text = button.get_attribute("data-plays"), button.inner_text()
        end = tab.page.get_attribute(f"#{name}", "max")
        button.click()
        tab.until(f"!playing.has('{name}')")
        assert tab.state()[name] == end and button.inner_text() == text
        tab.page.evaluate(f"seen['{name}'] = []")
        button.click()  # again, from the start
        tab.until(f"!playing.has('{name}')")
        seen = tab.page.evaluate(f"seen['{name}']")
        assert seen == sorted(seen) and seen[0] < 0.2 * int(end) and len(set(seen)) > 4, f"{name}: {seen}"
        assert tab.state()[name] == end and button.inner_text() == text
    tab.quiet()


def test_a_hand_on_the_slider_stops_play(opened: Any) -> None:
    tab = opened(pages.exact())
    button = tab.page.query_selector('[data-plays="forward-time"]')
    button.click()
    tab.until("page.state()['forward-time'] > 31")
    tab.page.evaluate(
        """() => { const slider = document.getElementById("forward-time");
        slider.value = 120; slider.dispatchEvent(new Event("input")); }"""
    )
    assert button.inner_text() == "Play"
    tab.page.wait_for_timeout(300)
    assert tab.state()["forward-time"] == "120"
    button.click()  # plays on from there
    tab.until("page.state()['forward-time'] > 121")
    tab.page.focus("#forward-time")
    tab.page.keyboard.press("Home")
    assert button.inner_text() == "Play" and tab.state()["forward-time"] == "0"
    tab.page.wait_for_timeout(300)
    assert tab.state()["forward-time"] == "0"
    tab.quiet()


@pytest.mark.parametrize(
    "hash", ["#%", "#&&==&=3", "#forward-time", "#forward-time=x&flows-eta=&class=2", "#%E0%A4%A=1"]
)
def test_a_malformed_address_is_the_initial_state(opened: Any, hash: str) -> None:
    tab = opened(pages.exact())
    initial = tab.state()
    tab.page.goto("about:blank")
    tab.go(hash)
    assert tab.state() == initial
    tab.until("location.hash.length < 2")
    assert [line for line in tab.complaints if "about:blank" not in line] == []


def test_a_fitted_solver_is_in_the_menu(opened: Any) -> None:
    stored = pages.parts(pages.learned())
    row = {**stored["solvers"]["rows"][0], "solver": "tuned (fitted)", "told": "The fitted solver.", "place": None}
    stored["solvers"]["names"].append(row["solver"])
    stored["solvers"]["rows"].append(row)
    tab = opened(filled(stored))
    tab.page.select_option("#solvers-name", "tuned (fitted)")
    tab.page.fill("#solvers-budget", "0")
    tab.until("document.querySelector('#solvers figcaption').textContent === 'The fitted solver.'")
    tab.until("location.hash.includes('solvers-name=tuned')")
    tab.quiet()


def test_without_scripts_there_are_posters(opened: Any) -> None:
    tab = opened(pages.exact(), java_script_enabled=False)
    posters = tab.page.query_selector_all("img.poster")
    assert len(posters) == 8 and all(
        poster.is_visible() and len(poster.get_attribute("alt")) > 20 for poster in posters
    )
    assert not any(part.is_visible() for part in tab.page.query_selector_all("canvas, button, input, select"))
    assert "The figures move if scripts are allowed" in tab.page.inner_text("header")


def test_it_prints(opened: Any) -> None:
    tab = opened(pages.exact())
    tab.page.emulate_media(media="print")
    assert not any(part.is_visible() for part in tab.page.query_selector_all("button, input, select"))
    assert all(part.is_visible() for part in tab.page.query_selector_all("canvas"))
    assert tab.page.pdf()[:4] == b"%PDF"


def test_it_runs_in_the_frame_of_a_notebook(opened: Any, tmp_path: Path) -> None:
    tab = opened(pages.exact())
    shown = f"<!doctype html><title>notebook</title>{pages.exact()._repr_html_()}"
    (tmp_path / "notebook.html").write_text(shown, encoding="utf-8")
    tab.complaints.clear()
    tab.page.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.page.frame_locator("iframe")
    frame.locator("#forward figcaption", has_text="At t =").wait_for()
    assert tab.complaints == []


def test_names_are_text(opened: Any) -> None:
    name = "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
    tab = opened(pages.little(pages.run_of(pages.network(width=8).float(), name), pages.eight()[1]))
    assert tab.page.title().endswith(name) and not tab.page.query_selector("img[src=x]")
    assert tab.page.inner_text("#forward-set").split("\n")[-1].strip().startswith("</script>")
    tab.quiet()


# ------------------------------------------------------------------------------------------------------ planted faults


def test_an_external_font_is_found(opened: Any) -> None:
    font = "<link rel='stylesheet' href='https://fonts.example/font.css'></head>"
    with pytest.raises(AssertionError):
        opened(pages.exact().text.replace("</head>", font)).quiet()


def test_a_slider_without_a_label_is_found(opened: Any) -> None:
    text, count = re.subn(r'<label for="field-noise">.*?</label>', "", pages.exact().text)
    assert count == 1
    with pytest.raises(AssertionError, match="label"):
        opened(text).accessible()


def test_a_control_that_does_nothing_is_found(opened: Any) -> None:
    with pytest.raises(AssertionError, match="changes nothing"):
        works_by_keyboard(opened(pages.with_change(pages.exact(), "  touch(...names);\n", "")), 18)
