"""The report of an evaluation: what it shows, that it escapes and holds all it needs, and how a browser takes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from browser import Browser, browser_or_skip
from evaluation_summaries import A, evaluation
from made_rollouts import make_saved_rollout, save_to

from embodied.commands.eval_report import REPORT, write_report
from embodied.evaluation.paired_proportions import paired_difference_interval
from embodied.evaluation.report import GalleryEpisode, evaluation_report
from embodied.evaluation.report_page import Picture, table
from embodied.evaluation.statistics import wilson_interval
from embodied.evaluation.svg_charts import Mark, funnel_chart, histogram, interval_chart
from embodied.replay.still_frames import still_frames

VOID = {"meta", "img", "br", "rect", "line", "circle"}
EVIL = '<script>alert(1)</script>"><img src=http://evil.example/x onerror=alert(2)>'


class Page(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    def all(self, tag: str) -> list[str]:
        return [text for of_tag, text in self.texts if of_tag == tag]

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def varied(stages: bool = True) -> dict:
    """20 starts in the base scene, in two lights and one texture, with stages."""
    outcomes = {("base", "base"): A, ("light", "dim"): "1" * 10 + "0" * 10, ("light", "side"): "0" * 20}
    outcomes |= {("texture", "wood"): A}
    summary = evaluation(A)
    summary["episodes"] = [
        {
            **row,
            "axis": axis,
            "variant": variant,
            "stages": {"reached": True, "grasped": row["success_ever"] or row["start"] % 2 == 0} if stages else {},
        }
        for (axis, variant), of_variant in outcomes.items()
        for row in evaluation(of_variant)["episodes"]
    ]
    return summary


def report(summary: dict, gallery=()) -> Page:
    return Page(evaluation_report(summary, gallery))


def test_a_plain_evaluation_has_its_sections_and_figures():
    page = report(evaluation(A))
    assert page.all("h1") == ["robosuite/lift: sdp k=2"]
    assert page.all("h2") == ["Result", "Steps to success", "Latency", "Episodes"]
    low, high = wilson_interval(15, 20)
    assert f"15 of 20 episodes succeed: 75.0%, 95 % interval {low:.1%} to {high:.1%}." in page.all("p")
    assert {"15/20", f"{low:.3f} to {high:.3f}", "Wilson", "bootstrap"} <= set(page.all("td"))
    assert "outputs/train/lift-sdp-0-abc, step 1500, training seed 0" in page.all("td")
    assert "20 from 100000 to 100019" in page.all("td")
    assert "Of the 15 episodes that succeed: median 40 steps, from 40 to 40, of 100." in page.all("p")
    assert page.all("summary") == ["All 20"]


def test_errors_stand_apart_with_both_bounds():
    summary = evaluation("11100000ee", error_bounds={key: {"if_failed": 0.3, "if_succeeded": 0.5} for key in ("ever",)})
    page = report(summary)
    assert {"errors: 2", "0.300 to 0.500", "the simulator died"} <= set(page.all("td"))
    assert "2 could not be run:" in page.all("p")
    assert page.all("p")[0].startswith("3 of 8 episodes succeed: 37.5%") and "; 2 could not be run." in page.all("p")[0]


def test_variants_have_intervals_means_of_their_axis_and_differences():
    page = report(varied())
    assert "Variants of the scene" in page.all("h2")
    low, high = wilson_interval(10, 20)
    assert f"light: dim: 0.500 [{low:.3f}, {high:.3f}] 10/20" in page.all("title")
    mean = next(title for title in page.all("title") if title.startswith("light: mean"))
    assert mean.startswith("light: mean: 0.250 [")
    assert not any(title.startswith("texture: mean") for title in page.all("title")), "one variant is its own mean"
    low, high = paired_difference_interval(0, 0, 15, 5)
    assert f"-0.750 [{low:+.3f}, {high:+.3f}]" in page.all("td")
    assert any(cell.startswith("+0.000 [") for cell in page.all("td"))


def test_stages_are_a_funnel_of_the_base_scene():
    page = report(varied())
    assert "Stages in the base scene" in page.all("h2")
    low, high = wilson_interval(20, 20)
    assert f"reached: 1.000 [{low:.3f}, {high:.3f}] 20/20" in page.all("title")
    grasped = sum(outcome == "1" or index % 2 == 0 for index, outcome in enumerate(A))
    assert any(title.startswith("grasped:") and title.endswith(f"{grasped}/20") for title in page.all("title"))
    assert any(title.startswith("success: 0.750") for title in page.all("title"))
    assert "Stages" not in " ".join(report(varied(stages=False)).all("h2"))
    assert "Stages" not in " ".join(report(evaluation(A)).all("h2"))


def test_several_tasks_have_sections_of_their_own():
    summary = evaluation("1100")
    for row in summary["episodes"]:
        row["task"] = f"robosuite/{'lift' if row['start'] % 2 else 'can'}"
    assert [title for title in report(summary).all("h2") if "success" in title] == [
        "Steps to success of robosuite/can",
        "Steps to success of robosuite/lift",
    ]


def test_failures_come_before_successes_with_their_frames():
    rows = evaluation("10")["episodes"]
    frames = [Picture(f"step {frame.step}", frame.png) for frame in still_frames(make_saved_rollout(images=True), 3)]
    page = report(evaluation("10"), [GalleryEpisode(rows[0], frames), GalleryEpisode(rows[1], frames)])
    assert [title for title in page.all("h2") if title in ("Failures", "Successes")] == ["Failures", "Successes"]
    assert page.all("h3") == [
        "start 100001, no success, maximum reward 0",
        "start 100000, success after 40 steps, lost again, maximum reward 1",
    ]
    assert page.all("figcaption") == ["step 0", "step 14", "step 29"] * 2
    assert "Nothing of it can be drawn." in report(evaluation("10"), [GalleryEpisode(rows[0], [])]).all("p")


def test_a_policy_without_a_network_and_an_evaluation_without_success():
    nowhere = {"run": "expert task", "step": None, "config_hash": None, "method_hash": "x", "seed": None}
    summary = evaluation("000", network=None, parameters=None, checkpoint=nowhere, setting="expert task")
    del summary["mean_max_reward"], summary["timings"]["latency"]["encode_ms"]
    page = report(summary)
    assert "No episode succeeded." in page.all("p") and "expert task" in page.all("td")
    assert "None" not in " ".join(page.all("td"))


def test_text_from_outside_is_escaped_everywhere():
    summary = varied()
    for key in ("task", "setting", "policy", "network"):
        summary[key] = EVIL
    summary["checkpoint"]["run"] = EVIL
    summary["machine"] = {**summary["machine"], "cpu": EVIL}
    summary["run_time_settings"] = {EVIL: EVIL}
    for row in summary["episodes"]:
        row |= {"variant": EVIL + row["variant"], "axis": EVIL, "stages": {EVIL: True}, "task": EVIL}
    summary["episodes"][0] |= {"error": EVIL, "recording": EVIL}
    row = {**summary["episodes"][1], "recording": EVIL}
    page = report(summary, [GalleryEpisode(row, [Picture(EVIL, b"")])])
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags and not page.attributes("onerror")
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    assert EVIL in page.all("td") and any(EVIL in title for title in page.all("title"))


def test_the_page_names_no_address_and_forbids_all():
    page = report(varied(), [GalleryEpisode(evaluation("0")["episodes"][0], [Picture("step 0", b"png")])])
    policy = next(value for value in page.attributes("content") if "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not page.attributes("href") and not {"link", "script", "iframe"} & {tag for tag, _ in page.elements}
    assert not re.search(r"https?://|url\(|@import", evaluation_report(varied(), []))


def test_charts_place_marks_on_their_axis():
    chart = interval_chart("c", [Mark("half", 0.5, 0.25, 1.0)], "rate")
    assert 'cx="400.0"' in chart and 'x1="295.0"' in chart and 'x2="610.0"' in chart
    long = interval_chart("c", [Mark("a" * 40, 0.5, 0.25, 1.0)], "rate")
    assert f">{'a' * 26}…</text>" in long and f"<title>{'a' * 40}: 0.500" in long
    bars = funnel_chart("c", [Mark("half", 0.5, 0.25, 1.0)])
    assert 'width="210.0"' in bars
    counted = [int(n) for n in re.findall(r"<title>(\d+) episodes", histogram("c", [1, 1, 5, 100, 100], 100, "steps"))]
    assert len(counted) == 20 and counted[0] == 3 and counted[-1] == 2 and sum(counted) == 5
    assert "<td>&lt;b&gt;</td>" in table(["a"], [["<b>"]])


def save_run(folder: Path) -> dict:
    """What a finished evaluation leaves: rows with recordings, and the rollouts of these."""
    (folder / "rollouts").mkdir(parents=True)
    summary = varied()
    for index, images in ((3, False), (18, True)):
        row = summary["episodes"][index]
        row["recording"] = f"recordings/{row['start']}.rrd"
        save_to(folder / "rollouts" / f"{row['start']}.npz", make_saved_rollout(images=images))
    return summary


def test_the_gallery_takes_the_rollouts_beside_the_recordings(tmp_path: Path):
    summary = save_run(tmp_path)
    summary["episodes"][4]["recording"] = "recordings/lost.rrd"
    assert write_report(tmp_path, summary) == REPORT
    page = Page((tmp_path / REPORT).read_text())
    assert len(page.attributes("src")) == 8
    assert [title.split(",")[0] for title in page.all("h3")] == ["start 100018", "start 100003"]


def test_the_gallery_shows_some_of_many_recordings(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("embodied.commands.eval_report.MOST_SHOWN", 1)
    write_report(tmp_path, save_run(tmp_path))
    assert [title.split(",")[0] for title in Page((tmp_path / REPORT).read_text()).all("h3")] == ["start 100018"]


def test_a_browser_shows_all_of_it_without_a_request_or_a_complaint(tmp_path: Path):
    program = browser_or_skip()
    summary = save_run(tmp_path)
    summary["setting"] = EVIL
    write_report(tmp_path, summary)
    address = (tmp_path / REPORT).as_uri()
    visible = "e => e.checkVisibility() && e.getBoundingClientRect().height > 0"
    shown = f"[...document.querySelectorAll('%s')].filter({visible}).length"
    expressions = [
        shown % "svg",
        shown % "svg[aria-label=stages] .bar",
        shown % "table",
        "[...document.images].every(image => image.complete && image.naturalWidth > 0) && document.images.length",
        "document.documentElement.scrollWidth <= window.innerWidth",
        "document.scripts.length",
        "document.querySelector('h1').textContent",
    ]
    with Browser(program, tmp_path / "profile") as browser:
        wide = browser.visit(address, expressions, tmp_path / "report.png")
        narrow = browser.visit(address, expressions[4:5], width=420)
    charts, bars, tables, images, fits, scripts, title = wide.values
    assert (charts, bars, images, fits, scripts) == (4, 3, 8, True, 0)
    assert tables == 3 and title == f"robosuite/lift: {EVIL}"
    assert narrow.values == [True], "nothing sticks out on a narrow screen"
    assert {request.partition(":")[0] for request in wide.requests} <= {"file", "data"}
    assert [request for request in wide.requests if request.startswith("file:")] == [address]
    assert wide.complaints == []
    assert (tmp_path / "report.png").stat().st_size > 20_000


def test_the_browser_test_sees_requests_and_complaints(tmp_path: Path):
    """What the test above would miss if it looked at nothing."""
    program = browser_or_skip()
    page = tmp_path / "page.html"
    page.write_text("<img src='missing.png'><script>console.error('bad'); throw new Error('worse')</script>")
    with Browser(program, tmp_path / "profile") as browser:
        visit = browser.visit(page.as_uri(), [])
    assert any(request.endswith("missing.png") for request in visit.requests)
    assert "bad" in json.dumps(visit.complaints) and "worse" in json.dumps(visit.complaints)
