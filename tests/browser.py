"""JupyterLab and the paper's page in a real browser: `make test-browser`. Pictures go to SCREENSHOTS=FOLDER, if given."""

import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
SMALL = {
    "tutorial_1": {"toy_steps": 20, "digit_steps": 4, "points": 50},
    "tutorial_2": {"steps": 10, "look_every": 5, "samples": 4},
    "tutorial_3": {"steps": 4, "samples": 16},
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECOND = 1000  # playwright counts milliseconds
expect.set_options(timeout=60 * SECOND)  # two slow cores

REACHABLE = """tables => tables.every(table => {  // fits into the window, or can be scrolled sideways
    let box = table;
    while (box && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
    return box || table.getBoundingClientRect().right <= window.innerWidth;
})"""


class Lab(NamedTuple):
    process: psutil.Process  # of make
    url: str  # as make lab prints it, with the token
    opened: str  # what make lab opens in the user's browser: a page of its own, which leads to the notebook
    notebooks: Path


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium if it is there, or else playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """picture(page, name): a screenshot."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    return lambda page, name, **how: page.screenshot(path=folder.resolve() / f"{name}.png", timeout=300 * SECOND, **how)


@pytest.fixture
def page(browser, picture, request):
    """An empty tab; in the end a picture is taken of it, so that a failure can be seen."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60 * SECOND)
    page = context.new_page()
    yield page
    picture(page, re.sub(r"\W+", "-", request.node.name.removeprefix("test_")).rstrip("-"))
    context.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`make lab` in a copy of the repository whose tutorials are small; no settings of the user's own."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("notebooks", "docs", "figures/tutorials"):
        (folder / name).mkdir(parents=True)
    for name in ("notebooks/start.ipynb", "docs/running.md", "figures/tutorials/tutorial_4.ipynb"):
        shutil.copy2(ROOT / name, folder / name)
    for name, parameters in SMALL.items():
        book = load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(book, parameters), folder / "notebooks" / f"{name}.ipynb")
    for weights in (ROOT / "results" / "paper-cpu").glob("mnist-*/weights.pt"):  # tutorial 2 shows what they draw
        shutil.copytree(weights.parent, folder / "results" / "paper-cpu" / weights.parent.name)
    settings = folder / "jupyter" / "CONFIG" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)  # no question about news, which would cover a part of the notebook
    (settings / "notification.jupyterlab-settings").write_text('{"checkForUpdates": false, "fetchNews": "false"}')
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment |= {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    # --old-file: this environment is installed, and from the repository itself, not from its copy.
    words = [
        "make",
        "lab",
        f"VENV={sys.prefix}",
        f"--old-file={sys.prefix}/.installed",
        "LAB_OPTIONS=--allow-root --port=0",
    ]
    with open(folder / "lab.log", "w") as log:
        process = psutil.Popen(
            words, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**environment, "BROWSER": "echo %s"}
        )
    try:
        url = printed(r"http://(?:localhost|127\.0\.0\.1):\d+/lab\S*\?token=\w+", process, folder / "lab.log")
        yield Lab(process, url, printed(r"(?m)^file:\S+$", process, folder / "lab.log"), folder / "notebooks")
    finally:
        started = [process, *process.children(recursive=True)]
        os.killpg(process.pid, signal.SIGTERM)  # Jupyter ends its kernels
        for left in psutil.wait_procs(started, timeout=20)[1]:
            left.kill()


def printed(pattern: str, process: psutil.Process, log: Path) -> str:
    """The first match in what the process prints, once it is there."""
    for _ in range(120):
        found = re.search(pattern, log.read_text())
        if found or process.poll() is not None:
            break
        time.sleep(0.5)
    assert found, log.read_text()
    return found[0]


def status(url: str) -> int:
    """The HTTP status."""
    try:
        return urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def failures(page: Page) -> Locator:
    """Errors among the outputs and in widgets. JupyterLab shows them, and progress bars, as stderr."""
    return page.locator('[data-mime-type="application/vnd.jupyter.stderr"]', has_text=re.compile("Error|Traceback"))


def run_all(page: Page, notebook: Path) -> Locator:
    """Run All Cells, in the open notebook; the output of its last code cell. No cell may fail."""
    expect(page.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3")).to_be_visible()
    expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")).to_be_visible()  # the kernel is there
    page.locator("#jp-MainMenu").get_by_text("Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    output = page.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-OutputArea-output").last
    output.or_(failures(page)).first.wait_for(state="attached", timeout=600 * SECOND)
    expect(page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")).to_be_visible()
    page.keyboard.press("Control+s")
    expect(page.get_by_text("Saving completed")).to_be_visible()
    book = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"] == []
    expect(failures(page)).to_have_count(0)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    return output


def test_lab_listens_on_this_machine_only_and_keeps_its_token(lab):
    processes = {process.pid for process in lab.process.children(recursive=True)}  # some of them end at any moment
    sockets = [
        socket
        for socket in psutil.net_connections("inet")
        if socket.pid in processes and socket.status == psutil.CONN_LISTEN
    ]
    assert sockets and {socket.laddr.ip for socket in sockets} <= {"127.0.0.1", "::1"}
    address, _, token = lab.url.partition("/lab")
    token = token.partition("?")[2]
    assert status(f"{address}/api/contents") == 403
    assert status(f"{address}/api/contents?{token[:-1]}") == 403
    assert status(f"{address}/api/contents?{token}") == 200


def test_lab_opens_the_start_page_which_leads_to_tutorial_1_and_it_runs(lab, page):
    page.goto(lab.opened)
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).to_contain_text("start.ipynb")
    page.get_by_role("link", name="tutorial_1", exact=True).click()
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).to_contain_text("tutorial_1.ipynb")
    expect(page.get_by_role("heading", name="Tutorial 1")).to_be_visible()
    page.goto(lab.url.replace("/lab?", "/lab/tree/notebooks/tutorial_1.ipynb?reset&"))  # without the start page
    run_all(page, lab.notebooks / "tutorial_1.ipynb").scroll_into_view_if_needed()


@pytest.mark.parametrize("path", ["figures/tutorials/tutorial_4.ipynb", "docs/running.md"])
def test_links_lead_out_of_the_folder_of_notebooks(lab, page, path):
    page.goto(lab.url.replace("/lab?", "/lab/tree/notebooks/start.ipynb?reset&"))
    near, link = ("tr", "executed") if "tutorial" in path else ("p", "running")
    place = page.locator(
        f".jp-RenderedMarkdown {near}", has_text="in 20 lines" if near == "tr" else "of its profile first"
    )
    place.get_by_role("link", name=link).click()
    expect(page.locator(".lm-TabBar-tab.jp-mod-current")).to_contain_text(Path(path).name)
    expect(page).to_have_url(re.compile(f"/lab/tree/{path}"))


@pytest.mark.parametrize(
    "name, sliders", [("tutorial_2", (0, 1)), ("tutorial_3", (1,))]
)  # tutorial 3 begins with menus
def test_a_slider_draws_another_picture(lab, page, picture, name, sliders):
    page.goto(lab.url.replace("/lab?", f"/lab/tree/notebooks/{name}.ipynb?reset&"))  # without tutorial 1
    run_all(page, lab.notebooks / f"{name}.ipynb")
    for number in sliders:
        widget = page.locator(".widget-interact").nth(number)
        slider, figure, reading = widget.get_by_role("slider"), widget.locator("img"), widget.locator(".widget-readout")
        slider.scroll_into_view_if_needed()
        before, value = figure.get_attribute("src"), reading.inner_text()
        slider.focus()
        slider.press("ArrowRight")
        expect(reading).not_to_have_text(value)
        expect(figure).not_to_have_attribute("src", before)
        expect(failures(page)).to_have_count(0)
        picture(page, f"{name}-slider-{number + 1}")


@pytest.mark.parametrize("width", [1280, 1000, 390])
def test_page_of_the_paper_needs_nothing_but_itself(page, picture, width):
    path = ROOT / "figures" / "paper-cpu" / "paper.html"
    assert path.exists(), f"{path} is missing: make paper PROFILE=paper-cpu"
    asked = []
    page.context.route(re.compile("^(https?|wss?):"), lambda route: (asked.append(route.request.url), route.abort()))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    images = page.locator("img")
    for image in images.all():
        image.scroll_into_view_if_needed()  # loads it if it is lazy
    loaded = images.evaluate_all("images => images.map(image => image.complete && image.naturalWidth > 0)")
    assert len(loaded) >= 5 and all(loaded)
    assert page.locator("table").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("table").evaluate_all(REACHABLE)
    if width >= 1000:  # every column of the table of results is seen at once
        assert page.locator(".table").first.evaluate("box => box.scrollWidth <= box.clientWidth")
    else:  # figures are as wide as their letters need, and scrolled in a box
        widths = page.locator("figure img").evaluate_all("images => images.map(image => image.width)")
        assert len(widths) >= 5 and min(widths) > 600
    assert page.locator("details").count() > 0 and page.locator("details[open]").count() == 0
    assert not any(code.is_visible() for code in page.locator("details pre").all())
    assert asked == []
    page.evaluate("window.scrollTo(0, 0)")
    picture(page, f"paper-{width}", full_page=True)
