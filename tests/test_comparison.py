"""Paired comparison of evaluations whose outcomes are known by hand."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import matplotlib.image
import pytest
from evaluation_summaries import MACHINE, METHOD, START, A, B, as_summary, evaluation, moved

from embodied.console import table
from embodied.errors import UserError
from embodied.evaluation.comparison import compare
from embodied.evaluation.comparison_plot import success_against_latency
from embodied.evaluation.comparison_report import comparison_figures, comparison_markdown, comparison_table, watched
from embodied.evaluation.statistics import clopper_pearson_interval, described_rate, jeffreys_posterior, wilson_interval
from embodied.evaluation.unpaired_proportions import barnard_p, newcombe_interval
from embodied.summaries import validate_summary


def test_known_discordant_pairs():
    result = compare([evaluation(B, setting="ddim-16"), evaluation(A)], 0.95)
    (pair,) = result["pairs"]
    assert pair["discordant"] == {"only_this": 9, "only_reference": 2}
    assert pair["n"] == 20
    assert pair["p"] == pytest.approx(0.0654, abs=5e-5)
    assert pair["difference"]["estimate"] == pytest.approx(7 / 20)
    assert pair["difference"]["low"] < 7 / 20 < pair["difference"]["high"]
    assert [row["success"]["ever"]["k"] for row in result["rows"]] == [8, 15]
    assert result["rows"][1]["success"]["last"]["k"] == 14
    assert (result["rows"][1]["success"]["ever"]["low"], result["rows"][1]["success"]["ever"]["high"]) == (
        pytest.approx(wilson_interval(15, 20))
    )
    assert (
        "20 shared starts do not tell 'sdp k=2' and 'ddim-16' apart, nor show that they are equal" in pair["sentence"]
    )
    assert "McNemar p 0.065;" in pair["sentence"]


def test_pairs_go_by_start_not_by_position():
    shuffled = evaluation(A)
    shuffled["episodes"] = shuffled["episodes"][::-1]
    (pair,) = compare([evaluation(A, setting="ddim-16"), shuffled])["pairs"]
    assert pair["discordant"] == {"only_this": 0, "only_reference": 0}
    assert pair["p"] == 1.0


def test_a_clear_difference_is_said_in_both_directions():
    worse, better = evaluation("0" * 20, setting="worse"), evaluation("1" * 20, setting="better")
    assert (
        "'better' succeeds more often than 'worse' on 20 shared starts: difference +1.000"
        in compare([worse, better])["pairs"][0]["sentence"]
    )
    assert (
        "'worse' succeeds less often than 'better' on 20 shared starts: difference -1.000"
        in compare([better, worse])["pairs"][0]["sentence"]
    )


def test_several_pairs_are_corrected_by_holm():
    # 6 against 0 has p 0.03125: enough for one test, not for three.
    reference, other = "0" * 6 + "1" * 14, "1" * 20
    one = compare([evaluation(reference, setting="r"), evaluation(other, setting="a")])["pairs"][0]
    three = compare([evaluation(reference, setting="r")] + [evaluation(other, setting=s) for s in "abc"])["pairs"][0]
    assert one["p"] == three["p"] == 0.03125
    assert "succeeds more often" in one["sentence"]
    assert three["p_holm"] == pytest.approx(3 * 0.03125)
    assert "do not tell" in three["sentence"] and "Holm's correction for 3 tests" in three["sentence"]


def test_too_few_starts_are_called_too_few():
    (pair,) = compare([evaluation("11111", setting="a"), evaluation("00000", setting="b")])["pairs"]
    assert pair["smallest_detectable_difference"] is None
    assert "would not reliably reveal even the largest difference" in pair["sentence"]


def test_errors_and_unshared_starts_are_left_out_and_counted():
    longer = evaluation("1" * 12, setting="longer")
    broken = evaluation("e1111e0000", setting="broken")
    result = compare([longer, broken])
    assert result["shared_starts"] == [START + index for index in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert [(row["errors"], row["starts_left_out"]) for row in result["rows"]] == [(0, 4), (2, 0)]
    assert [row["success"]["ever"]["k"] for row in result["rows"]] == [8, 4]
    assert [row["success"]["ever"]["n"] for row in result["rows"]] == [8, 8]
    assert any("'broken': 2 of its episodes could not be run" in warning for warning in result["warnings"])
    assert any("'longer': 4 of its starts are left out" in warning for warning in result["warnings"])


def test_speed_is_relative_to_the_first_and_fair_to_longer_chunks():
    reference = evaluation(A, setting="ddim-16", p50=16.0, action_steps=8)
    timings = compare([reference, evaluation(A, p50=2.0, action_steps=4)])["rows"][1]["timings"]
    assert timings["speed_ratio"] == {"per_observation": pytest.approx(8.0), "per_action": pytest.approx(4.0)}
    assert timings["action_ms_p50"] == pytest.approx(0.5)
    assert timings["first_observation_ms"] == pytest.approx(10.0)


def test_other_machine_or_threads_make_latency_incomparable():
    assert compare([evaluation(A), evaluation(B, setting="b")])["warnings"] == []
    elsewhere = evaluation(B, setting="b", machine={**MACHINE, "cpu": "other", "memory_bytes": 16})
    (warning,) = compare([evaluation(A), elsewhere])["warnings"]
    assert warning == "latency not comparable: 'b' against the reference: cpu other instead of one"
    threaded = evaluation(B, setting="b")
    threaded["timings"]["latency"]["threads"] = 2
    (warning,) = compare([evaluation(A), threaded])["warnings"]
    assert "threads 2 instead of 1" in warning


def test_labels_are_unique_and_no_longer_than_needed():
    def labels(*evaluations: dict) -> list[str]:
        return [row["label"] for row in compare(evaluations)["rows"]]

    other_run = {"run": "outputs/train/lift-sdp-1-abc", "step": 1500, "config_hash": "x", **METHOD}
    assert labels(evaluation(A), evaluation(A, setting="ddim-4")) == ["sdp k=2", "ddim-4"]
    assert labels(evaluation(A), evaluation(A, network="unet")) == ["sdp k=2 transformer", "sdp k=2 unet"]
    assert labels(evaluation(A), evaluation(A, checkpoint=other_run)) == [
        "sdp k=2 lift-sdp-0-abc",
        "sdp k=2 lift-sdp-1-abc",
    ]
    deep = [{**other_run, "run": f"outputs/train/lift-sdp-{seed}-abc/checkpoints/step-1500"} for seed in (0, 1)]
    assert labels(*(evaluation(A, checkpoint=checkpoint) for checkpoint in deep)) == [
        "sdp k=2 lift-sdp-0-abc",
        "sdp k=2 lift-sdp-1-abc",
    ]
    assert labels(evaluation(A), evaluation(A)) == ["sdp k=2", "sdp k=2 #2"]


def of_seed(seed: int, outcomes: str, **changes) -> dict:
    """An evaluation of one method, trained with another seed."""
    checkpoint = {"run": f"outputs/train/lift-{seed}", "step": 1500, "config_hash": f"of seed {seed}", **METHOD}
    return evaluation(outcomes, checkpoint={**checkpoint, "seed": seed}, **changes)


def test_seeds_of_one_method_are_pooled_into_one_row():
    outcomes = ("1110", "1100", "1000")
    seeds = [of_seed(seed, of_one, p50=1.0 + seed) for seed, of_one in enumerate(outcomes)]
    result = compare([evaluation("1111", setting="ddim-16", p50=4.0), *seeds])
    assert [row["label"] for row in result["rows"]] == ["ddim-16", "sdp k=2, 3 seeds"]
    pooled = result["rows"][1]
    assert (pooled["seeds"], pooled["successes_by_seed"]) == ([0, 1, 2], [3, 2, 1])
    posterior = pooled["success"]["ever"].pop("posterior")
    assert (posterior["alpha"], posterior["beta"]) == (2.5, 2.5)
    assert pooled["success"]["ever"] == {
        "k": 6, "n": 12, "rate": 0.5, **dict(zip(("low", "high"), wilson_interval(2, 4), strict=True))
    }  # fmt: skip
    pooled["success"]["ever"]["posterior"] = posterior
    assert pooled["timings"]["observation_ms"]["p50"] == pytest.approx(2.0)
    assert pooled["timings"]["speed_ratio"]["per_observation"] == pytest.approx(2.0)
    (pair,) = result["pairs"]
    assert pair["sequential"] is None, "one seed against three: signs are no fair coin"
    # Starts lose 0, 1, 2 and 3 of 3 seeds: of the 8 ways to flip them only two sum to 6 or more.
    assert (pair["n"], pair["test"], pair["p"]) == (4, "sign flips", pytest.approx(2 / 8))
    assert pair["discordant"] == {"only_this": 0.0, "only_reference": pytest.approx(2.0)}
    assert pair["difference"]["estimate"] == pytest.approx(-0.5)
    assert "3 (seed 0), 2 (seed 1), 1 (seed 2)" in comparison_table(result).caption
    validate_summary("compare", {**as_summary(result), "evaluations": list("abcd")})


def test_a_reference_with_seeds_is_compared_with_the_mean_over_its_seeds():
    better = [of_seed(seed, "11110") for seed in (0, 1)]
    worse = [of_seed(seed, outcomes, setting="ddim-4") for seed, outcomes in enumerate(("00110", "01010"))]
    (pair,) = compare([*better, *worse])["pairs"]
    assert pair["discordant"] == {"only_this": 0.0, "only_reference": pytest.approx(2.0)}
    assert pair["sequential"]["favours"] is None and pair["sequential"]["p"] < 1
    assert pair["p"] == pytest.approx(2 / 8)  # starts differ by 4, 2, 2 and 0 quarters: only all to one side reach 8


def test_nothing_but_seeds_is_pooled():
    def labels(*evaluations: dict, **options) -> list[str]:
        return [row["label"] for row in compare(evaluations, **options)["rows"]]

    assert labels(of_seed(0, A), of_seed(1, A), pool_seeds=False) == ["sdp k=2 lift-0", "sdp k=2 lift-1"]
    assert labels(of_seed(0, A), of_seed(0, A)) == ["sdp k=2", "sdp k=2 #2"]  # one seed twice
    longer = of_seed(1, A)
    longer["checkpoint"]["method_hash"] = "trained longer"
    assert labels(of_seed(0, A), longer) == ["sdp k=2 lift-0", "sdp k=2 lift-1"]
    with pytest.raises(UserError, match="found 2 evaluations of one, trained with different seeds; .*pool_seeds=false"):
        compare([of_seed(0, A), of_seed(1, A)])


def test_a_slower_policy_is_another_method():
    result = compare([of_seed(0, A), of_seed(1, B, delay_steps=2), of_seed(2, A, delay_steps=0)])
    assert [row["label"] for row in result["rows"]] == ["sdp k=2, 2 seeds", "sdp k=2"]
    labels = [row["label"] for row in compare([evaluation(A), evaluation(B, delay_steps=2)])["rows"]]
    assert labels == ["sdp k=2 delay 0", "sdp k=2 delay 2"]


def test_another_executor_is_another_method():
    plain, blended = {"name": "chunk"}, {"name": "weighted_overlap", "overlap": 4}
    result = compare([of_seed(0, A), of_seed(1, B, executor=blended), of_seed(2, A, executor=plain)])
    assert [row["label"] for row in result["rows"]] == ["sdp k=2, 2 seeds", "sdp k=2"]
    labels = [row["label"] for row in compare([evaluation(A), evaluation(B, executor=blended)])["rows"]]
    assert labels == ["sdp k=2 chunk", "sdp k=2 weighted_overlap overlap=4"]
    validate_summary("eval", evaluation(A, executor=blended))
    with pytest.raises(UserError, match="executor"):
        validate_summary("eval", evaluation(A, executor={"overlap": 4}))


def test_fewer_than_two():
    with pytest.raises(UserError, match="expected at least two evaluations; found 1; name two or more"):
        compare([evaluation(A)])


def test_different_tasks():
    with pytest.raises(UserError, match="one task; found robosuite/can, robosuite/lift"):
        compare([evaluation(A), evaluation(A, task="robosuite/can")])


def test_different_horizons():
    with pytest.raises(UserError, match="one horizon; found 100, 200"):
        compare([evaluation(A), evaluation(A, horizon=200)])


def test_without_shared_starts_the_samples_are_compared_as_separate_ones():
    result = compare([evaluation("1" * 12 + "0" * 13, setting="ddim-16"), moved("1" * 18 + "0" * 7, 100)])
    assert result["shared_starts"] == [] and "no shared starts" in comparison_table(result).title
    assert [row["success"]["ever"]["k"] for row in result["rows"]] == [12, 18]
    (pair,) = result["pairs"]
    assert (pair["design"], pair["test"], pair["discordant"], pair["sequential"]) == ("unpaired", "Barnard", None, None)
    assert pair["p"] == pytest.approx(barnard_p(18, 25, 12, 25)) == pytest.approx(0.1108, abs=5e-5)
    difference = pair["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx(newcombe_interval(18, 25, 12, 25))
    assert "25 starts against 25, none of them shared, do not tell" in pair["sentence"]
    assert (
        "no start is shared by all evaluations ('ddim-16': 100000 to 100024; 'sdp k=2': 100100"
        in (result["warnings"][0])
    )
    validate_summary("compare", as_summary(result))


def test_pairs_are_paired_where_they_can_be():
    """The third shares no start with the others, which share theirs."""
    result = compare([evaluation(B, setting="b"), evaluation(A, setting="a"), moved(A, 100, setting="far")])
    assert [pair["test"] for pair in result["pairs"]] == ["McNemar", "Barnard"]
    assert result["pairs"][0]["p"] == pytest.approx(0.0654, abs=5e-5)
    validate_summary("compare", as_summary(result))


def test_separate_samples_take_one_episode_a_start():
    seeds = [moved("1100", 100, checkpoint={**evaluation("1")["checkpoint"], "seed": seed}) for seed in (0, 1)]
    with pytest.raises(UserError, match="one episode a start.*found 2 of 'sdp k=2, 2 seeds'.*pool_seeds=false"):
        compare([evaluation("1100", setting="b"), *seeds])


def test_a_method_without_an_episode():
    broken = evaluation("1", setting="b")
    broken["episodes"][0]["error"] = "the simulator died"
    with pytest.raises(UserError, match="episodes of 'b' that ran; found none without an error"):
        compare([evaluation(A), broken])


def varied(outcomes: dict[str, str], **changes) -> dict:
    """An evaluation in several variants of the scene, with a letter a start for each."""
    summary = evaluation(next(iter(outcomes.values())), **changes)
    summary["episodes"] = [
        {**episode, "variant": variant}
        for variant, of_variant in outcomes.items()
        for episode in evaluation(of_variant)["episodes"]
    ]
    return summary


def test_variants_of_a_start_count_together():
    """The unit stays the start, whose episodes are alike: it needs more starts, not more variants, to tell apart."""
    reference = varied({"base": "1100", "dark": "1000"}, setting="r")
    better = varied({"base": "1111", "dark": "1111", "texture": "0000"}, setting="b")
    result = compare([reference, better])
    assert result["variants"] == ["base", "dark"] and len(result["shared_starts"]) == 4
    assert "4 shared starts, 2 variants" in comparison_table(result).title
    assert [(row["success"]["ever"]["k"], row["success"]["ever"]["n"]) for row in result["rows"]] == [(3, 8), (8, 8)]
    (pair,) = result["pairs"]
    assert (pair["test"], pair["n"], pair["p"]) == ("sign flips", 4, pytest.approx(2 / 8))
    assert result["rows"][1]["starts_left_out"] == 4
    apart = [{"variant": name, "axis": name, "counted": name == "base"} for name in ("base", "dark")]
    assert compare([{**reference, "variants": apart}, better])["variants"] == ["base"]
    with pytest.raises(UserError, match="share a variant of the scene; found 'r': base, dark; 'c': texture"):
        compare([reference, varied({"texture": "1111"}, setting="c")])
    twice = varied({"base": "1"}, setting="c")
    twice["episodes"] *= 2
    with pytest.raises(UserError, match="found start 100000 more than once in 'c'"):
        compare([reference, twice])


def test_policies_that_were_not_trained_here_are_compared_too():
    """Experts and servers: no network, no training step, no seed."""
    nowhere = {"run": "expert task", "step": None, "config_hash": None, "method_hash": "expert task", "seed": None}
    unknown = {"network": None, "parameters": None, "buffer": None, "checkpoint": nowhere}
    result = compare([evaluation(A), evaluation(B, setting="expert task", **unknown), evaluation(A, **unknown)])
    labels = [row["label"] for row in result["rows"]]
    assert labels == ["sdp k=2 transformer", "expert task", "sdp k=2 sdp"]
    validate_summary("compare", as_summary(result))


def test_letters_join_what_is_not_told_apart():
    outcomes = {"best": "1" * 40, "good": "1" * 38 + "00", "bad": "0" * 40}
    result = compare([evaluation(of_one, setting=setting) for setting, of_one in outcomes.items()])
    assert [row["letters"] for row in result["rows"]] == ["a", "a", "b"]
    assert [(pair["a"], pair["b"]) for pair in result["all_pairs"]] == [
        ("best", "good"),
        ("best", "bad"),
        ("good", "bad"),
    ]
    assert result["all_pairs"][0]["p"] == result["all_pairs"][0]["p_holm"] == 0.5
    assert "share a letter are not told apart, after Holm's correction for all 3 pairs" in (
        comparison_table(result).caption
    )
    assert [row["letters"] for row in compare([evaluation(A), evaluation(B, setting="b")])["rows"]] == [None, None]


def test_the_interval_is_a_setting():
    result = compare([evaluation(A), evaluation(B, setting="b")], interval="clopper_pearson")
    ever = result["rows"][0]["success"]["ever"]
    assert (ever["low"], ever["high"]) == pytest.approx(clopper_pearson_interval(15, 20))
    assert ever["posterior"]["high"] == jeffreys_posterior(15, 20).high
    assert "Clopper-Pearson's interval" in comparison_table(result).caption
    with pytest.raises(UserError, match="an interval of wilson, clopper_pearson; found 'wald'"):
        compare([evaluation(A), evaluation(B, setting="b")], interval="wald")


def test_episodes_that_could_not_be_run_give_bounds():
    result = compare([evaluation("1110000000"), evaluation("11100000ee", setting="broken")])
    assert result["rows"][1]["error_bounds"] == {"if_failed": 0.3, "if_succeeded": 0.5}
    (warning,) = [warning for warning in result["warnings"] if "could not be run" in warning]
    assert "success would be 0.300 had all of them failed, and 0.500 had all succeeded" in warning


def test_the_sequential_test_says_when_it_would_have_ended():
    # Seven starts in a row that only one solves: 2^7 B(7.5, 0.5) / pi = 26.8, the first above 20.
    result = compare([evaluation("0" * 20, setting="worse"), evaluation("1" * 20, setting="better")])
    sequential = result["pairs"][0]["sequential"]
    assert (sequential["decided_after"], sequential["favours"]) == (7, "better")
    assert watched(result) == [
        "Looked at after every start, the sequential test of 'better' and 'worse' would have ended after 7 of 20 "
        "starts, for 'better'."
    ]
    undecided = compare([evaluation("0110" * 5, setting="a"), evaluation("1001" * 5, setting="b")])
    assert undecided["pairs"][0]["sequential"]["decided_after"] is None
    assert "would have decided nothing in 20 starts (p 1.000 at any time)" in watched(undecided)[0]
    four = compare([evaluation("0" * 20, setting="worse"), *(evaluation("1" * 20, setting=s) for s in "abc")])
    assert [pair["sequential"]["alpha"] for pair in four["pairs"]] == pytest.approx([0.05 / 3] * 3)
    assert four["pairs"][0]["sequential"]["decided_after"] == 9, "2^9 B(9.5, 0.5) / pi is the first above 60"


def test_a_repeated_start():
    twice = evaluation(A)
    twice["episodes"][1]["start"] = START
    with pytest.raises(UserError, match=r"found start 100000 more than once in 'sdp k=2'"):
        compare([twice, evaluation(A, setting="b")])


def five_rows() -> dict:
    settings = [("ddpm-100", 95.0), ("ddim-16", 15.0), ("ddim-4", 3.9), ("sdp k=2", 2.0), ("sdp k=1", 1.0)]
    outcomes = ["1" * 50, "1" * 50, "1" * 48 + "00", "1" * 49 + "0", "1" * 47 + "000"]
    return compare(
        [evaluation(o, setting=setting, p50=p50) for (setting, p50), o in zip(settings, outcomes, strict=True)]
    )


def test_table_fits_a_hundred_columns_and_says_it_all(capsys):
    result = five_rows()
    drawn = comparison_table(result)
    table(drawn.columns, drawn.rows, title=drawn.title)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 88, "labels have 8 letters of 20"
    assert next(line for line in lines if line.startswith("ddpm-100")).split()[-3:] == ["1", "-", "a"]
    row = next(line for line in lines if line.startswith("sdp k=1"))
    cells = ["sdp", "k=1", "47/50", "[0.84,", "0.98]", "46/50", "2", "1", "1.2", "0.25", "95", "0.250", "a"]
    assert row.split() == cells
    assert "50 shared starts" in lines[0]
    assert "against 'ddpm-100'" in drawn.caption


def test_markdown_holds_table_sentences_and_warnings():
    result = compare([evaluation(A, setting="a|b"), evaluation(B, setting="c", machine={**MACHINE, "cpu": "other"})])
    page = comparison_markdown(result)
    assert "a\\|b" in page
    assert result["pairs"][0]["sentence"] in page
    assert result["warnings"][0] in page
    assert "## Beware" not in comparison_markdown(five_rows())


@pytest.mark.parametrize("name", ["figure", "differences"])
def test_figures_are_drawn(tmp_path: Path, name):
    comparison_figures(five_rows())[name].savefig(tmp_path / "comparison.png")
    image = matplotlib.image.imread(tmp_path / "comparison.png")
    assert image.shape[0] >= 600 and image.shape[1] >= 1000
    colours = image[..., :3]
    assert ((colours.max(axis=-1) - colours.min(axis=-1)) > 0.4).mean() > 0.002  # markers, intervals and labels


def test_the_figure_of_differences_shows_each_interval():
    result = five_rows()
    success, differences = comparison_figures(result)["differences"].axes
    drawn = [tuple(round(x, 4) for x in bar.get_segments()[0][:, 0]) for bar in success.collections]
    rates = [row["success"]["ever"] for row in result["rows"]]
    assert drawn == [(round(rate["low"], 4), round(rate["high"], 4)) for rate in rates]
    assert [text.get_text() for text in differences.get_yticklabels()] == [pair["label"] for pair in result["pairs"]]


def test_labels_of_the_figure_never_cover_each_other():
    rate = {"rate": 1.0, "low": 0.93, "high": 1.0}
    labels = [f"diffusion ddim-{index} unet paper" for index in range(8)]
    figure = success_against_latency("crowd", 0.95, [(label, 2.0 + 0.05 * i, rate) for i, label in enumerate(labels)])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == labels
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


def test_eval_schema_accepts_a_summary_and_refuses_a_wrong_one():
    validate_summary("eval", evaluation("11e0"))
    rate = described_rate(2, 3)
    bounds = {"if_failed": 0.5, "if_succeeded": 0.75}
    newer = {
        "success": {"ever": rate, "last": rate},
        "error_bounds": {"ever": bounds, "last": bounds},
        "report": "report.html",
    }
    validate_summary("eval", {**evaluation("11e0"), **newer})
    nothing_ran = {"success": {"ever": None, "last": None}, "mean_return": None, "mean_steps_to_success": None}
    validate_summary("eval", {**evaluation("1"), **nothing_ran})

    def refused(change) -> None:
        summary = copy.deepcopy(evaluation("1100"))
        change(summary)
        with pytest.raises(UserError):
            validate_summary("eval", summary)

    refused(lambda s: s.pop("success"))
    refused(lambda s: s.update(extra=1))
    refused(lambda s: s.update(command="train"))
    refused(lambda s: s["episodes"][0].update(success_ever=1))
    refused(lambda s: s["episodes"][0].pop("error"))
    refused(lambda s: s["episodes"][0].update(first_success=0))
    refused(lambda s: s["success"]["ever"].update(rate=1.5))
    refused(lambda s: s["timings"]["latency"]["observation_ms"].pop("p95"))
    refused(lambda s: s["timings"]["latency"]["action_ms"].update(p50=0.0))
    refused(lambda s: s["checkpoint"].update(step="last"))


def test_compare_schema_accepts_the_result_and_refuses_a_wrong_one():
    validate_summary("compare", as_summary(five_rows()))
    validate_summary("compare", as_summary(compare([evaluation("1e"), evaluation("0", setting="b")])))
    for path, value in ((("rows",), []), (("pairs", 0, "p"), 1.2), (("surprise",), 1)):
        summary = as_summary(five_rows())
        holder = summary
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        with pytest.raises(UserError):
            validate_summary("compare", summary)
