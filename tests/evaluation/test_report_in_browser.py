"""The page as a reader uses it: in a headless Chromium where there is one, else by what its script needs."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from t2i_align.evaluation.prompts import PromptSet
from t2i_align.evaluation.report import render
from tests.evaluation.synthetic import levels_of, make_evaluation
from tests.evaluation.test_report import Page, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ERRORS = "<script>window.problems = []; addEventListener('error', (e) => problems.push(String(e.message)));</script>"
DRIVER = """<script>addEventListener("load", () => {
  const found = { problems };
  const column = (table, i) => [...table.tBodies[0].rows].map((row) => Number(row.cells[i].dataset.value));
  const table = document.querySelector("#scores table.sortable");
  const heading = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("Win rate"));
  const button = table.tHead.rows[0].cells[heading].querySelector("button");
  button.click();
  found.falling = column(table, heading);
  button.click();
  found.rising = column(table, heading);
  found.sorted = table.tHead.rows[0].cells[heading].getAttribute("aria-sort");
  const cards = [...document.querySelectorAll(".card")];
  const lightbox = document.getElementById("lightbox");
  cards[1].focus();
  cards[1].click();
  found.open = lightbox.open;
  found.prompt = document.getElementById("lightbox-prompt").textContent;
  found.shown = lightbox.querySelectorAll(".lightbox-pictures img").length;
  found.scores = lightbox.querySelectorAll(".lightbox-pictures tr").length;
  lightbox.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.next = document.getElementById("lightbox-place").textContent;
  lightbox.querySelector(".close").click();
  found.closed = !lightbox.open;
  found.focus = cards.indexOf(document.activeElement);
  const chart = document.querySelector("svg.chart");
  const box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top + 9 }));
  found.readout = document.getElementById("readout").textContent;
  found.width = [document.documentElement.scrollWidth, innerWidth];
  const focusable = "a[href], button, summary, [tabindex='0'], input, select";
  found.unreachable = [...document.querySelectorAll(".card, th button, .copy, summary")]
    .filter((element) => !element.matches(focusable)).length;
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(found) }));
});</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    base, tuned = levels_of(30, wins=20, ties=2)
    _, control = levels_of(30, wins=14)
    folder = tmp_path_factory.mktemp("browser")
    prompts = PromptSet("painted", tuple(f"prompt {i}" for i in range(30)), {"style": ("x",) * 15 + ("y",) * 15})
    models = {"base": base, "tuned": tuned, "control": control}
    evaluation = make_evaluation(folder, models, prompts, "control", replicates=300)
    return render(evaluation, folder / "report.html", {"tuned": write_run(folder / "run")})


def test_the_page_works(report):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        check_by_reading(report.read_text(encoding="utf-8"))
        return
    for width in (1280, 390):
        check_by_use(browse(browser, report, width))


def test_the_page_has_what_its_script_looks_for(report):
    check_by_reading(report.read_text(encoding="utf-8"))


def browse(browser: str, report: Path, width: int) -> dict:
    """Load the page, use it, and return what was seen."""
    page = report.read_text(encoding="utf-8").replace("<head>", f"<head>{ERRORS}", 1)
    page = page.replace("</body>", f"{DRIVER}</body>", 1)
    driven = report.with_name(f"driven-{width}.html")
    driven.write_text(page, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={report.parent / 'profile'}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=4000", "--dump-dom", driven.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    return json.loads(unescape(re.search(r"<pre>(.*?)</pre>", result.stdout, re.DOTALL)[1]))


def check_by_use(found: dict) -> None:
    assert found["problems"] == []
    assert found["falling"] == sorted(found["falling"], reverse=True) and len(set(found["falling"])) > 1
    assert found["rising"] == sorted(found["rising"]) and found["sorted"] == "ascending"
    assert found["open"] and found["prompt"].startswith("prompt ")
    assert found["shown"] == 3 and found["scores"] == 3 * 2
    assert found["next"].startswith("3 of ") and found["closed"]
    assert found["focus"] == 2  # back on the card that was looked at last
    assert found["readout"].startswith("step ")
    assert found["width"][0] <= found["width"][1]  # nothing sticks out at the side
    assert found["unreachable"] == 0


def check_by_reading(text: str) -> None:
    """Without a browser: every element that the script asks for is there, as the kind of element it expects."""
    page = Page(text)
    script = text[text.rindex("<script>") :]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    classes = {name for _, attributes in page.tags for name in (attributes.get("class") or "").split()}
    for wanted in re.findall(r'getElementById\("([\w-]+)"\)', script):
        assert wanted in ids, wanted
    for selector in re.findall(r'querySelector(?:All)?\("([^"]+)"\)', script):
        for name in re.findall(r"\.([\w-]+)", selector):
            assert name in classes, selector
    headings = [attributes for tag, attributes in page.tags if tag == "th" and attributes.get("scope") == "col"]
    assert headings and script.count("{") == script.count("}") and script.count("(") == script.count(")")
    assert all(
        attributes.get("type") == "button" for attributes in page.all("button")
    )  # native: Tab, Enter and Space work
    assert page.all("dialog") and page.all("a", "skip")
    assert [a for a in page.all("meta") if a.get("name") == "viewport" and "width=device-width" in a["content"]]
