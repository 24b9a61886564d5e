"""The page in a real browser: it draws, moves, and answers the mouse."""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest

from daskdmed import LightDL
from tests.monitor.made import dataset, small
from tests.waiting import until

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium to drive a browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip(
        "no browser: install chromium and chromium-driver (apt-get) to look at the page",
        allow_module_level=True,
    )

#: the data of the figure that draws cells, as the browser has it
CELLS = """
const docs = Bokeh.documents;
if (!docs.length) return null;
for (const model of docs[0]._all_models.values())
  if (model.type == 'ColumnDataSource' && model.data.strong !== undefined)
    return {slides: Array.from(model.data.slide), levels: Array.from(model.data.level)};
return null;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--window-size=1280,900", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER, log_output=os.devnull)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def training():
    """A loader with a dashboard from which somebody takes batches."""
    stop = threading.Event()
    with LightDL(dataset(), **small(), dashboard="127.0.0.1:0") as loader:

        def train():
            while not stop.wait(0.02):
                loader.get()

        thread = threading.Thread(target=train)
        thread.start()
        yield loader
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def page(browser, training):
    """The page, with cells on it."""
    browser.get(training.dashboard_link)
    until(lambda: browser.execute_script("return typeof Bokeh !== 'undefined'"))
    until(lambda: (browser.execute_script(CELLS) or {}).get("slides"))
    return browser


def text_of(browser):
    """All that the page says, inside the components of bokeh too."""
    return browser.execute_script(
        "const all = []; const walk = node => { if (node.shadowRoot) walk(node.shadowRoot);"
        "for (const child of node.childNodes) child.nodeType == 3 ? all.push(child.data) :"
        "walk(child); }; walk(document.body); return all.join(' ')"
    )


def test_a_browser_draws_the_page_and_it_moves(page, training):
    before = page.execute_script(CELLS)["levels"]
    until(lambda: page.execute_script(CELLS)["levels"] != before)
    until(lambda: training.name in page.execute_script(
        "for (const m of Bokeh.documents[0]._all_models.values())"
        "if (m.type == 'ColumnDataSource' && m.data.text !== undefined)"
        "return Array.from(m.data.text).join(' '); return ''"
    ))  # fmt: skip
    until(lambda: "patches per second" in text_of(page))
    assert "waiting for data" in text_of(page)
    assert page.find_elements("css selector", ".navbar a[href='daskdmed']")
    errors = [line for line in page.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors


def test_the_mouse_on_a_cell_shows_whose_it_is(page):
    def tip():
        # the first cell stands under the title, at the left edge
        figure = page.execute_script(
            "const find = node => { for (const e of node.querySelectorAll('*')) {"
            "if (e.matches('.bk-Figure')) return e;"
            "if (e.shadowRoot) { const f = find(e.shadowRoot); if (f) return f; } } };"
            "const box = find(document).getBoundingClientRect(); return [box.left, box.top]"
        )
        actions = webdriver.ActionChains(page)
        builder = actions.w3c_actions.pointer_action
        builder.move_to_location(round(figure[0]) + 40, round(figure[1]) + 50)
        builder.move_to_location(round(figure[0]) + 42, round(figure[1]) + 52)
        actions.perform()
        return text_of(page)

    until(lambda: "draws left" in tip())
    assert " / wsi" in text_of(page)


#: as JupyterLab has it for whatever a cell shows
JUPYTER = """
.jp td, .jp th, .jp tr { text-align: right; padding: .5em; border: none; max-width: none }
.jp tbody tr:nth-child(even) { background: %s }
.jp table { table-layout: fixed; margin: 0 auto 1em }
.jp img { max-width: 100%%; height: auto }
"""
LOOKED_AT = """
const all = [...document.querySelectorAll('.dkm *')];
const style = e => getComputedStyle(e);
const words = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())
                              && !['STYLE', 'title'].includes(e.tagName) && !e.style.color);
return {
  colours: [...new Set(words.map(e => style(e).color))],
  grounds: [...new Set(all.filter(e => e.tagName == 'TR').map(e => style(e).backgroundColor))],
  aligned: [...new Set(all.filter(e => e.tagName == 'TD').map(e => style(e).textAlign))],
  pictures: [...document.images].map(e => [e.complete && e.naturalWidth,
                                           e.width, e.height, e.style.width, e.style.height]),
  boxes: [...document.querySelectorAll('rect')].map(e => {
    const box = e.getBoundingClientRect(), whole = e.closest('.dkm-pic').getBoundingClientRect();
    return [box.left - whole.left, box.top - whole.top, box.width];
  }),
};
"""


@pytest.mark.parametrize(
    ("ground", "ink", "stripe"),
    [("#fff", "rgb(33, 33, 33)", "#f5f5f5"), ("#111", "rgb(230, 230, 230)", "#212121")],
    ids=["light", "dark"],
)
def test_a_batch_in_a_notebook_light_or_dark(browser, tmp_path, ground, ink, stripe):
    """Text has the page's colour, pictures have their size, boxes lie on them."""
    with LightDL(dataset(), **small()) as loader:
        chunks = next(loader)[2]
        shown = [chunks, chunks[0], chunks.patients[0], dataset(), loader.stats()]
        pages = "".join(one._repr_html_() for one in shown)
    page = tmp_path / "page.html"
    style = f"<style>{JUPYTER % stripe}</style>"
    body = f'<body style="background:{ground};color:{ink}"><div class="jp">{pages}</div>'
    page.write_text(f'<!doctype html><meta charset="utf-8">{style}{body}', encoding="utf-8")
    browser.get(page.as_uri())
    found = browser.execute_script(LOOKED_AT)
    assert found["colours"] == [ink]
    assert found["grounds"] == ["rgba(0, 0, 0, 0)"]
    assert set(found["aligned"]) <= {"left", "right"}
    assert len(found["pictures"]) > len(chunks)
    for natural, width, height, wanted_width, wanted_height in found["pictures"]:
        assert natural
        assert (f"{width}px", f"{height}px") == (wanted_width, wanted_height)
    # 64 pixels are shown on 128; boxes of one image stand together
    places = [2 * np.array(c.location) for c in (*chunks, chunks[0])]
    for left, top, width in found["boxes"]:
        assert width == pytest.approx(2 * 16, abs=1)
        assert min(np.abs(place - (left, top)).max() for place in places) < 1
    assert len(found["boxes"]) == len(places)
