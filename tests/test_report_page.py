"""The report in a real browser: it is drawn, can be searched and read, and shows names as they are."""

from __future__ import annotations

import os
import sys

import browser
import pytest
from small_data import COUNTS, quick

from hpf_gpu import HPFEnsemble, report

PROGRAM = browser.find() if sys.platform == "linux" else None
REQUIRED = "chromium" in os.environ.get("HPF_GPU_REQUIRE", "").split(",")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None and not REQUIRED, reason="no Chromium: apt-get install chromium"),
]

#: By anyone who can name an item.
NAMES = {
    500: "</script><script>window.hacked = 1</script>",
    501: "<img src=x onerror='window.hacked = 2'>",
    502: "lone surrogate \ud800",
    503: "Crème brûlée",
    504: "unbroken" * 60,
    505: "quotes \" ' & &amp;",
}
WIDTHS = (320, 390, 768, 1280)


@pytest.fixture(scope="module")
def chromium():
    if PROGRAM is None:
        pytest.fail("HPF_GPU_REQUIRE names chromium: apt-get install chromium", pytrace=False)
    with browser.Browser(PROGRAM) as opened:
        yield opened


@pytest.fixture(scope="module")
def model():
    return quick(k=14, check_every=5, stop_thr=1e-12).fit(COUNTS)


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(model, path, names=NAMES, data=COUNTS, title="<i>Title</i> & more")


@pytest.fixture
def opened(chromium, page):
    """The page, drawn without any error."""
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(page)
    yield chromium
    assert chromium.errors == []
    assert set(chromium.requests) == {page.resolve().as_uri()}


def texts(opened, selector):
    return opened.evaluate(f"[...document.querySelectorAll({selector!r})].map(one => one.textContent)")


def test_all_is_drawn(opened, model):
    assert texts(opened, "h1") == ["<i>Title</i> & more"]
    assert opened.evaluate("document.title") == "<i>Title</i> & more"
    assert texts(opened, "main > section:not([hidden]) > h2") == [
        "Fit",
        "Factors",
        "Items",
        "Users",
        "Model and data",
    ]
    assert texts(opened, "nav a") == ["Fit", "Factors", "Items", "Users", "Model and data"]
    shapes = "[...document.querySelectorAll('svg')].map(svg => svg.querySelectorAll('.mark, .bar').length)"
    drawn = opened.evaluate(shapes)
    assert len(drawn) == 7
    assert min(drawn) >= 4
    assert drawn[0] == len(model.history_)
    # No shape has a coordinate that is not a number, or lies outside its picture.
    outside = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const all = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('.mark, .bar, .line, .whisker')].filter(one => {
            const box = one.getBoundingClientRect();
            return !(box.left >= all.left - 5 && box.right <= all.right + 5 && box.top >= all.top - 5
                     && box.bottom <= all.bottom + 5) || one.outerHTML.includes('NaN');
        }).map(one => one.outerHTML);
    })"""
    assert opened.evaluate(outside) == []
    assert "NaN" not in opened.evaluate("document.body.innerText")
    assert "undefined" not in opened.evaluate("document.body.innerText")


def test_names_are_shown_as_they_are(opened):
    shown = set(texts(opened, "#item-list button span:first-child"))
    for name in NAMES.values():
        assert (name if len(name) <= 100 else f"{name[:99]}…") in shown
    for number in range(40):
        opened.evaluate(f"document.querySelector('[data-number=\"{number}\"]').click()")
    assert opened.evaluate("typeof window.hacked") == "undefined"
    assert opened.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert opened.evaluate("document.scripts.length") == 2


def test_items_are_found_by_keyboard(opened):
    opened.type("#item-search", "BRULEE")
    assert texts(opened, "#item-list li span:first-child") == ["Crème brûlée"]
    assert opened.evaluate("document.querySelector('#item-status').textContent") == "1 item found"
    opened.press("ArrowDown")
    opened.press("Enter")
    assert texts(opened, "#item h3") == ["Crème brûlée"]
    assert texts(opened, "#item-list [aria-current] span:first-child") == ["Crème brûlée"]
    opened.type("#item-search", "507")
    assert texts(opened, "#item-list li span:first-child") == ["507"]
    opened.type("#item-search", "no such item")
    assert texts(opened, "#item-status") == ["0 items found"]
    assert texts(opened, "#item-list li") == []


def test_what_is_told_of_a_user_is_what_the_model_says(opened, model):
    user = COUNTS.groupby("UserId").size().idxmin()
    opened.type("#user-search", str(user))
    opened.press("ArrowDown")
    opened.press("Enter")
    assert texts(opened, "#user h3") == [str(user)]
    n_items = (COUNTS.UserId == user).sum()
    assert texts(opened, "#user h3 + p") == [f"{n_items} items"]
    wanted = [NAMES.get(item, str(item)) for item in model.recommend(user, n=10).ItemId]
    shown = texts(opened, "#user .columns > div:first-child li > :first-child")
    assert [one[:99] for one in shown] == [one[:99] for one in wanted]


def test_factors_are_found_by_their_items(opened, model):
    assert len(texts(opened, "#factor-list > li")) == 12
    opened.type("#factor-search", "crème")
    found = texts(opened, "#factor-list > li")
    assert found
    assert all("Crème brûlée" in one for one in found)
    assert texts(opened, "#factor-list mark")[0] == "Crème"
    opened.type("#factor-search", " ")
    opened.evaluate("document.querySelector('#factor-more').click()")
    assert len(texts(opened, "#factor-list > li")) == 14


def test_links_lead_to_items_and_factors(opened):
    name = opened.evaluate(
        "(link => { link.click(); return link.textContent })(document.querySelector('#factor-list a'))"
    )
    opened.settle()
    assert texts(opened, "#item h3") == [name]
    opened.evaluate("document.querySelector('#item .bars a').click()")
    opened.settle()
    target = opened.evaluate("location.hash")
    assert target.startswith("#factor-")
    assert opened.evaluate("document.querySelector(location.hash).getBoundingClientRect().top < innerHeight")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(chromium, page, width, dark):
    chromium.open(page, width, 800, dark=dark)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    # What does not fit is cut or scrolls in a box of its own.
    wide = f"""[...document.querySelectorAll('main *, header *')].filter(one => {{
        const box = one.getBoundingClientRect();
        return box.width && box.right > {width} + 1 && !one.closest('details, svg, .results, nav');
    }}).map(one => one.outerHTML.slice(0, 200))"""
    assert chromium.evaluate(wide) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast(chromium, page, dark):
    """At least 4.5 to 1, as WCAG 2.2 (1.4.3) wants it for text."""
    chromium.open(page, dark=dark)
    style = "getComputedStyle(document.documentElement)"
    names = ("back", "panel", "ink", "soft", "blue", "tint", "orange")
    colours = {name: chromium.evaluate(f"{style}.getPropertyValue('--{name}').trim()") for name in names}

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(*names):
        low, high = sorted(luminance(colours[name]) for name in names)
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "soft"):
        for ground in ("back", "panel", "tint"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for text in ("blue", "orange"):
        assert contrast(text, "back") >= 4.5, text
    assert (luminance(colours["back"]) < 0.05) == dark


def test_it_can_be_read_by_machines(opened):
    assert opened.evaluate("document.documentElement.lang") == "en"
    assert (
        opened.evaluate("[...document.querySelectorAll('input')].filter(one => !one.labels.length).length")
        == 0
    )
    assert opened.evaluate("[...document.querySelectorAll('svg')].filter(one => !one.ariaLabel).length") == 0
    assert (
        opened.evaluate("[...document.querySelectorAll('button, a')].filter(one => !one.textContent).length")
        == 0
    )
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    levels = opened.evaluate(
        "[...document.querySelectorAll('section:not([hidden]) :is(h2, h3, h4)')].map(one => +one.tagName[1])"
    )
    assert all(after <= before + 1 for before, after in zip([1, *levels], levels, strict=False))


@pytest.mark.parametrize(
    "make",
    [
        lambda: quick(k=1, maxiter=1).fit(COUNTS),
        lambda: quick(k=0, neighbours=5, maxiter=2).fit(COUNTS),
        lambda: quick(neighbours=5, bias=True, maxiter=2).fit(COUNTS),
        lambda: quick(keep_data=False).fit(COUNTS),
        lambda: quick().fit(COUNTS[:1]),
        lambda: HPFEnsemble([{"k": 2}, {"k": 2, "transposed": True}], maxiter=2, verbose=False).fit(COUNTS),
    ],
    ids=["one check", "neighbours", "both", "no data", "one count", "ensemble"],
)
@pytest.mark.parametrize("explored", [3, 0])
def test_every_kind_of_model(chromium, tmp_path, make, explored):
    chromium.errors.clear()
    chromium.open(report(make(), tmp_path / "report.html", n_items=explored, n_users=explored), 390, 800)
    assert chromium.errors == []
    assert texts(chromium, "nav a")[0] == "Fit"
    text = chromium.evaluate("document.body.innerText")
    assert "undefined" not in text
    assert "NaN" not in text
    assert "Infinity" not in text


def test_an_error_would_be_seen(chromium, tmp_path):
    """What the other tests rely on."""
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nonsense()</script><script>console.error('told')</script>")
    chromium.errors.clear()
    chromium.open(broken)
    assert "nonsense is not defined" in chromium.errors[0]
    assert "told" in chromium.errors[1]
    chromium.errors.clear()
