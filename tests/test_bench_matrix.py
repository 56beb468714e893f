"""Tables of runs: their cells, what is kept of each, and how a table goes on."""

from __future__ import annotations

import json

import pytest

from embodied.catalog import TASKS, is_known
from embodied.commands import bench, bench_matrix
from embodied.commands.bench_matrix import Cell, read_matrix
from embodied.commands.matrix_cells import chosen
from embodied.configuration import check
from embodied.errors import UserError

PATHS = {"adroit_teachers": "/teachers", "pusht_demonstrations": "/pusht.zarr"}
REACH = Cell("metaworld/reach-v3", "no noise", ("episodes=2", "noise=0", "noise_bound=0"))


def bench_config(tmp_path, *overrides):
    return check("bench", [f"run_root={tmp_path}/runs", f"results={tmp_path}/results", "workers=1", *overrides])


@pytest.fixture
def one_cell(monkeypatch):
    """A table of two small demonstrations."""
    cells = [REACH]
    monkeypatch.setattr(bench_matrix, "read_matrix", lambda what: ("collect", cells))
    return cells


@pytest.mark.parametrize("what", ["experts", "policies"])
def test_every_cell_is_a_command_that_composes(what):
    command, cells = read_matrix(what)
    assert len({cell.file for cell in cells}) == len(cells)
    tried = set()
    for cell in cells:
        assert is_known(TASKS, cell.task)
        assert cell.places <= PATHS.keys()
        if cell.overrides not in tried:
            tried.add(cell.overrides)
            config = check(command, cell.command_line(PATHS))
            assert config.task.name == cell.task


def test_families_are_spelled_out():
    _, cells = read_matrix("experts")
    assert sum(cell.task.startswith("metaworld/") for cell in cells) == 50
    assert {cell.task for cell in cells if cell.task.startswith("robosuite/")} >= {"robosuite/lift", "robosuite/square"}


def test_a_cell_is_a_run_and_the_table_goes_on_from_its_cells(one_cell, tmp_path, monkeypatch, capsys):
    path = bench.run(bench_config(tmp_path, "what=experts"))
    summary = json.loads(path.read_text())
    kept = json.loads((tmp_path / "results" / "cells" / REACH.file).read_text())
    assert summary["rows"] == [kept]
    assert kept["success"]["k"] == 2
    assert kept["noise"] == 0
    page = (tmp_path / "results" / "README.md").read_text()
    assert "| `metaworld/reach-v3` | task | 0 | 2/2 | 1.000" in page

    def never(*_):
        raise AssertionError("the cell was run again")

    monkeypatch.setattr(bench_matrix, "_run_cell", never)
    (tmp_path / "results" / "README.md").unlink()
    bench.run(bench_config(tmp_path, "what=experts"))
    assert (tmp_path / "results" / "README.md").read_text() == page


def test_a_cell_that_fails_leaves_the_others(one_cell, tmp_path, capsys):
    one_cell.insert(0, Cell("metaworld/push-v3", "broken", ("episodes=0",)))
    with pytest.raises(UserError, match=r"1 failed: metaworld/push-v3, broken"):
        bench.run(bench_config(tmp_path, "what=experts"))
    assert "episodes of at least 1" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "results" / "cells").iterdir()] == [REACH.file]
    assert not list((tmp_path / "runs" / "bench").glob("*/summary.json"))


def test_cells_wait_for_the_paths_that_they_need(one_cell, tmp_path, capsys):
    one_cell[:] = [Cell("adroit/door", "no noise", ("expert=npz", "expert.path={adroit_teachers}/door.npz"))]
    bench.run(bench_config(tmp_path, "what=experts"))
    assert "adroit/door, no noise: left out, needs paths.adroit_teachers=..." in capsys.readouterr().out


def test_only_must_fit_a_cell(one_cell, tmp_path):
    with pytest.raises(UserError, match="tasks of the table in only=.*'metaworld/raech-v3'.*did you mean"):
        bench.run(bench_config(tmp_path, "what=experts", "only=metaworld/raech-v3"))


@pytest.mark.parametrize("word", ["list=true", "stage=pages", "plan=ablations", "time_budget_min=5"])
def test_settings_of_bench_policy_are_not_taken_for_those_of_a_table(one_cell, tmp_path, word):
    with pytest.raises(
        UserError, match=f"`embodied bench policies`, a table of runs; found (?i:{word}).*bench policy`"
    ):
        bench.run(bench_config(tmp_path, "what=policies", word))
    assert not (tmp_path / "results").exists()


def test_only_fits_tasks_and_labels():
    _, cells = read_matrix("policies")
    images = chosen(cells, "*, images")
    assert {cell.task for cell in images} == {"robosuite/lift", "pusht/pixels"}
    assert len(chosen(cells, ["robosuite/lift", "*, images"])) == 3
    assert chosen(cells, None) == cells


def test_a_damaged_cell_is_named(one_cell, tmp_path):
    (tmp_path / "results" / "cells").mkdir(parents=True)
    (tmp_path / "results" / "cells" / REACH.file).write_text("{")
    with pytest.raises(UserError, match=rf"a cell's results in .*{REACH.file}"):
        bench.run(bench_config(tmp_path, "what=experts"))


def test_results_that_cannot_be_written_are_found_out_first(one_cell, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="a folder for results at"):
        bench.run(bench_config(tmp_path, "what=experts"))
