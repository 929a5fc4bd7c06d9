"""docs/qga.md: the table of the commands, and what differs."""

from __future__ import annotations

from collections.abc import Mapping

from tests.guest.qga_differences import Explanation

_HEAD = """\
# va-guest and qemu-ga, command by command

Made by a run (`make qga-table`): in one Debian guest, the real qemu-ga {version} and va-guest were each given
the same commands with the same arguments, right ones and wrong ones, {asked} times in all. Their answers were
compared member by member: whether it is there, its type, its value; of errors, class and description. So was
what the commands did to the guest: files and their modes, passwords, keys, processors, the programs that were
run. Only what changes by itself, such as times, counters and process ids, may differ in value, and lists that
come in the order of a directory of the kernel's may differ in order. A difference that is not explained here
fails the run, and `make test`; so does an explanation that is not needed any more.

| command | asked | answers |
|---|---|---|
"""

_DIFFERENCES = """
## What differs

"""


def page(version: str, asked: Mapping[str, int], explained: Mapping[Explanation, set[str]]) -> str:
    """Return docs/qga.md.

    Args:
        version: of qemu-ga.
        asked: command → how often; 0: qemu-ga does not have it.
        explained: explanation → commands that it is needed for.
    """
    commands: dict[str, set[str]] = {}
    for explanation, needed in explained.items():
        commands.setdefault(explanation.text, set()).update(needed)
    # In the order in which a reader of the table meets them.
    texts = sorted(commands, key=lambda text: (min(map(list(asked).index, commands[text])), text))
    parts = [_HEAD.format(version=version, asked=sum(asked.values()))]
    for command, times in asked.items():
        numbers = [str(i) for i, text in enumerate(texts, 1) if command in commands[text]]
        if not times:
            answers = f"compared with the schema only: qemu-ga {version} does not have it"
        elif numbers:
            answers = f"the same, but for {', '.join(numbers)}"
        else:
            answers = "the same"
        parts.append(f"| `{command}` | {times or ''} | {answers} |\n")
    parts.append(_DIFFERENCES)
    parts += [f"{i}. {text}\n" for i, text in enumerate(texts, 1)]
    return "".join(parts)
