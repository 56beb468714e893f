"""The `embodied` command: a small dispatcher in front of Hydra.

Heavy imports (Hydra included) wait until they are needed, so that help and completion answer at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from embodied import __version__
from embodied.catalog import nearest
from embodied.errors import FaultsFound, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Command(NamedTuple):
    """Where a command lives and what its positionals mean."""

    module: str  # exposes run(config) -> Path | None, the path of the summary.json
    description: str
    positionals: tuple[str, ...] = ()  # the keys that positionals set, one each
    several: bool = False  # the last of them is a list
    verbs: tuple[str, ...] = ()  # values of the first, for completion


COMMANDS = {
    "collect": Command("embodied.commands.collect", "run a task's expert in simulation into a store"),
    "train": Command("embodied.commands.train", "train one policy from a store, then evaluate it"),
    "distill": Command(
        "embodied.commands.distill", "train a student of one or few network calls from a trained teacher", ("teacher",)
    ),
    "eval": Command("embodied.commands.eval", "evaluate a checkpoint on addressed starts", ("run",)),
    "compare": Command("embodied.commands.compare", "compare evaluations, paired on their starts", ("runs",), True),
    "export": Command(
        "embodied.commands.export", "a checkpoint as ONNX or torch.export, with a parity check", ("run",)
    ),
    "serve": Command("embodied.commands.serve", "serve a checkpoint to robots, in real time", ("run",)),
    "replay": Command(
        "embodied.commands.replay",
        "turn a rollout, a demonstration or a served session into a Rerun recording",
        ("run",),
    ),
    "data": Command(
        "embodied.commands.data",
        "look after a store: data verify, data repair, data stats, data convert",
        ("what", "store"),
        verbs=("convert", "repair", "stats", "verify"),
    ),
    "bench": Command(
        "embodied.commands.bench",
        "measure: bench sim, collect, kills, data, latency, serve, agreement, delay; bench policy: success against "
        "latency; bench experts, bench policies: a table of all tasks",
        ("what",),
        verbs=(
            *("agreement", "collect", "data", "delay", "experts", "kills", "latency", "policies", "policy", "serve"),
            "sim",
        ),
    ),
    "doctor": Command("embodied.commands.doctor", "what this machine can do, and how to add what is missing"),
}
OPTIONS = {
    "--help": "this text; after a command: its groups and its configuration",
    "--version": "the version",
    "--install-completion": "bash, zsh or fish: print the completion script for that shell",
}
FAULTS_FOUND = 1
USAGE_ERROR = 2
INTERRUPTED = 130
READER_GONE = 141  # as a shell reports SIGPIPE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `embodied` command.

    Exits with 0; 2 after a mistake of the user (one line on stderr); 130 after Ctrl-C; 1 where a check found faults,
    or after an unexpected error (with its traceback).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_dispatch(words))
    except UserError as error:
        sys.exit(_report(error))
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(READER_GONE)
    except KeyboardInterrupt:
        sys.stderr.write(_interrupted(words))
        sys.exit(INTERRUPTED)


def _dispatch(words: list[str]) -> int:
    """Answer what needs no command, and run the others. Returns the exit status."""
    first = words[0] if words else "--help"
    if first in ("--help", "-h"):
        sys.stdout.write(_help())
    elif "--version" in words:
        sys.stdout.write(f"embodied {__version__}\n")
    elif first == "--install-completion":
        _print_completion_script(words[1] if len(words) > 1 else "")
    elif first in ("-sc", "--shell-completion"):
        return _shell_completion(words[1:])
    elif first in COMMANDS:
        return _run_command(first, words[1:])
    else:
        kind, known = ("an option", OPTIONS) if first.startswith("-") else ("a command", COMMANDS)
        raise UserError(expected=kind, found=f"'{first}'", remedy=nearest(first, known))
    return 0


def usage(name: str) -> str:
    """How a command is called, in one line."""
    command = COMMANDS[name]
    words = [key.upper() for key in command.positionals]
    if command.several:
        words[-1] = f"{words[-1].removesuffix('S')} {words[-1].removesuffix('S')} ..."
    return " ".join(["embodied", name, *words, "[group=option] [key=value] [-m]"])


def _help() -> str:
    width = max(map(len, [*COMMANDS, *OPTIONS])) + 2
    lines = ["usage: embodied <command> [group=option] [key=value] [-m]", ""]
    lines += [f"  {name:<{width}}{command.description}" for name, command in COMMANDS.items()]
    lines += [""] + [f"  {name:<{width}}{description}" for name, description in OPTIONS.items()]
    lines += ["", "After a command: --cfg job prints the configuration and runs nothing, --info how it was composed,"]
    lines += ["-m runs every combination of listed values (-m seed=0,1,2)."]
    return "\n".join(lines) + "\n"


def _print_completion_script(shell: str) -> None:
    from embodied import completion

    sys.stdout.write(completion.script(shell))


def _shell_completion(words: list[str]) -> int:
    """Hydra's `-sc install=SHELL` and `-sc query=SHELL`, the latter behind a subcommand too."""
    from embodied import completion

    request, _, shell = words[0].partition("=") if words else ("", "", "")
    if request == "install":
        sys.stdout.write(completion.script(shell))
        return 0
    if request != "query":
        raise UserError(
            expected="-sc install=SHELL or -sc query=SHELL", found=" ".join(words) or "nothing", remedy=_SHELLS
        )
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    candidates = completion.complete_command(line, COMMANDS, OPTIONS)
    if candidates is not None:
        sys.stdout.write("".join(f"{candidate}\n" for candidate in candidates))
        return 0
    from embodied.configuration import group_options, is_override

    name, rest = completion.line_for_hydra(line, is_override)
    if name not in COMMANDS:
        return 0
    if verbs := completion.complete_verb(line, COMMANDS[name].verbs):
        sys.stdout.write("".join(f"{verb}\n" for verb in verbs))
        return 0
    group, equals, begun = rest.rpartition(" ")[2].partition("=")
    options = group_options(group.lstrip("+").partition("@")[0]) if equals else []
    if options:  # Hydra does not look into subgroups (task=robosuite/lift)
        sys.stdout.write("".join(f"{group}={option}\n" for option in options if option.startswith(begun)))
        return 0
    os.environ["COMP_LINE"], os.environ["COMP_POINT"] = rest, str(len(rest))
    _hand_to_hydra(name, ["-sc", f"query={shell}"], lambda config: None)
    return 0


_SHELLS = "SHELL is bash, zsh or fish"


def _run_command(name: str, words: list[str]) -> int:
    """Check the words, then let Hydra compose the configuration of each job and run it."""
    options, flags, plain = _parse(words)
    if options.help:
        sys.stdout.write(f"usage: {usage(name)}\n\n{name}: {COMMANDS[name].description}\n\n")
    if options.hydra_help:
        _hand_to_hydra(name, [*flags, *plain], lambda config: None)
        return 0
    overrides = _overrides(name, plain)
    _check(name, overrides, options)
    jobs = _Jobs(name)
    with ExitStack() as stack:
        if options.multirun and not any(word.startswith("hydra.sweep.dir=") for word in overrides):
            from embodied.configuration import quote

            # Hydra's sweeper leaves a multirun.yaml; our run directories already say all of it.
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="embodied-multirun-"))
            overrides.append(f"hydra.sweep.dir={quote(scratch)}")
        try:
            _hand_to_hydra(name, [*flags, *overrides], jobs)
        except BrokenPipeError:
            raise
        except Exception as error:
            jobs.report(error)
    return jobs.status


def _parse(words: list[str]) -> tuple[Namespace, list[str], list[str]]:
    """Hydra's options as it reads them, the words that are options, and the words that are not.

    Raises:
        UserError: an unknown option, or one that would go past our configuration.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        unknown = next((word for word in words if word.startswith("-") and word in message), "")
        known = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        known -= {_flag(option) for option in _REFUSED}
        raise UserError(expected="an option", found=message, remedy=nearest(unknown, known))

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(words)
    for option in _REFUSED:
        if getattr(options, option) is not None:
            raise UserError(
                expected="the command's own configuration",
                found=_flag(option),
                remedy="add groups of your own with --config-dir",
            )
    plain = list(options.overrides)
    flags = list(words)
    for word in plain:
        flags.remove(word)
    return options, flags, plain


# They would go past our configuration, and the last one reads a pickle.
_REFUSED = ("config_path", "config_name", "experimental_rerun")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _overrides(name: str, words: list[str]) -> list[str]:
    """Hydra's words, with positionals turned into the command's main keys.

    Raises:
        UserError: a positional that the command does not take.
    """
    from embodied.configuration import is_override, quote

    command = COMMANDS[name]
    overrides = [word for word in words if is_override(word)]
    positionals = [word for word in words if not is_override(word)]
    keys = command.positionals
    if len(positionals) > len(keys) and not command.several:
        stray = positionals[len(keys)]
        raise UserError(expected=usage(name), found=f"the stray word '{stray}'", remedy="settings are key=value")
    values = [quote(word) for word in positionals]
    if command.several and len(values) >= len(keys):
        values[len(keys) - 1 :] = [f"[{','.join(values[len(keys) - 1 :])}]"]
    return [*(f"{key}={value}" for key, value in zip(keys, values, strict=False)), *overrides]


def _check(name: str, overrides: list[str], options: Namespace) -> None:
    """Compose once, so that a mistake costs a moment and gives one line.

    Raises:
        UserError: as `configuration.check`, or a mandatory value is missing.
    """
    from embodied import configuration

    config = configuration.check(name, overrides, multirun=options.multirun, config_dir=options.config_dir)
    only_shows = options.help or options.cfg or options.info is not None
    missing = [] if only_shows else configuration.missing_keys(config)
    if missing:
        raise UserError(
            expected=f"a value for {', '.join(missing)}",
            found="none",
            remedy=f"usage: {usage(name)}" if missing[0] in COMMANDS[name].positionals else f"add {missing[0]}=...",
        )


class _Jobs:
    """Hydra's task function: runs the command, prints the path of its summary, remembers failures."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 0
        self._process = os.getpid()

    def __call__(self, config: DictConfig) -> str | None:
        try:
            command = importlib.import_module(COMMANDS[self.name].module)
            summary: Path | None = command.run(config)
        except FaultsFound as found:
            self.status = self.status or FAULTS_FOUND
            summary = found.summary
        except Exception as error:
            # The other jobs of a multirun go on. A launcher that runs us elsewhere brings the error back by itself.
            if os.getpid() != self._process:
                raise
            self.report(error)
            return None
        if summary is not None:
            sys.stdout.write(f"{summary}\n")
            sys.stdout.flush()
        return None if summary is None else str(summary)

    def report(self, error: Exception) -> None:
        """Print an error and set the exit status."""
        sys.stdout.flush()
        error = error if isinstance(error, UserError) else _disk_full(error) or error
        if isinstance(error, UserError):
            self.status = self.status or _report(error)
        else:
            traceback.print_exception(error)
            self.status = 1


def _disk_full(error: Exception) -> UserError | None:
    """What to say where a library or a worker process found no space; code of ours that can say more has said it."""
    full = (errno.ENOSPC, errno.EDQUOT)
    is_full = isinstance(error, OSError) and error.errno in full
    # safetensors tells only in words.
    if not is_full and not any(os.strerror(number) in str(error) for number in full):
        return None
    return UserError(
        expected="room on the disk for what this command writes",
        found=" ".join(str(error).split()),
        remedy="free some space, then give the same command again: it keeps what it had and goes on from there",
    )


def _hand_to_hydra(name: str, words: list[str], task: Callable[[DictConfig], Any]) -> None:
    """Run Hydra as if `words` were the whole command line of an application with the configuration `name`."""
    import hydra

    from embodied.configuration import CONFIG_MODULE

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back to us instead of being printed by Hydra
    before = sys.argv
    sys.argv = ["embodied", *words]
    try:
        hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=name)(task)()
    finally:
        sys.argv = before


def _report(error: UserError) -> int:
    """One line on stderr, or the traceback if the user asks for it. Returns the exit status."""
    if os.environ.get("EMBODIED_TRACEBACK") == "1":
        traceback.print_exception(error)
    sys.stderr.write(f"embodied: error: {' '.join(str(error).split())}\n")
    return USAGE_ERROR


def _interrupted(words: list[str]) -> str:
    """What to say after Ctrl-C."""
    import shlex

    return f"\nembodied: interrupted; the same command resumes it: embodied {shlex.join(words)}\n"
