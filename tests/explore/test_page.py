"""The explorer's page in a real browser: every key, search, filters, and nothing that the dataset says becomes code."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from pipeline.explore.app import make_app
from pipeline.explore.explorer import Explorer
from pipeline.storage.store import Store
from pipeline.tables.decisions import read_decisions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(explorer, "t", "w"), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def context(address: str) -> Iterator[sync_api.BrowserContext]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
        opened.set_default_timeout(300_000)
        yield opened
        browser.close()


@pytest.fixture
def page(context: sync_api.BrowserContext, address: str) -> Iterator[sync_api.Page]:
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(f"{address}/?token=t")
    opened.wait_for_selector(".card")
    yield opened
    opened.close()
    assert not errors


def settled(page: sync_api.Page, condition: str) -> None:
    """Wait for a condition in JavaScript. Polled from here: the page's policy forbids the eval of wait_for_function."""
    until = time.monotonic() + 300
    while not page.evaluate(condition):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(50)


def test_the_address_loses_its_token_and_the_clips_are_shown(page, explorer):
    assert "token" not in page.url
    assert page.locator(".card").count() == explorer.describe()["clips"]
    assert page.locator("#status").inner_text().startswith(f"{explorer.describe()['clips']} clips")
    settled(page, "[...document.querySelectorAll('.card img')].every((i) => i.complete && i.naturalWidth > 0)")


def test_a_kept_clip_plays(page, explorer):
    page.locator(".segments span", has_text="Kept").click()
    settled(page, f"document.querySelectorAll('.card').length === {explorer.describe()['kept']}")
    settled(page, "document.querySelector('#stage video')?.readyState >= 2")
    page.keyboard.press("Space")
    settled(page, "document.querySelector('#stage video').currentTime > 0.1")


def test_keys_decide_and_move_on_and_what_they_decide_is_in_the_dataset(page, explored):
    first, second = (card.get_attribute("data-id") for card in page.locator(".card").all()[:2])
    page.keyboard.press("r")
    page.locator(".card").first.locator(".stamp.drop").wait_for()
    assert page.locator("[aria-current=true]").get_attribute("data-id") == second
    page.keyboard.press("k")
    page.locator(".card").nth(1).locator(".stamp.keep").wait_for()
    decided = {row["clip_id"]: row["decision"] for row in read_decisions(Store(str(explored))).to_pylist()}
    assert decided == {first: "reject", second: "keep"}
    page.locator(".segments span", has_text="Decided").click()
    settled(page, "document.querySelectorAll('.card').length === 2")
    page.keyboard.press("u")
    settled(page, "document.querySelectorAll('.stamp').length === 1")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("u")
    settled(page, "document.querySelectorAll('.stamp').length === 0")
    assert read_decisions(Store(str(explored))).num_rows == 0


def test_a_caption_is_edited_where_it_is_and_markup_in_it_stays_text(page, explored):
    text = "<img src=x onerror=\"document.title='broken'\"> & more"
    clip = page.locator("[aria-current=true]").get_attribute("data-id")
    page.keyboard.press("e")
    page.locator("#caption").fill(text)
    page.keyboard.press("Control+Enter")
    page.locator(f"[data-id='{clip}'] .edited").wait_for()
    assert page.locator(f"[data-id='{clip}'] .edited").inner_text() == text
    assert page.locator(f"[data-id='{clip}'] .text img").count() == 0
    assert read_decisions(Store(str(explored)))["caption"].to_pylist() == [text]
    page.reload()
    page.locator(f"[data-id='{clip}'] .edited").wait_for()
    assert page.title() != "broken"
    page.locator("#restore").click()
    settled(page, "document.querySelectorAll('.edited').length === 0")
    assert read_decisions(Store(str(explored))).num_rows == 0


def test_text_that_is_being_written_stays_with_its_clip(page, explored):
    first, second = (card.get_attribute("data-id") for card in page.locator(".card").all()[:2])
    page.keyboard.press("e")
    page.locator("#caption").fill("Of the first clip.")
    page.locator(".card").nth(1).click()
    page.locator(f"[data-id='{first}'] .edited").wait_for()
    assert page.locator("#caption").input_value() != "Of the first clip."
    assert read_decisions(Store(str(explored)))["clip_id"].to_pylist() == [first]
    page.locator(".card").nth(0).click()
    page.locator("#restore").click()
    settled(page, "document.querySelectorAll('.edited').length === 0")
    assert second != first


def test_a_filter_narrows_and_a_wrong_one_says_why(page):
    page.keyboard.press("f")
    page.keyboard.type("motion_objekt > 0")
    page.keyboard.press("Enter")
    page.locator("#error", has_text='Candidate bindings: "motion_object"').wait_for()
    page.locator("#where").fill("list_contains(rejected_by, 'duplicates')")
    page.keyboard.press("Enter")
    settled(page, "[...document.querySelectorAll('.card')].every((c) => c.textContent.includes('duplicates'))")
    assert page.locator("#error").is_hidden()
    page.reload()
    page.wait_for_selector(".card")
    assert page.locator("#where").input_value() == "list_contains(rejected_by, 'duplicates')"


def test_a_bar_of_the_distribution_is_a_filter(page):
    page.locator("#spread summary").click(position={"x": 8, "y": 8})
    page.locator("#chart .bars button", has_text="duplicates").click()
    settled(page, "document.querySelector('#where').value === \"list_contains(rejected_by, 'duplicates')\"")
    page.locator("#where").fill("")
    page.keyboard.press("Enter")
    page.select_option("#column", "motion_object")
    page.locator("#chart rect.hit").nth(3).click()
    settled(page, "/^motion_object >= .* AND motion_object < /.test(document.querySelector('#where').value)")


def test_words_put_the_likely_clip_first(page):
    page.keyboard.press("/")
    page.keyboard.type("a rabbit in a meadow")
    page.keyboard.press("Enter")
    page.locator(".card .badge.value").first.wait_for()
    assert "bigbuckbunny" in page.locator(".card").first.inner_text()
    page.locator("#chip button").click()
    settled(page, "document.querySelectorAll('.badge.value').length === 0")


def test_a_picture_file_and_the_key_s_find_what_looks_alike(page, context, address, tmp_path):
    clip = page.locator(".card").last.get_attribute("data-id")
    (tmp_path / "x.jpg").write_bytes(context.request.get(f"{address}/thumbnails/{clip}").body())
    page.locator("#picture").set_input_files(tmp_path / "x.jpg")
    page.locator("#chip", has_text="picture: x.jpg").wait_for()
    page.locator(".card .badge.value").first.wait_for()
    assert page.locator(".card").first.get_attribute("data-id") == clip
    page.keyboard.press("s")
    page.locator("#chip", has_text=f"like {clip[:8]}").wait_for()


def test_help_opens_and_closes_by_key(page):
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


def test_the_page_cannot_reach_other_hosts(page):
    answer = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert answer == "refused"
