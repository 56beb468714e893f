"""The `embodied` command as a user meets it: subprocesses where the process matters, `main` elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors import SafetensorError

from embodied import cli, completion
from embodied.configuration import check, is_override, quote
from embodied.errors import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder; `left` tests that nothing is left there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMBODIED_TRACEBACK", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Replace the module behind `train` (and `replay`, `compare`); returns the configurations it was run with."""
    seen = []
    module = types.ModuleType("fake_command")

    def run(config):
        seen.append(OmegaConf.to_container(config))
        return module.result(config)

    module.run, module.result = run, lambda config: Path(f"runs/{config.get('seed', 0)}/summary.json")
    monkeypatch.setitem(sys.modules, "fake_command", module)
    for name in ("train", "replay", "compare"):
        monkeypatch.setitem(cli.COMMANDS, name, cli.COMMANDS[name]._replace(module="fake_command"))
    seen_and_module = types.SimpleNamespace(seen=seen, module=module)
    return seen_and_module


def run_main(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code or 0


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("embodied: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_command_and_imports_neither_torch_nor_hydra():
    program = (
        "import sys, embodied.cli\n"
        "try: embodied.cli.main(['--help'])\n"
        "finally: sys.stderr.write(' '.join(m for m in ('torch', 'hydra', 'rich', 'numpy') if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    for name, command in cli.COMMANDS.items():
        assert f"{name} " in done.stdout
        assert command.description in done.stdout


def test_checking_a_configuration_imports_no_torch():
    program = "import sys, embodied.configuration as c; c.check('train', []); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_a_command_it_helps(capsys):
    assert run_main() == 0
    assert capsys.readouterr().out.startswith("usage: embodied <command>")


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"]])
def test_version_is_ours(words, capsys):
    assert run_main(*words) == 0
    assert capsys.readouterr().out == "embodied 0.1.0\n"


def test_help_of_a_command_shows_groups_and_configuration(capsys):
    assert run_main("train", "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: embodied train [group=option]")
    assert "policy: diffusion, flow_matching, rnr, sdp\n" in text
    assert "\n  initialization: denoise\n" in text
    assert "hydra" not in text.lower()


def test_a_reader_that_leaves_early_sees_no_traceback():
    program = "from embodied.cli import main; main(['train', '--help'])"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.READER_GONE


def test_cfg_prints_the_composed_configuration_and_runs_nothing(fake, capsys):
    assert run_main("train", "policy=diffusion", "--cfg", "job", "seed=7") == 0
    config = OmegaConf.create(capsys.readouterr().out)
    assert (config.policy.name, config.seed) == ("diffusion", 7)
    assert fake.seen == []


def test_cfg_works_without_the_mandatory_run(capsys):
    assert run_main("replay", "--cfg", "job") == 0
    assert "run: ???" in capsys.readouterr().out


def test_info_shows_how_it_was_composed():
    # In a process of its own: Hydra adds a logging handler.
    done = subprocess.run(
        [sys.executable, "-c", "from embodied.cli import main; main()", "train", "--info", "defaults"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "policy/sdp" in done.stdout


@pytest.mark.parametrize(
    ("words", "found", "remedy"),
    [
        (["tran"], "'tran'", "did you mean 'train'?"),
        (["train", "polcy=sdp"], "'polcy'", "did you mean 'policy'?"),
        (["train", "policy=spd"], "'policy=spd'", "did you mean 'sdp'? known: diffusion, flow_matching, rnr, sdp"),
        (["train", "task=robosuite/lif"], "'task=robosuite/lif'", "did you mean 'robosuite/lift'?"),
        (["train", "policy.kk=1"], "'policy.kk'", "did you mean 'policy.k'?"),
        (["train", "policy=diffusion", "policy.cals=1"], "'policy.cals'", "did you mean 'policy.calls'?"),
        (["train", "initial_calls=1"], "'initial_calls'", "did you mean 'policy.initial_calls'?"),
        (["train", "collection=expert"], "'collection'", "did you mean 'collection@collect'?"),
        (["train", "~sed"], "'sed'", "did you mean 'seed'?"),
        (["train", "policy.k=[1"], "'policy.k=[1'", "in quotes"),
        (["train", "seed=1,2"], "several in 'seed=1,2'", "add -m"),
        (["train", "seed=${no.where}"], "no.where", "see embodied train --help"),
        (["train", "-m", "policy=sdp,spd"], "'policy=spd'", "did you mean 'sdp'?"),
        (["train", "somewhere"], "the stray word 'somewhere'", "key=value"),
        (["replay", "a", "b"], "the stray word 'b'", "key=value"),
        (["replay"], "none", "usage: embodied replay RUN "),
        (["compare"], "none", "usage: embodied compare RUN RUN ... "),
        (["data"], "none", "usage: embodied data WHAT STORE "),
        (["data", "verify"], "none", "usage: embodied data WHAT STORE "),
        (["data", "verify", "a", "b"], "the stray word 'b'", "key=value"),
        (["data", "verfy", "a"], "'verfy'", "did you mean 'verify'? known: convert, repair, stats, verify"),
        (["data", "verify", "a", "drop_damged=true"], "'drop_damged'", "did you mean 'drop_damaged'?"),
        (["data", "repair", "a", "drop_damaged=yes"], "drop_damaged=yes", "true or false"),
        (["train", "--multrun"], "--multrun", "did you mean '--multirun'?"),
        (["--halp"], "'--halp'", "did you mean '--help'?"),
        (["train", "--experimental-rerun", "x"], "--experimental-rerun", "--config-dir"),
        (["--install-completion", "fsh"], "'fsh'", "did you mean 'fish'?"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(words, found, remedy, capsys, empty_folder):
    assert run_main(*words) == 2
    line = one_line(capsys)
    assert f"found {found}" in line or found in line.partition("found ")[2].partition("; ")[0]
    assert remedy in line
    assert list(empty_folder.iterdir()) == []


def test_the_summary_is_the_last_line_and_hydra_leaves_nothing(fake, capsys, empty_folder):
    assert run_main("train", "seed=3", "policy.k=1") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/3/summary.json"
    assert fake.seen[0]["policy"]["k"] == 1
    assert "hydra" not in fake.seen[0]
    assert list(empty_folder.iterdir()) == []


def test_multirun_runs_every_value_and_leaves_nothing(fake, capsys, empty_folder):
    assert run_main("train", "-m", "seed=0,1", "policy.k=1") == 0
    assert [(c["seed"], c["policy"]["k"]) for c in fake.seen] == [(0, 1), (1, 1)]
    assert capsys.readouterr().out.splitlines() == ["runs/0/summary.json", "runs/1/summary.json"]
    assert list(empty_folder.iterdir()) == []


def test_multirun_goes_on_after_a_failed_job_and_says_so(fake, capsys):
    def result(config):
        if config.seed == 0:
            raise UserError(expected="a", found="b", remedy="c")
        return Path("fine")

    fake.module.result = result
    assert run_main("train", "-m", "seed=0,1") == 2
    captured = capsys.readouterr()
    assert captured.err == "embodied: error: expected a; found b; c\n"
    assert captured.out == "fine\n"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "outputs/train/lr=0.1",
        "/some where/c,d",
        "dir [1]/{x}",
        "it's",
        'say "x"',
        "back\\slash\\",
        "back\\'mixed",
        "${oc.env:HOME}",
        "(a)",
        "null",
        "12",
        "tail\\\\",
        "~/runs/x",
        " ",
    ],
)
def test_quoted_text_means_itself_in_hydras_grammar(text):
    value = OverridesParser.create().parse_override(f"key={quote(text)}").value()
    assert OmegaConf.create({"key": value}).key == text


def test_paths_reach_the_command_as_they_are(fake):
    paths = ["outputs/train/lr=0.1", "a b,c [1]", "it's", "./run=3", "12", "${x}"]
    assert run_main("compare", *paths) == 0
    assert run_main("replay", paths[0]) == 0
    assert fake.seen[0]["runs"] == [*paths[:-1], "\\${x}"]  # as written; reading it gives ${x}
    assert OmegaConf.create(fake.seen[0]).runs[-1] == "${x}"
    assert fake.seen[1]["run"] == paths[0]


def test_paths_survive_a_multirun(fake):
    assert run_main("compare", "a,b=c", "d e", "-m", "confidence=0.9,0.95") == 0
    assert [(seen["runs"], seen["confidence"]) for seen in fake.seen] == [
        (["a,b=c", "d e"], 0.9),
        (["a,b=c", "d e"], 0.95),
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=1", True),
        ("a.b=1", True),
        ("+a=1", True),
        ("++a.b=x/y", True),
        ("~a", True),
        ("policy=sdp", True),
        ("task/robosuite=lift", True),
        ("collection@collect=expert", True),
        ("hydra/launcher=basic", True),
        ("outputs/train/a=1", False),
        ("/a=1", False),
        ("./a=1", False),
        ("~/a", False),
        ("name", False),
    ],
)
def test_what_is_an_override(word, expected):
    assert is_override(word) is expected


def test_config_dir_adds_groups_of_ones_own(fake, empty_folder):
    (empty_folder / "mine" / "policy").mkdir(parents=True)
    (empty_folder / "mine" / "policy" / "own.yaml").write_text("name: own\n")
    assert run_main("train", "--config-dir", "mine", "policy=own") == 0
    assert fake.seen[0]["policy"] == {"name": "own"}


def test_a_group_of_ones_own_is_read_anew_each_time(fake, empty_folder):
    option = empty_folder / "mine" / "policy" / "own.yaml"
    option.parent.mkdir(parents=True)
    for default, given in (("1", "2"), ("[1]", "[2]")):
        option.write_text(f"name: own\nspeed: {default}\n")
        assert run_main("train", "--config-dir", "mine", "policy=own", f"policy.speed={given}") == 0
    assert [seen["policy"]["speed"] for seen in fake.seen] == [2, [2]]


def test_a_user_error_has_no_traceback_unless_asked_for(fake, capsys, monkeypatch):
    def result(config):
        raise UserError(expected="a store", found="two\nlines", remedy="collect")

    fake.module.result = result
    assert run_main("train") == 2
    assert one_line(capsys) == "embodied: error: expected a store; found two lines; collect\n"
    monkeypatch.setenv("EMBODIED_TRACEBACK", "1")
    assert run_main("train") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(fake, capsys):
    def result(config):
        raise RuntimeError("a bug")

    fake.module.result = result
    assert run_main("train") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "RuntimeError: a bug" in error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/train/x"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "outputs/train/x"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_that_says_what_to_do(fake, capsys, error):
    def result(config):
        raise error

    fake.module.result = result
    assert run_main("train") == cli.USAGE_ERROR
    line = one_line(capsys)
    assert "expected room on the disk" in line and "free some space, then give the same command again" in line
    assert "No space left on device" in line or "quota exceeded" in line


def test_ctrl_c_tells_how_to_resume(fake, capsys):
    def result(config):
        raise KeyboardInterrupt

    fake.module.result = result
    assert run_main("train", "data.store=a b") == 130
    assert "the same command resumes it: embodied train 'data.store=a b'" in capsys.readouterr().err


def test_check_returns_the_composed_configuration():
    assert check("train", ["policy.k=1"]).policy.k == 1
    assert check("replay", [f"run={quote('a=b, c')}"]).run == "a=b, c"


def complete(line: str, capsys, monkeypatch) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert run_main("-sc", "query=fish") == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("embodied tr", ["train "]),
        ("embodied co", ["collect ", "compare "]),
        ("embodied --v", ["--version"]),
        ("embodied train policy=s", ["policy=sdp"]),
        ("embodied train task=robosuite/l", ["task=robosuite/lift"]),
        ("embodied train -m policy=diffusion policy.cal", ["policy.calls="]),
        ("embodied eval outputs/x=1 episod", ["episodes="]),
        ("embodied compare a b conf", ["confidence="]),
        ("embodied data ", ["convert ", "repair ", "stats ", "verify "]),
        ("embodied data ver", ["verify "]),
        ("embodied data wh", ["what="]),
        ("embodied data verify st", ["stated.", "store="]),
        ("embodied data repair outputs/x.zarr drop", ["drop_damaged="]),
        ("embodied bench p", ["policies ", "policy "]),
        (
            "embodied bench ",
            [
                *("agreement ", "collect ", "data ", "delay ", "experts ", "kills ", "latency "),
                *("policies ", "policy ", "serve ", "sim "),
            ],
        ),
        ("embodied nothing x", []),
    ],
)
def test_completion(line, expected, capsys, monkeypatch):
    assert complete(line, capsys, monkeypatch) == expected


def test_completion_looks_only_at_the_line_before_the_cursor(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "embodied tra policy=sdp")
    monkeypatch.setenv("COMP_POINT", str(len("embodied tra")))
    assert run_main("-sc", "query=bash") == 0
    assert capsys.readouterr().out == "train \n"


@pytest.fixture
def shell_environment(tmp_path) -> dict[str, str]:
    """In which the shell finds the command, and nothing else of interest in the present folder."""
    (tmp_path / "embodied").write_text(f"#!{sys.executable}\nfrom embodied.cli import main\nmain()\n")
    (tmp_path / "embodied").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_bash_completes_behind_the_equals_sign(shell_environment):
    session = completion.script("bash") + (
        "try() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(embodied); _embodied; "
        "printf '<%s>' \"${COMPREPLY[@]}\"; }\n"
        "try 'embodied tr'; try 'embodied train policy=s'\n"
    )
    done = subprocess.run(["bash", "-c", session], env=shell_environment, capture_output=True, text=True, check=True)
    assert done.stdout == "<train ><sdp>"


@pytest.mark.skipif(shutil.which("fish") is None, reason="the fish shell is not installed (apt-get install fish)")
def test_fish_completes_words_and_leaves_paths_to_the_shell(shell_environment, tmp_path):
    (tmp_path / "outputs").mkdir()
    session = completion.script("fish") + "\n".join(
        f'complete -C "embodied {line}"' for line in ("tr", "train policy=", "eval outp")
    )
    done = subprocess.run(
        ["fish", "-c", session], env=shell_environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    policies = ("diffusion", "flow_matching", "rnr", "sdp")
    assert done.stdout.splitlines() == ["train ", *(f"policy={name}" for name in policies), "outputs/"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_both_ways_to_print_the_completion_script(shell, capsys):
    assert run_main("--install-completion", shell) == 0
    script = capsys.readouterr().out
    assert run_main("-sc", f"install={shell}") == 0
    assert capsys.readouterr().out == script
    assert "-sc query=fish" in script
