"""Completion of the `embodied` command in bash, zsh and fish.

Hydra completes the words of one application and knows no subcommands: the command's name is completed here, and
Hydra is asked about the rest with the name taken out of the line.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection

from embodied.catalog import nearest
from embodied.errors import UserError

# Each asks `embodied -sc query=fish`, which prints one candidate a line for the line up to the cursor.
SCRIPTS = {
    "bash": r"""# eval "$(embodied --install-completion bash)"
_embodied() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n' word prefix=""
    word="${line##*[[:space:]]}"
    COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" "${COMP_WORDS[0]}" -sc query=fish 2>/dev/null))
    # bash replaces only what follows the last '=', ':' or '@' of the word.
    case "$word" in *[=:@]*) prefix="${word%"${word##*[=:@]}"}" ;; esac
    COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -o nospace -o default -F _embodied embodied
""",
    "zsh": r"""# eval "$(embodied --install-completion zsh)"
_embodied() {
    local line="${(j: :)words[1,CURRENT]}"
    local -a candidates
    candidates=(${(f)"$(COMP_LINE="$line" COMP_POINT="${#line}" ${words[1]} -sc query=fish 2>/dev/null)"})
    if (( ${#candidates} )); then compadd -S '' -- $candidates; else _files; fi
}
compdef _embodied embodied
""",
    "fish": r"""# embodied --install-completion fish | source
function __embodied_knows
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- "$COMP_LINE")
    set -g __embodied_candidates (embodied -sc query=fish 2>/dev/null | string match --invert '')
    test (count $__embodied_candidates) -gt 0
end
# Files only where Hydra knows no word, such as the path of a run.
complete -c embodied -f -n __embodied_knows -a '$__embodied_candidates'
""",
}


def script(shell: str) -> str:
    """What the shell has to evaluate.

    Raises:
        UserError: an unknown shell.
    """
    if shell not in SCRIPTS:
        raise UserError(expected="the name of a shell", found=f"'{shell}'", remedy=nearest(shell, SCRIPTS))
    return SCRIPTS[shell]


def complete_command(line: str, commands: Collection[str], options: Collection[str]) -> list[str] | None:
    """Candidates for the first word after the program's name; None if the cursor is past it."""
    words = line.split(" ")
    if len([word for word in words[:-1] if word]) > 1:
        return None
    candidates = [f"{name} " for name in sorted(commands)] + (sorted(options) if words[-1].startswith("-") else [])
    return [candidate for candidate in candidates if candidate.startswith(words[-1])]


def complete_verb(line: str, verbs: Collection[str]) -> list[str]:
    """Candidates for the word after the command's name, where that is a verb; none if the cursor is elsewhere."""
    words = line.split()
    begun = "" if line.endswith((" ", "\t")) or len(words) < 3 else words.pop()
    return [f"{verb} " for verb in sorted(verbs) if verb.startswith(begun)] if len(words) == 2 else []


def line_for_hydra(line: str, is_override: Callable[[str], bool]) -> tuple[str, str]:
    """The command's name, and the line without it and without positionals, as Hydra wants to complete it."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    last = "" if line.endswith((" ", "\t")) or len(words) < 3 else words.pop()
    kept = [word for word in words[2:] if is_override(word) or word.startswith("-")]
    return words[1], " ".join([words[0], *kept, last])
