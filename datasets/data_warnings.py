"""What in a store will hurt training, in plain words, each with what to do."""

from __future__ import annotations

from collections.abc import Sequence

from embodied.datasets.episode_measures import EpisodeMeasure, StoreMeasures
from embodied.types import Json, TaskSpec

CONSTANT_RANGE = 1e-4  # `normalize.SMALLEST_RANGE`, below which training takes an element for a constant
MIDDLE_SHARE = 1 / 3  # of the range: 99 % of the values in less than this, and outliers stretch it
MUCH_CLIPPED = 0.05  # of the steps, at one bound
LONG_IDLE_S = 2.0  # in a row
MUCH_IDLE = 0.2  # of all steps
SHORT_STEPS = 16  # a chunk of the usual length
SHORT_SHARE = 0.25  # of the median length
FEW_EPISODES = 10
NAMED = 5  # episodes named in a sentence, at most


def data_warnings(report: Json, measures: StoreMeasures, spec: TaskSpec) -> list[Json]:
    """Each as `kind` and `text`; the worst kinds first.

    Args:
        report: what `data_report.describe_data` has found so far.
    """
    episodes = measures.episodes
    binary = dict(zip(spec.action.elements, spec.action.binary, strict=True))
    found: list[tuple[str, str]] = []
    for element in report["elements"]:
        is_binary = element["key"] == "action" and binary[element["element"]]
        found += _of_element(element, is_binary)
    found += [("saturated", text) for clipped in report["clipped"] for text in _saturated(clipped)]
    found += _idle(report, episodes, spec)
    found += _duplicates(report["duplicates"])
    found += _gaps(episodes, spec) if measures.is_recorded else []
    found += _short(report, episodes)
    found += _successes(report) if measures.is_recorded else []
    for images in report["images"]:
        found += _dark(images)
    return [{"kind": kind, "text": text} for kind, text in found]


def _of_element(element: Json, is_binary: bool) -> list[tuple[str, str]]:
    name = f"{element['key']} {element['element']}"
    span = element["maximum"] - element["minimum"]
    if span < CONSTANT_RANGE:
        return [("constant", f"{name} never varies ({element['mean']:.4g}): a policy can learn nothing from it")]
    middle = element["q995"] - element["q005"]
    if is_binary or middle >= MIDDLE_SHARE * span:
        return []
    text = (
        f"{name}: 99 % of the values lie in {middle / span:.1%} of the range {element['minimum']:.4g} to "
        f"{element['maximum']:.4g}: outliers stretch it, and scaling leaves the rest little room; look at them"
    )
    return [("outliers", text)]


def _saturated(clipped: Json) -> list[str]:
    return [
        f"action {clipped['element']} is at its {bound} bound in {clipped[key]:.0%} of the steps: "
        "what the demonstrator wanted beyond it is lost"
        for bound, key in (("lower", "at_low"), ("upper", "at_high"))
        if clipped[key] > MUCH_CLIPPED
    ]


def _idle(report: Json, episodes: Sequence[EpisodeMeasure], spec: TaskSpec) -> list[tuple[str, str]]:
    found = []
    most = LONG_IDLE_S * spec.control_hz
    long = sorted((e for e in episodes if e.longest_idle > most), key=lambda e: -e.longest_idle)
    if long:
        text = (
            f"{_count(len(long), 'episode')} without motion for more than {LONG_IDLE_S:g} s at a stretch, the longest "
            f"for {long[0].longest_idle / spec.control_hz:.1f} s ({_named(long)}): a policy that sees no more than the "
            "present learns to stay there"
        )
        found.append(("idle", text))
    if report["idle"]["share"] > MUCH_IDLE:
        text = f"{report['idle']['share']:.0%} of all steps command no motion: consider leaving them out"
        found.append(("idle", text))
    return found


def _duplicates(groups: list[list[int]]) -> list[tuple[str, str]]:
    if not groups:
        return []
    surplus = sum(len(group) - 1 for group in groups)
    pairs = "; ".join(" = ".join(map(str, group[:NAMED])) for group in groups[:NAMED])
    text = (
        f"{_count(surplus, 'episode')} with the very states and actions of another one "
        f"({pairs}{' ...' if len(groups) > NAMED else ''}): "
        "they count twice in training, and held-out episodes may be among them"
    )
    return [("duplicates", text)]


def _gaps(episodes: Sequence[EpisodeMeasure], spec: TaskSpec) -> list[tuple[str, str]]:
    late = sorted((e for e in episodes if e.gaps), key=lambda e: -e.largest_gap_s)
    if not late:
        return []
    text = (
        f"{_count(sum(e.gaps for e in late), 'gap')} in time, the longest of {late[0].largest_gap_s:.3g} s where a "
        f"step takes {spec.dt_s:.3g} s ({_named(late)}): actions there do not lead from one row to the next"
    )
    return [("gaps", text)]


def _short(report: Json, episodes: Sequence[EpisodeMeasure]) -> list[tuple[str, str]]:
    least = max(SHORT_STEPS, SHORT_SHARE * report["lengths"]["median"])
    short = sorted((e for e in episodes if e.length < least), key=lambda e: e.length)
    found = []
    if short:
        text = (
            f"{_count(len(short), 'episode')} shorter than {least:.0f} steps, the shortest of {short[0].length} "
            f"({_named(short)}): cut off, or mostly padding in windows of a chunk"
        )
        found.append(("short", text))
    if len(episodes) < FEW_EPISODES:
        found.append(("few", f"only {_count(len(episodes), 'episode')}: too few to learn a task that varies"))
    return found


def _successes(report: Json) -> list[tuple[str, str]]:
    if report["successes"] == report["episodes"]:
        return []
    failed = report["episodes"] - report["successes"]
    text = f"{failed} of {report['episodes']} episodes never succeed: a policy imitates them like the others"
    return [("failures", text)]


def _dark(images: Json) -> list[tuple[str, str]]:
    bad = max(images["black"], images["even"])
    if not bad:
        return []
    word = "black" if images["black"] >= images["even"] else "of one colour"
    return [("images", f"camera {images['camera']}: {bad} of {images['looked_at']} images looked at are {word}")]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _named(episodes: Sequence[EpisodeMeasure]) -> str:
    names = ", ".join(str(episode.seed) for episode in episodes[:NAMED])
    return f"episode{'' if len(episodes) == 1 else 's'} {names}{' ...' if len(episodes) > NAMED else ''}"
