"""Names stand for things without importing them; whole families are known by their configurations."""

from __future__ import annotations

import subprocess
import sys

import pytest

from embodied.catalog import EXPERTS, TASKS, is_known, lookup, names
from embodied.errors import UserError

FAMILY = {"metaworld/*": "toy_specs:ReachTask", "toy/*": "toy_specs:ReachExpert", "toy/one": "toy_specs:ReachTask"}


def test_a_family_is_known_by_its_configurations():
    known = names({"metaworld/*": "nowhere:Nothing"})
    assert len(known) == 50 and "metaworld/reach-v3" in known and known == sorted(known)
    assert is_known(TASKS, "metaworld/reach-v3") and is_known(EXPERTS, "metaworld/reach-v3")
    assert not is_known(TASKS, "metaworld/reach-v2") and not is_known(TASKS, "metaworld/*")
    assert not is_known(TASKS, "metaworld") and not is_known(TASKS, "reach-v3")


def test_a_family_without_configurations_takes_any_name_and_names_of_its_own_come_first():
    assert names(FAMILY)[-2:] == ["toy/*", "toy/one"]
    assert lookup("task", FAMILY, "toy/anything").__name__ == "ReachExpert"
    assert lookup("task", FAMILY, "toy/a/b").__name__ == "ReachExpert"
    assert lookup("task", FAMILY, "toy/one").__name__ == "ReachTask"


def test_a_wrong_name_of_a_family_gets_the_nearest():
    with pytest.raises(
        UserError, match=r"'metaworld/rech-v3'; did you mean 'metaworld/reach-v3'\? known: .*metaworld/assembly-v3,"
    ):
        lookup("task", TASKS, "metaworld/rech-v3")


def test_naming_a_task_imports_no_simulator():
    code = "import sys; from embodied.catalog import TASKS, names; names(TASKS); print('mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
