"""Pictures of web pages, taken by a real browser without a screen.

The browser is driven over the DevTools protocol on a pair of pipes (``--remote-debugging-pipe``), so nothing but
the standard library and Debian's ``chromium-headless-shell`` (or any Chromium) is needed, no port is opened, and
the browser ends with the pipes. The protocol's messages are JSON, each ended by a NUL byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BROWSER_VARIABLE = "STORMPHASE_TEST_BROWSER"
_KNOWN_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

# The protocol's pipe has to be on descriptors 3 (commands) and 4 (answers) of the browser. Popen can pass
# descriptors on but not renumber them, so this small program does it between fork and the browser's start.
_RENUMBER = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.closerange(5, 64)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(RuntimeError):
    """The browser was missing, said no, or did not show what was waited for in time."""


def find_browser(environ: Mapping[str, str]) -> str:
    """Give the path of the browser to use.

    ``STORMPHASE_TEST_BROWSER`` in `environ` wins over the known names on the path.

    Raises:
        BrowserError: none is installed; the message names the package to install.
    """
    named = environ.get(BROWSER_VARIABLE)
    if named:
        return named
    for name in _KNOWN_BROWSERS:
        found = shutil.which(name, path=environ.get("PATH"))
        if found is not None:
            return found
    message = (
        f"Cannot take a picture: no Chromium is installed. Run 'apt-get install chromium-headless-shell', or set "
        f"{BROWSER_VARIABLE} to the path of one."
    )
    raise BrowserError(message)


class Page:
    """One tab of a running browser. Not for use from several threads at once."""

    def __init__(self, commands_fd: int, answers_fd: int, timeout_s: float) -> None:
        """Talk over `commands_fd` and `answers_fd`; give up when the browser is silent for `timeout_s` seconds."""
        self._commands_fd = commands_fd
        self._answers_fd = answers_fd
        self._timeout_s = timeout_s
        self._unread = b""
        self._sent = 0
        self._session: str | None = None

    def open(self, url: str, *, width: int, height: int) -> None:
        """Open a tab of `width` times `height` pixels on `url`; returns when the navigation has begun."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        answer = self._call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"Cannot open {url}: {answer['errorText']}.")

    def evaluate(self, expression: str) -> Any:
        """Run JavaScript in the page, wait for its promise if it gives one, and return its JSON value.

        Raises:
            BrowserError: the expression threw, or gave nothing within the time limit.
        """
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"The page refused {expression!r}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for_text(self, *texts: str) -> None:
        """Wait until the page shows every one of `texts`.

        The waiting is done inside the page, which looks again whenever its document changes.

        Raises:
            BrowserError: a text did not appear in time; the message has what the page shows instead.
        """
        # innerText leaves out what is not displayed; the limit lies inside the page so that it can still answer.
        limit_ms = int(self._timeout_s * 800)
        missing = self.evaluate(f"""new Promise(resolve => {{
            const texts = {json.dumps(texts)};
            const missing = () => texts.filter(text => !(document.body?.innerText ?? '').includes(text));
            const look = () => {{ if (missing().length === 0) resolve([]); else setTimeout(look, 50); }};
            setTimeout(() => resolve(missing()), {limit_ms});
            look();
        }})""")
        if missing:
            shown = self.evaluate("document.body?.innerText ?? ''")
            raise BrowserError(f"The page never showed {missing}. It shows: {shown!r}")

    def click(self, selector: str) -> None:
        """Wait until the page has an element for the CSS `selector`, and click the first one.

        Raises:
            BrowserError: there was none in time.
        """
        limit_ms = int(self._timeout_s * 800)
        is_clicked = self.evaluate(f"""new Promise(resolve => {{
            const look = () => {{
                const found = document.querySelector({json.dumps(selector)});
                if (found) {{ found.click(); resolve(true); }} else setTimeout(look, 50);
            }};
            setTimeout(() => resolve(false), {limit_ms});
            look();
        }})""")
        if not is_clicked:
            raise BrowserError(f"The page never had anything for {selector!r}.")

    def picture(self) -> bytes:
        """Give what the tab shows now, as PNG."""
        # What a click changed is drawn within two frames.
        self.evaluate("new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(() => resolve(0))))")
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close_browser(self) -> None:
        """Ask the browser to end; it writes nothing more after this."""
        self._session = None
        self._call("Browser.close")

    def _call(self, method: str, **params: object) -> dict[str, Any]:
        self._sent += 1
        command: dict[str, object] = {"id": self._sent, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        waiting = json.dumps(command).encode() + b"\0"
        while waiting:
            waiting = waiting[os.write(self._commands_fd, waiting) :]
        while True:
            answer = self._read_message(method)
            if answer.get("id") != self._sent:
                continue  # an event, which nobody here subscribed to
            if "error" in answer:
                raise BrowserError(f"The browser refused {method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def _read_message(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._answers_fd], [], [], self._timeout_s)
            chunk = os.read(self._answers_fd, 1 << 20) if readable else b""
            if not chunk:
                why = "ended" if readable else f"gave no answer for {self._timeout_s} s"
                raise BrowserError(f"The browser {why} while it was asked for {method}.")
            self._unread += chunk
        text, _, self._unread = self._unread.partition(b"\0")
        parsed: dict[str, Any] = json.loads(text)
        return parsed


@contextmanager
def open_page(url: str, *, width: int = 1400, height: int = 900, timeout_s: float = 60.0) -> Iterator[Page]:
    """Open `url` in a browser of its own, which ends with the block.

    The profile is a temporary folder. `timeout_s` bounds each single question to the browser. Blocking; not async
    safe.

    Raises:
        BrowserError: no browser, no answer, or the page could not be opened.
    """
    browser = find_browser(os.environ)
    with ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="stormphase-browser-"))
        log = stack.enter_context((Path(profile) / "browser.log").open("wb"))
        command_source, commands = os.pipe()
        answers, answer_sink = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    sys.executable, "-c", _RENUMBER, str(command_source), str(answer_sink), browser,
                    "--headless", "--remote-debugging-pipe",
                    "--no-sandbox",  # Chromium's sandbox refuses root, and containers mostly forbid it
                    "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
                    "--disable-background-networking", "--disable-component-update", "--lang=en",
                    f"--user-data-dir={profile}/profile",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(command_source, answer_sink),
            )  # fmt: skip
        finally:
            os.close(command_source)
            os.close(answer_sink)
        try:
            page = Page(commands, answers, timeout_s)
            page.open(url, width=width, height=height)
            yield page
            page.close_browser()
        finally:
            os.close(commands)
            os.close(answers)
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)  # closing the pipes is what ends it
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def take_screenshot(
    url: str, path: Path, *, shows: Sequence[str], clicks: Sequence[str] = (), width: int = 1400, height: int = 900
) -> Path:
    """Write a PNG of `url` to `path`; gives back `path`.

    First the page must show every text of `shows`; then each CSS selector of `clicks` is clicked.

    Raises:
        BrowserError: no browser, or something never appeared; nothing is written then.
    """
    with open_page(url, width=width, height=height) as page:
        page.wait_for_text(*shows)
        for selector in clicks:
            page.click(selector)
        path.write_bytes(page.picture())
    return path
