"""Draws the picture of the desk: `PYTHONPATH=. python docs/draw_desk.py`; needs the browser Chromium."""

from __future__ import annotations

import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import uvicorn
from PIL import Image

from lightning_s3t.service import make_control_app
from lightning_s3t.service.tokens import Tokens
from tests.service.browser import Browser
from tests.store.people_store import in_place, make

PICTURE = Path(__file__).parent / "pictures" / "desk.png"
TOKEN = "a-token-for-the-picture"


def make_store(path: Path) -> None:
    """A store with requests of every state, whose units were never really trained."""
    now = datetime.now(timezone.utc)
    with make(path) as store:
        with store.building() as building:
            building.note_options({"sequences": [(0, 1, 2), (1, 2, 0)]})
        store.forget([in_place(0, 0)], request_id="DSR-101")
        store.schedule([in_place(1, 1)], now + timedelta(days=12), request_id="DSR-102")
        store.schedule([in_place(1, 2)], now + timedelta(days=45), request_id="DSR-103")
        store.refuse_request("DSR-100", "Article 17(3)(b): kept for the tax office")


def draw_desk(folder: Path) -> None:
    """The desk, with a person looked up."""
    make_store(folder / "store")
    app = make_control_app(folder / "store", Tokens.of([("ask", TOKEN)]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    browser = Browser(folder / "profile")
    browser.call("Emulation.setDeviceMetricsOverride", width=900, height=1000, deviceScaleFactor=1, mobile=False)
    browser.open(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/desk")
    browser.type(TOKEN)
    browser.press("Enter")
    browser.wait_for("document.activeElement.id === 'look-up-title'")
    browser.press("Tab")
    browser.type(in_place(1, 0))
    browser.press("Tab")
    browser.press("Enter")
    browser.wait_for("document.activeElement.id === 'person-title'")
    browser.screenshot(folder / "desk.png")
    end = browser.evaluate("document.getElementById('store').offsetTop")
    browser.close()
    server.should_exit = True
    thread.join()
    with Image.open(folder / "desk.png") as picture:
        top = picture.convert("RGB").crop((0, 0, picture.width, end))
    top.quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        draw_desk(Path(folder))
