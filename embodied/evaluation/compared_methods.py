"""What a comparison compares: evaluations grouped into methods, labelled, and reduced to counts of shared starts.

An evaluation is the content of its `summary.json` (schemas/eval.schema.json).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from embodied.catalog import CHUNK_EXECUTOR, in_words
from embodied.errors import UserError
from embodied.evaluation.result_file import BASE
from embodied.evaluation.statistics import error_bounds
from embodied.types import Json

# What evaluations of one method have in common, besides what the checkpoint says.
METHOD = (
    "policy",
    "network",
    "setting",
    "run_time_settings",
    "action_steps",
    "delay_steps",
    "action_noise",
    "executor",
)


def method_facts(evaluation: Json, keys: Sequence[str]) -> list[object]:
    """What an evaluation says of its method; None for what earlier versions did not say, and what they had instead."""
    facts = {**evaluation, "executor": None if executor_of(evaluation) == CHUNK_EXECUTOR else executor_of(evaluation)}
    return [facts.get(key) or None for key in keys]


def executor_of(evaluation: Json) -> Json:
    """Name and settings."""
    return evaluation.get("executor", CHUNK_EXECUTOR)


@dataclass(frozen=True)
class Method:
    """What one row of a comparison shows: the evaluations of one method, one for each seed that it was trained with."""

    label: str
    evaluations: tuple[Json, ...]
    episodes: tuple[dict[tuple[int, str], Json], ...]  # of each evaluation those without an error, by start and variant

    @property
    def starts(self) -> list[int]:
        """Start ids that an episode without an error began at, in order."""
        return sorted({start for of_one in self.episodes for start, _ in of_one})

    @property
    def ran(self) -> int:
        """Episodes without an error."""
        return sum(len(of_one) for of_one in self.episodes)

    def errors(self) -> Json:
        """How many of all its episodes could not be run, and the success rate had they failed or succeeded."""
        solved = sum(episode["success_ever"] for of_one in self.episodes for episode in of_one.values())
        errors = sum(len(evaluation["episodes"]) for evaluation in self.evaluations) - self.ran
        return {"errors": errors, "error_bounds": error_bounds(solved, self.ran, errors)}

    @property
    def variants(self) -> set[str]:
        """Of the scene, those that every seed was evaluated on, without those that an evaluation keeps out of its mean
        (`counted`), such as other camera poses."""
        common = set.intersection(*({variant for _, variant in of_one} for of_one in self.episodes))
        apart = {
            described["variant"]
            for evaluation in self.evaluations
            for described in evaluation.get("variants", [])
            if not described["counted"]
        }
        return common - apart or common

    def complete_starts(self, variants: Collection[str]) -> set[int]:
        """Starts that every seed ran in each of these variants without an error."""
        return {
            start
            for start in self.starts
            if all((start, variant) in of_one for of_one in self.episodes for variant in variants)
        }


@dataclass(frozen=True)
class Outcomes:
    """Successes of a method on chosen starts, each in the same variants."""

    starts: tuple[int, ...]
    episodes_each: int  # episodes from one start: seeds of the training times variants
    ever: dict[int, int]  # successes by start
    last: dict[int, int]
    ever_by_seed: tuple[int, ...]  # successes of each evaluation

    @property
    def n(self) -> int:
        return len(self.starts) * self.episodes_each

    @property
    def k(self) -> int:
        return sum(self.ever.values())

    def rate(self, start: int) -> float:
        return self.ever[start] / self.episodes_each


def outcomes(method: Method, starts: Collection[int], variants: Collection[str]) -> Outcomes:
    """Count what the method did on starts that it is complete on."""

    def solved(of_one: dict[tuple[int, str], Json], start: int, mode: str) -> int:
        return sum(of_one[start, variant][f"success_{mode}"] for variant in variants)

    ordered = tuple(sorted(starts))
    ever, last = (
        {start: sum(solved(of_one, start, mode) for of_one in method.episodes) for start in ordered}
        for mode in ("ever", "last")
    )
    by_seed = tuple(sum(solved(of_one, start, "ever") for start in ordered) for of_one in method.episodes)
    return Outcomes(ordered, len(method.episodes) * len(variants), ever, last, by_seed)


def grouped_methods(evaluations: Sequence[Json], pool_seeds: bool) -> list[Method]:
    """Evaluations of one task by method, in order of first appearance, each with a label of its own.

    Raises:
        UserError: an episode twice in one evaluation.
    """
    groups = _groups(evaluations, pool_seeds)
    return [
        Method(label, group, tuple(_by_start(evaluation, label) for evaluation in group))
        for label, group in zip(_labels(groups), groups, strict=True)
    ]


def _groups(evaluations: Sequence[Json], pool_seeds: bool) -> list[tuple[Json, ...]]:
    """Evaluations by method, in order of first appearance; a method with a seed twice is not pooled."""
    groups: dict[str, list[Json]] = {}
    for index, evaluation in enumerate(evaluations):
        checkpoint = evaluation["checkpoint"]
        identity = json.dumps([*method_facts(evaluation, METHOD), checkpoint["method_hash"], checkpoint["step"]])
        groups.setdefault(identity if pool_seeds else str(index), []).append(evaluation)
    methods = []
    for group in groups.values():
        seeds = {evaluation["checkpoint"]["seed"] for evaluation in group}
        methods += [tuple(group)] if len(seeds) == len(group) else [(evaluation,) for evaluation in group]
    return methods


def _labels(methods: Sequence[tuple[Json, ...]]) -> list[str]:
    """One label each: the setting; where that is not unique, with executor, delay, network, run, seeds or a number."""
    first = [method[0] for method in methods]
    labels = [
        evaluation["setting"] + (f", {len(method)} seeds" if len(method) > 1 else "")
        for evaluation, method in zip(first, methods, strict=True)
    ]
    additions: tuple[Callable[[Sequence[Json]], list[str]], ...] = (
        lambda group: [in_words(executor_of(evaluation)) for evaluation in group],
        lambda group: [f"delay {evaluation.get('delay_steps', 0)}" for evaluation in group],
        lambda group: [f"action noise {evaluation.get('action_noise', 0):g}" for evaluation in group],
        lambda group: [evaluation["network"] or evaluation["policy"] for evaluation in group],
        lambda group: _telling_part([evaluation["checkpoint"]["run"] for evaluation in group]),
        lambda group: [f"step {evaluation['checkpoint']['step']}" for evaluation in group],
    )
    for addition in additions:
        for label in set(labels):
            group = [index for index, other in enumerate(labels) if other == label]
            added = addition([first[index] for index in group])
            if len(set(added)) > 1:
                for index, text in zip(group, added, strict=True):
                    labels[index] = f"{label} {text}"
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[index] = f"{label} #{seen[label]}"
    return labels


def _telling_part(paths: Sequence[str]) -> list[str]:
    """Of each path the last folder by which they differ, such as the run's name before `checkpoints/step-1500`."""
    for parts in zip(*(reversed(Path(path).parts) for path in paths), strict=False):
        if len(set(parts)) > 1:
            return list(parts)
    return [Path(path).name for path in paths]


def _by_start(evaluation: Json, label: str) -> dict[tuple[int, str], Json]:
    addresses = [(episode["start"], episode.get("variant", BASE)) for episode in evaluation["episodes"]]
    (start, variant), times = Counter(addresses).most_common(1)[0] if addresses else ((0, BASE), 0)
    if times > 1:
        where = "" if variant == BASE else f" in variant '{variant}'"
        raise UserError(
            expected="each start once in an evaluation",
            found=f"start {start}{where} more than once in '{label}'",
            remedy="evaluate again with force=true, one episode a start",
        )
    episodes = zip(addresses, evaluation["episodes"], strict=True)
    return {address: episode for address, episode in episodes if episode["error"] is None}


@dataclass(frozen=True)
class Row:
    """A method and what it did on the starts that its row shows."""

    method: Method
    outcomes: Outcomes

    @property
    def label(self) -> str:
        return self.method.label


@dataclass(frozen=True)
class ComparedRows:
    """The methods of one task, and what they are compared on."""

    rows: list[Row]
    shared: set[int]  # starts; none: each row has all its own
    variants: set[str]  # of the scene


def compared_rows(evaluations: Sequence[Json], pool_seeds: bool) -> ComparedRows:
    """Reduce evaluations of one task to what their methods did on the starts that all share.

    Raises:
        UserError: different tasks or horizons, a start twice in one evaluation, no variant of the scene in common, or
            a method without an episode.
    """
    _check_comparable(evaluations)
    methods = grouped_methods(evaluations, pool_seeds)
    variants = _common_variants(methods)
    complete = [method.complete_starts(variants) for method in methods]
    for method, starts in zip(methods, complete, strict=True):
        if not starts:
            raise UserError(
                expected=f"episodes of '{method.label}' that ran",
                found="none without an error on a start that all its evaluations have",
                remedy="evaluate it again with force=true",
            )
    shared = set.intersection(*complete)
    rows = [
        Row(method, outcomes(method, shared or starts, variants))
        for method, starts in zip(methods, complete, strict=True)
    ]
    return ComparedRows(rows, shared, variants)


def _check_comparable(evaluations: Sequence[Json]) -> None:
    for key, name in (("task", "task"), ("horizon", "horizon")):
        found = sorted({evaluation[key] for evaluation in evaluations})
        if len(found) > 1:
            raise UserError(
                expected=f"evaluations with one {name}",
                found=", ".join(str(value) for value in found),
                remedy=f"compare only evaluations whose {name} is the same, or evaluate again",
            )


def _common_variants(methods: Sequence[Method]) -> set[str]:
    """Of the scene, those that every method was evaluated in.

    Raises:
        UserError: none.
    """
    ran = [method for method in methods if method.starts]
    variants = set.intersection(*(method.variants for method in ran)) if ran else {BASE}
    if not variants:
        had = "; ".join(f"'{method.label}': {', '.join(sorted(method.variants)) or 'none'}" for method in methods)
        raise UserError(
            expected="evaluations that share a variant of the scene", found=had, remedy="evaluate them in the same ones"
        )
    return variants


def error_warning(label: str, row: Json) -> str | None:
    """What to say of a row with episodes that could not be run."""
    if not row["errors"]:
        return None
    bounds = row["error_bounds"]
    return (
        f"'{label}': {row['errors']} of its episodes could not be run; their starts are left out. Its success would be "
        f"{bounds['if_failed']:.3f} had all of them failed, and {bounds['if_succeeded']:.3f} had all succeeded"
    )
