"""The report in a real browser, at the width of a desk and of a telephone."""

import io

import pytest
from PIL import Image

from tests import browser

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is on PATH"
)
WIDTHS = (1400, 400)

IMAGES = """Array.from(document.images, image => ({
  name: image.closest('figure').id, alt: image.alt, complete: image.complete,
  natural: [image.naturalWidth, image.naturalHeight],
  shown: [image.getBoundingClientRect().width, image.getBoundingClientRect().height],
  caption: (image.closest('figure').querySelector('figcaption') || {}).innerText || ''}))"""
OUTSIDE = """Array.from(document.body.querySelectorAll('*'))
  .filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 ||
               e.getBoundingClientRect().left < -1)
  .map(e => e.outerHTML.slice(0, 80))"""
SMALLEST = """Math.min(...Array.from(document.body.querySelectorAll('*'))
  .filter(e => Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim()))
  .map(e => parseFloat(getComputedStyle(e).fontSize)))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(params=WIDTHS)
def opened(request, page, evaluated_report):
    """The page of the report, at a width."""
    _, written = evaluated_report
    page.open(written.path.absolute().as_uri(), width=request.param)
    return page, request.param


def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(opened, evaluated_report):
    page, _ = opened
    assert page.complaints() == []
    assert page.requests() == [evaluated_report[1].path.absolute().as_uri()]
    name = evaluated_report[0].name
    assert page.run("document.title") == f"Report of {name}"
    assert page.run("document.querySelector('h1').innerText") == f"Report of {name}"
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.scripts.length + document.querySelectorAll('b').length") == 0


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("img", "img-src"), ("script", "script-src-elem"), ("iframe", "frame-src")],
)
def test_what_comes_from_elsewhere_is_blocked(kind, rule, page, evaluated_report):
    """Whatever should get into the page."""
    page.open(evaluated_report[1].path.absolute().as_uri(), width=WIDTHS[0])
    blocked = f"""new Promise(done => {{
      document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));
      const element = document.createElement('{kind}');
      element.src = 'https://example.invalid/x';
      document.body.append(element);
      setTimeout(() => done('not blocked'), 2000) }})"""
    assert page.run(blocked) == rule


def test_every_figure_is_there_and_drawn(opened, evaluated_report):
    page, _ = opened
    images = page.run(IMAGES)
    files = {path.stem for path in evaluated_report[1].figures}
    assert [i["name"] for i in images if not i["complete"] or i["natural"][0] < 300] == []
    assert {i["name"] for i in images} == {n for n in files if not n.endswith("-narrow")}
    assert len(images) == len({i["name"] for i in images}) > 30
    assert all(len(i["alt"]) > 30 and len(i["caption"]) > 20 for i in images)
    for i in images:  # not squeezed
        ratio = i["natural"][0] / i["natural"][1]
        assert i["shown"][0] / i["shown"][1] == pytest.approx(ratio, rel=0.02)


def test_nothing_reaches_out_of_the_window(opened):
    page, width = opened
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OUTSIDE) == []
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OUTSIDE) == []


def test_texts_can_be_read(opened, evaluated_report):
    """Letters of the page are 13 pixels high and more, those inside of figures 9."""
    page, _ = opened
    assert page.run(SMALLEST) >= 13
    shown = {i["name"]: i for i in page.run(IMAGES)}
    for path in evaluated_report[1].figures:
        image = shown[path.stem.removesuffix("-narrow")]
        with Image.open(path) as file:
            if file.size[0] == image["natural"][0]:
                inches = file.size[0] / file.info["dpi"][0]
                image["letters"] = 9 / 72 * image["shown"][0] / inches
    assert {n: i["letters"] for n, i in shown.items() if i["letters"] < 9} == {}


def test_a_narrow_window_has_the_utterance_in_short_lines(opened):
    page, width = opened
    (image,) = [i for i in page.run(IMAGES) if i["name"] == "utterance"]
    tall = image["natural"][1] > image["natural"][0]
    assert tall == (width == 400)
    length = page.run(
        "new Promise(done => { const a = document.querySelector('audio'); a.duration ? "
        "done(a.duration) : a.onloadedmetadata = () => done(a.duration) })"
    )
    assert length == pytest.approx(3.7, abs=0.01)


def test_every_link_leads_somewhere_and_tables_have_heads(opened):
    page, _ = opened
    assert (
        page.run("""Array.from(document.links, a => a.hash).filter(h =>
        !document.getElementById(h.slice(1)))""")
        == []
    )
    assert page.run("document.links.length") >= 7
    assert (
        page.run("""Array.from(document.querySelectorAll('table')).filter(t => !t.caption ||
        !t.querySelector('thead th[scope=col]') || !t.querySelector('tbody th[scope=row]'))
        .length""")
        == 0
    )
    levels = page.run("Array.from(document.querySelectorAll('h1,h2,h3'), h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


def test_the_figures_are_not_blank(opened):
    page, _ = opened
    with Image.open(io.BytesIO(page.screenshot())) as image:
        assert len(image.convert("L").getcolors()) > 100
