"""Look at the built site in a real browser, as a reader who opened it from a folder.

    make site-test        # builds the site, then runs this

Every page is opened in headless Chromium: no error in the console, nothing fetched from
elsewhere, no picture missing, every formula drawn, no page wider than a phone. Every
link and anchor is followed in the files. The search must find what is asked for, from
`file:` as well as from a server. Before all that, a page with one fault of each kind
must be reported in full. `--screenshots DIR` also saves pictures of the pages in both
widths and themes, for a person to look at.
"""

from __future__ import annotations

import argparse
import functools
import html.parser
import http.server
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SITE = Path(__file__).resolve().parents[1] / "site"
DESKTOP, PHONE = (1280, 900), (390, 844)
SEARCHES = {
    "ThresholdStopping": "api/callbacks.html",
    "staircase": "api/schedules.html",
}
CHINESE_SEARCHES = {"学习率": "zh/"}


class Links(html.parser.HTMLParser):
    """The targets of a page's links, and the anchors it offers."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where the tag leads, and what can lead to it."""
        given = dict(attrs)
        for name in ("id", "name"):
            if given.get(name):
                self.anchors.add(str(given[name]))
        for name in ("href", "src"):
            if given.get(name):
                self.targets.append(str(given[name]))


def broken_links(site: Path) -> list[str]:
    """Return what a reader could click in vain."""
    pages = {
        page.resolve(): Links(page.read_text(encoding="utf-8"))
        for page in site.rglob("*.html")
    }
    problems = []
    for page, links in pages.items():
        if page.name == "404.html":  # its links are those of the server's root
            continue
        for target in links.targets:
            if urlsplit(target).scheme in ("http", "https", "mailto", "data"):
                continue
            path, anchor = urldefrag(target)
            aim = (page.parent / unquote(path)).resolve() if path else page
            aim = aim / "index.html" if aim.is_dir() else aim
            if not aim.exists():
                problems.append(f"{page.relative_to(site)}: {target} leads nowhere")
            elif anchor and aim in pages and unquote(anchor) not in pages[aim].anchors:
                problems.append(f"{page.relative_to(site)}: no anchor for {target}")
    return problems


def browser(profile: str) -> webdriver.Chrome:
    """Start Chromium without a window, in a folder of its own."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        sys.exit(
            "The check needs Chromium and its driver, got "
            f"chromium={binary}, chromedriver={driver}. Type: "
            "apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)


# What a page shows that it should not; run inside the page.
LOOK = r"""
const problems = [];
for (const image of document.images) {
  // Pictures below the fold may be loaded late on purpose.
  image.loading = "eager";
  if (image.complete && image.naturalWidth === 0)
    problems.push("no picture " + image.src);
}
for (const formula of document.querySelectorAll("math")) {
  const box = formula.getBoundingClientRect();
  const folded = formula.closest("details:not([open])");
  if (!folded && (box.width < 1 || box.height < 1))
    problems.push("formula not drawn: " + formula.textContent);
  if (formula.querySelector("merror"))
    problems.push("bad formula " + formula.textContent);
}
const article = document.querySelector("article").cloneNode(true);
for (const code of article.querySelectorAll("code, pre, math")) code.remove();
for (const raw of ["\\(", "\\[", "$$"])
  if (article.textContent.includes(raw)) problems.push("raw formula " + raw);
for (const entry of performance.getEntriesByType("resource"))
  if (!entry.name.startsWith(location.protocol + "//" + location.host))
    if (!entry.name.startsWith("data:"))
      problems.push("fetched from elsewhere: " + entry.name);
const wide = document.documentElement.scrollWidth - window.innerWidth;
if (wide > 0) problems.push("wider than the screen by " + wide + " pixels");
return problems;
"""


def look_at(driver: webdriver.Chrome, page: Path, size: tuple[int, int]) -> list[str]:
    """Open a page and return what is wrong with it."""
    driver.set_window_size(*size)
    driver.get(page.as_uri())
    problems = list(driver.execute_script(LOOK))
    problems += [
        f"console: {entry['message']}"
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "ERROR", "WARNING")
    ]
    return [f"{page.name} at {size[0]} pixels: {problem}" for problem in problems]


def search(driver: webdriver.Chrome, home: str, words: str, expected: str) -> list[str]:
    """Type `words` into the search and wait for a link to `expected`."""
    driver.set_window_size(*DESKTOP)
    driver.get(home)
    field = driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
    driver.execute_script("arguments[0].focus()", field)
    field.send_keys(words)
    links: list[str] = []

    def found(_: object) -> bool:
        links[:] = driver.execute_script(
            "return [...document.querySelectorAll('.md-search-result__link')]"
            ".map(link => link.href)"
        )
        return any(expected in link for link in links)

    try:
        WebDriverWait(driver, 20).until(found)
    except TimeoutException:
        return [f"searching {words!r} from {home} gave {links[:5]}, not {expected}"]
    return []


def searches(driver: webdriver.Chrome, site: Path) -> list[str]:
    """Search from a folder and from a server."""
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wanted = {**SEARCHES, **(CHINESE_SEARCHES if (site / "zh").exists() else {})}
    homes = ((site / "index.html").as_uri(), f"http://127.0.0.1:{server.server_port}/")
    problems = [
        problem
        for home in homes
        for words, expected in wanted.items()
        for problem in search(driver, home, words, expected)
    ]
    server.shutdown()
    return problems


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not print its requests."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the requests are not what is looked at."""


def take_pictures(
    driver: webdriver.Chrome, page: Path, name: str, folder: Path
) -> None:
    """Save the page in both widths and themes."""
    for width, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for theme, scheme in enumerate(("default", "slate")):
            driver.set_window_size(*size)
            driver.get(page.as_uri())
            driver.execute_script(
                "document.body.setAttribute('data-md-color-scheme', arguments[0]);"
                "document.body.setAttribute('data-md-color-primary', 'indigo')",
                scheme,
            )
            driver.save_screenshot(
                str(folder / f"{name}-{width}-{('light', 'dark')[theme]}.png")
            )


# One fault of each kind; the check must name them all, or it checks nothing.
FAULTY = """<!doctype html><title>faulty</title><body><article id="here">
<a href="nowhere.html">link</a> <a href="#nothing">anchor</a> <img src="none.png">
<p>\\(raw\\)</p><math><mi></mi></math><div style="width: 3000px">wide</div>
<script>console.error("cry"); fetch("http://127.0.0.1:9/").catch(() => 0);</script>
</article>"""
FAULTS = (
    "nowhere.html leads nowhere", "no anchor for #nothing", "no picture",
    "raw formula", "formula not drawn", "wider than the screen", "cry",
    "fetched from elsewhere",
)  # fmt: skip


def prove(driver: webdriver.Chrome, folder: Path) -> list[str]:
    """Return the kinds of fault that this check would not see."""
    page = folder / "faulty.html"
    page.write_text(FAULTY, encoding="utf-8")
    seen = "\n".join(broken_links(folder) + look_at(driver, page, DESKTOP))
    return [f"the check does not see: {fault}" for fault in FAULTS if fault not in seen]


def main() -> None:
    """Check the site, print the problems, and fail if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=SITE)
    parser.add_argument(
        "--screenshots", type=Path, help="folder for pictures of the pages"
    )
    given = parser.parse_args()
    site = given.site.resolve()
    pages = sorted(page for page in site.rglob("*.html") if page.name != "404.html")
    if not pages:
        sys.exit(f"No page in {site}. Type: make docs")
    problems = broken_links(site)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        driver = browser(f"{folder}/profile")
        (Path(folder) / "faulty").mkdir()
        problems += prove(driver, Path(folder) / "faulty")
        for page in pages:
            problems += look_at(driver, page, DESKTOP) + look_at(driver, page, PHONE)
            if given.screenshots:
                given.screenshots.mkdir(parents=True, exist_ok=True)
                name = str(page.relative_to(site).with_suffix("")).replace("/", "-")
                take_pictures(driver, page, name, given.screenshots)
        problems += searches(driver, site)
        driver.quit()
    print(*problems, sep="\n")
    print(f"{len(pages)} pages opened, {len(problems)} problems.")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
