"""`zwatch prune`: asks services, or a state directory, which versions are needed, asks the user, and deletes the others."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch import client
from zwatch.deploy import pruning
from zwatch.deploy.pointers import find_pointers
from zwatch.deploy.saved_needs import saved_needs
from zwatch.errors import UsageError

_TRIES = 5
"""How often a service and the models root are looked at until both show the same versions: others may add some meanwhile."""

Needs = dict[str, list[str]]
AskNeeds = Callable[[int], Needs]
"""Returns why versions are needed, besides by links; its argument is the descriptor of the models root.

It raises UsageError where that cannot be found out."""


def by_services(services: Sequence[tuple[str, client.Service]]) -> AskNeeds:
    """Return what asks running services, given with their URLs."""

    def ask(root_fd: int) -> Needs:
        needs: Needs = {}
        for url, service in services:
            for name, uses in _uses(url, service, root_fd).items():
                if uses:
                    needs.setdefault(name, []).append(f"{', '.join(uses).replace('_', '-')} at {url}")
        return needs

    return ask


def by_state(state_directory: Path) -> AskNeeds:
    """Return what reads the state directory of a service that does not run; say so if there is none."""
    if saved_needs(state_directory) is None:
        print(
            f"zwatch: there is no state in {state_directory}: only links keep versions; see --state-dir",
            file=sys.stderr,
        )
    return lambda root_fd: saved_needs(state_directory) or {}


def _uses(url: str, service: client.Service, root_fd: int) -> Mapping[str, Sequence[str]]:
    differing = ""
    for _ in range(_TRIES):
        try:
            status, body = service.get("/versions")
        except UsageError as error:
            raise UsageError(f"{error}; if none runs, --no-service goes by the links and the state directory") from None
        if status >= 300:
            raise UsageError(f"the service at {url} does not say what it needs: {client.message(body)}")
        if body.get("problem"):
            raise UsageError(f"the service at {url} does not say what it needs: {body['problem']}")
        try:
            theirs = {one["name"]: (one["digest"], one["seal_changed_ns"]) for one in body["versions"]}
            uses = {one["name"]: one["uses"] for one in body["versions"]}
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"the answer of {url} to /versions is not zwatch's, or another version's ({error!r})"
            ) from None
        ours = {one.name: (one.digest, str(one.changed_ns)) for one in pruning.find_versions(root_fd)}
        both = theirs.keys() & ours.keys()
        # A copy of a version has the same digest, and was never changed at the same nanosecond.
        different = [
            name for name in both if theirs[name] != ours[name] and None not in (theirs[name][0], ours[name][0])
        ]
        differing = min([*(theirs.keys() ^ ours.keys()), *different], default="")
        if not differing:
            return uses
    raise UsageError(
        f"the service at {url} serves another models root: {differing} is not the same there; see --url and --models"
    )


@dataclass(frozen=True, slots=True)
class _Prune:
    """One run of the command."""

    models: Path
    keep: int
    ask_needs: AskNeeds
    as_json: bool

    def needs(self, root_fd: int, returned: AbstractSet[str] = frozenset()) -> tuple[Needs, Mapping[str, str]]:
        """Return why versions are needed, and the directories that could not be searched for links. Links in what an earlier
        prune left count only of what is `returned`."""
        asked = self.ask_needs(root_fd)
        # Last: a service loads what a link asks for.
        pointers = find_pointers(self.models, frozenset(pruning.leftovers(root_fd).keys() - returned))
        names = dict.fromkeys([*pointers.by_version, *asked])
        return {name: pointers.by_version.get(name, []) + asked.get(name, []) for name in names}, pointers.unread

    def plan(self, root_fd: int) -> tuple[pruning.Plan, Mapping[str, str]]:
        returned: frozenset[str] = frozenset()
        while True:  # what is renamed back may lead to others
            needs, unread = self.needs(root_fd, returned)
            plan = pruning.make_plan(pruning.find_versions(root_fd), self.keep, needs, pruning.leftovers(root_fd))
            if plan.returned.keys() <= returned:
                return plan, unread
            returned = returned | plan.returned.keys()

    def delete(self, root_fd: int, agreed: pruning.Plan) -> tuple[pruning.Outcome, int]:
        """Delete what was agreed and may still be deleted; return what was done, and the bytes that this frees."""
        outcome = pruning.Outcome()
        plan, _ = self.plan(root_fd)
        sizes = pruning.measure(self.models, [one.name for one in plan.deleted])
        victims = [one for one in plan.deleted if one in agreed.deleted and one.name not in sizes.problems]
        hidden: dict[str, str] = {}
        try:
            pruning.hide(root_fd, victims, outcome, hidden)
            hidden |= plan.leftovers
            before: Mapping[str, str] = {}
            while hidden != before:  # what is renamed back may lead to others
                before = hidden
                hidden = pruning.give_back(root_fd, hidden, self.needs(root_fd)[0], outcome)
            freed = pruning.measure(self.models, hidden).freed
            pruning.remove(root_fd, hidden, outcome)
        except BaseException:  # Ctrl-C, too: what is whole is a version again
            pruning.give_back(root_fd, hidden, {name: ["the prune ended early"] for name in hidden.values()}, outcome)
            raise
        return outcome, freed


def prune(models: Path, keep: int, ask_needs: AskNeeds, *, dry_run: bool, is_agreed: bool, as_json: bool) -> int:
    """Delete all versions but the newest and the needed ones, after a question; return the exit status.

    Raises:
        UsageError: what is needed is not known, or nobody can be asked.
        PruneBusyError, OSError: the models root cannot be used.
    """
    run = _Prune(models, keep, ask_needs, as_json)
    with pruning.locked(models) as root_fd:
        plan, unread = run.plan(root_fd)
        sizes = pruning.measure(models, [*(one.name for one in plan.deleted), *plan.finished])
        problems = [
            *sizes.problems.values(),
            *(f"{path}: it cannot be searched for links: {why}" for path, why in unread.items()),
        ]
        outcome, freed = pruning.Outcome(), sizes.freed
        if not as_json:
            for line in _lines(plan, sizes):
                print(_plain(line))
        if (plan.deleted or plan.leftovers) and not dry_run:
            count = len(plan.deleted) + len(plan.finished)
            if count and not is_agreed and not _agrees(count):
                print("zwatch: nothing was deleted", file=sys.stderr)
                return 1
            outcome, freed = run.delete(root_fd, plan)
        problems += outcome.errors
    if as_json:
        print(json.dumps(_as_json(plan, sizes, outcome, freed, problems)))
    elif not dry_run and outcome.removed:
        print(f"deleted {', '.join(outcome.removed)}: {freed:,} bytes are free")
    for name, reasons in outcome.returned.items():
        print(_plain(f"zwatch: {name} is kept: {', '.join(reasons)}"), file=sys.stderr)
    for problem in problems:
        print(_plain(f"zwatch: {problem}"), file=sys.stderr)
    return 1 if problems else 0


def _plain(line: str) -> str:
    """Return a line as a terminal may show it: a link's name may have any bytes."""
    return line if line.isprintable() else ascii(line)[1:-1]


def _agrees(count: int) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            "standard input is no terminal, so nobody can be asked: --yes deletes without a question, --dry-run only lists"
        )
    print(f"Delete {count} version{'' if count == 1 else 's'}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _lines(plan: pruning.Plan, sizes: pruning.Sizes) -> list[str]:
    lines = [f"keep    {name}: {', '.join(reasons)}" for name, reasons in plan.kept.items()]
    lines += [f"leave   {name}: {why}" for name, why in plan.left.items()]
    lines += [f"delete  {one.name}: {sizes.by_name.get(one.name, 0):,} bytes" for one in plan.deleted]
    lines += [
        f"delete  {new}: {sizes.by_name.get(new, 0):,} bytes, left of {name} by a prune that was interrupted"
        for new, name in plan.finished.items()
    ]
    lines += [f"return  {new} to {plan.leftovers[new]}: {', '.join(reasons)}" for new, reasons in plan.returned.items()]
    if not plan.deleted and not plan.finished:
        return [*lines, "there is nothing to delete"]
    total = sum(sizes.by_name.values())
    shared = "" if sizes.freed == total else f", {sizes.freed:,} of them become free: the others have other names, too"
    return [*lines, f"{total:,} bytes{shared}"]


def _as_json(
    plan: pruning.Plan, sizes: pruning.Sizes, outcome: pruning.Outcome, freed: int, problems: Sequence[str]
) -> dict[str, Any]:
    return {
        "kept": plan.kept,
        "left": plan.left,
        "chosen": {one.name: sizes.by_name.get(one.name, 0) for one in plan.deleted},
        "leftovers": plan.finished,
        "deleted": outcome.removed,
        "returned": outcome.returned or {plan.leftovers[new]: reasons for new, reasons in plan.returned.items()},
        "freed": freed,
        "problems": problems,
    }
