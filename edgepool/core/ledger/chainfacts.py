"""The facts of a chain itself, below all drafts: they end blocks, forget, and account for every change.

What they forget is decided by the chain's content alone, so that all members forget alike.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from edgepool.core.ledger.facts import (
    Facts,
    Offered,
    PolicyEntry,
    TaskState,
    inspection_entry,
    offer_entry,
    step_entry,
    task_entry,
)
from edgepool.core.ledger.root import Entry, EntrySum, Key
from edgepool.core.ledger.support import rekeyed, renamed
from edgepool.core.ledger.trust import Trust
from edgepool.core.ledger.window import RecordWindow
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.pool import Genesis
from edgepool.model.twin import DataKey

FORGET_BLOCKS = 64
"""At heights that are multiples of this, what is finished or outdated and below the horizon is dropped."""


class ChainFacts(Facts):
    """Facts with no others below them; `window` knows the ids of late records, `sum` all entries."""

    def __init__(self, genesis: Genesis) -> None:
        super().__init__(genesis)
        self.sum = EntrySum(self._entry)
        self.window = RecordWindow()
        self._records = self.window.ids
        self._replaced: dict[DataKey, None] = {}

    def close(self, height: int, ids: tuple[bytes, ...]) -> tuple[tuple[PeerId, PeerId], ...]:
        """End the block at `height`, whose records have these ids and have all been entered.

        Returns who has another key from now on, each with that key.
        """
        self.height = height
        self.sum.add(block_entry(height, len(ids)))
        for gone, count in self.window.close(ids):
            self.sum.remove(block_entry(gone, count))
        self.horizon = self.window.horizon
        passed_on, roster = self.roster.passed_on, self.roster.closed(height)
        if roster is not self.roster:
            self.roster = roster
            for former, heir in passed_on:
                self._pass_on(former, heir)
            for author in [one for one in self._anchors if not roster.is_member(one)]:
                self._changes(("anchors", author, ""))
                del self._anchors[author]
            if self.trust.open:
                # The roster may have become smaller under an open change.
                self.trust = self.trust.counted(roster.voters, height)
        if height % FORGET_BLOCKS == 0:
            self._forget_tasks()
            self._forget_offers()
            self._forget_policies()
        self.sum.relieve()
        return passed_on

    def standing_places(self, height: int) -> tuple[tuple[int, int], ...]:
        """Return (height, index) of the offers and policies that stand at or below `height`, rising."""
        places = [one[:2] for one in self.offered()]
        places += [(entry.height, entry.index) for _, entry in self.ruled()]
        return tuple(place for place in sorted(places) if place[0] <= height)

    def newest_offers(self) -> Iterator[Offered]:
        """Yield the offers of the newest version of each key, by key."""
        for key, version in self._newest.items():
            yield from self._offers[key].get(version, ())

    def holders(self, key: DataKey, root: bytes) -> list[PeerId]:
        """Return who offers the data of this root under `key`, who did so first before the others."""
        versions = self._offers.get(key, {})
        # All offers of one version have one root, so the first of each says whether it is meant.
        return [
            offered[3]
            for of_one in versions.values()
            if of_one and of_one[0][2].root == root
            for offered in of_one
        ]

    def offered(self) -> list[Offered]:
        """Return all offers by their place."""
        found = [
            offered
            for versions in self._offers.values()
            for of_one in versions.values()
            for offered in of_one
        ]
        return sorted(found, key=lambda offered: offered[:2])

    def ruled(self) -> list[tuple[PeerId, PolicyEntry]]:
        """Return all policies, each with its author, by author and pattern."""
        return [
            (author, entries[pattern])
            for author, entries in sorted(self._policies.items())
            for pattern in sorted(entries)
        ]

    def anchors(self) -> list[tuple[PeerId, tuple[tuple[ChainId, int], ...]]]:
        """Return what each author has anchored, by author; of each the chain anchored last stands last."""
        return [(author, tuple(self._anchors[author].items())) for author in sorted(self._anchors)]

    def written(self) -> list[tuple[str, tuple[tuple[str, bytes], ...]]]:
        """Return what users' contracts have written, by contract and key."""
        return [
            (name, tuple(self._values[name].items())) for name in sorted(self._values) if self._values[name]
        ]

    # --- taking over what a snapshot holds

    def load_window(self, horizon: int, counts: tuple[int, ...]) -> None:
        """Begin at the height where the blocks above `horizon` had these numbers of records."""
        self.window = RecordWindow(horizon, counts)
        self._records = self.window.ids
        self.horizon, self.height = horizon, horizon + len(counts)
        for height, count in enumerate(counts, horizon + 1):
            self.sum.add(block_entry(height, count))
            self.sum.relieve()

    def load_task(self, task: TaskState) -> None:
        """Take in a task as it is."""
        self.tasks[task.task] = task
        for entry in _task_entries(task):
            self.sum.add(entry)
        self.sum.relieve()

    def load_offer(self, offered: Offered) -> None:
        """Take in an offer; they come by rising place."""
        self._enter_offer(offered)
        self.sum.relieve()

    def load_anchors(self, author: PeerId, anchors: tuple[tuple[ChainId, int], ...]) -> None:
        """Take in what `author` has anchored."""
        self._changes(("anchors", author, ""))
        self._anchors[author] = dict(anchors)

    def load_policy(self, author: PeerId, entry: PolicyEntry) -> None:
        """Take in a policy."""
        self._enter_policy(entry, author)
        self.sum.relieve()

    def load_values(self, contract: str, values: tuple[tuple[str, bytes], ...]) -> None:
        """Take in what the contracts of a name have written."""
        self._write(contract, dict(values))

    def load_trust(self, trust: Trust) -> None:
        """Take in what the chain says of trust."""
        self.trust = trust

    # --- changes

    def _changes(self, key: Key) -> None:
        self.sum.touch(key)

    def _comes(self, entry: Entry) -> None:
        self.sum.add(entry)

    def _enter_offer(self, offered: Offered) -> None:
        key = offered[2].key
        standing = self._offers.get(key)
        super()._enter_offer(offered)
        if standing is not None and len(standing) > 1:
            self._replaced[key] = None

    # --- new keys

    def _pass_on(self, former: PeerId, heir: PeerId) -> None:
        """Put `heir`, the new key of a peer, wherever the tables have `former`.

        Records stay what they are: who proves one shows the key that has signed it.
        """
        self._pass_on_policies(former, heir)
        if former in self._anchors:
            for author in (former, heir):
                self._changes(("anchors", author, ""))
            self._anchors = rekeyed(self._anchors, former, heir)
        for versions in self._offers.values():
            for version, of_one in versions.items():
                versions[version] = [self._offer_passed_on(offered, former, heir) for offered in of_one]
        for task in self.tasks.values():
            self._pass_on_steps(task, former, heir)
        if any(former in authors for _, authors in self.trust.open):
            still = tuple((one, renamed(authors, former, heir)) for one, authors in self.trust.open)
            self.trust = replace(self.trust, open=still)
        self.sum.settle()

    def _offer_passed_on(self, offered: Offered, former: PeerId, heir: PeerId) -> Offered:
        if offered[3] != former:
            return offered
        now: Offered = (*offered[:3], heir)
        self.sum.remove(offer_entry(offered))
        self.sum.add(offer_entry(now))
        self.sum.relieve()
        return now

    def _pass_on_policies(self, former: PeerId, heir: PeerId) -> None:
        """Hand over the policies of a member, and name its new key in all policies that name it."""
        mine = self._policies.get(former, {})
        for author in (former, heir):
            for pattern in {**mine, **self._policies.get(heir, {})}:
                self._changes(("policy", author, pattern))
        if mine:
            self._policies = rekeyed(self._policies, former, heir)
        for author, known in self._policies.items():
            for pattern, entry in known.items():
                terms = entry.policy.terms
                if terms is not None and former in terms.members:
                    self._changes(("policy", author, pattern))
                    named = replace(terms, members=renamed(terms.members, former, heir))
                    known[pattern] = PolicyEntry(
                        entry.height, entry.index, replace(entry.policy, terms=named)
                    )

    def _pass_on_steps(self, task: TaskState, former: PeerId, heir: PeerId) -> None:
        for place, step in task.steps.items():
            credited = step.credit is not None and step.credit[0] == former
            inspected = [number for number, made in enumerate(step.inspections) if made[0] == former]
            if not credited and not inspected and step.requirement.station != former:
                continue
            self._changes(("step", task.task, place))
            if step.requirement.station == former:
                step.requirement = replace(step.requirement, station=heir)
            if credited and step.credit is not None:
                step.credit = (heir, step.credit[1])
            for number in inspected:
                inspection = step.inspections[number][1]
                self.sum.remove(inspection_entry(task.task, step, number, (former, inspection)))
                step.inspections[number] = (heir, inspection)
                self.sum.add(inspection_entry(task.task, step, number, (heir, inspection)))

    def _forget_tasks(self) -> None:
        """Drop complete tasks of which no record stands above the horizon."""
        self.sum.settle()  # so that no step of them has changes that wait
        for task in list(self.tasks.values()):
            if task.entered_at > self.horizon:
                break  # they are in the order in which they were entered
            if all(step.changed_at <= self.horizon for step in task.steps.values()) and task.complete:
                for entry in _task_entries(task):
                    self.sum.remove(entry)
                del self.tasks[task.task]
                self.sum.relieve()

    def _forget_offers(self) -> None:
        """Drop offers of versions that are not the newest, unless they stand above the horizon."""
        for key in list(self._replaced):
            versions = self._offers[key]
            # Not the first in the table: an old version may be offered again; snapshots are by place.
            if min(of_one[0][0] for of_one in versions.values()) > self.horizon:
                continue  # its oldest offer is not old enough
            for version in [one for one in versions if one != self._newest[key]]:
                for offered in versions[version]:
                    if offered[0] <= self.horizon:
                        self.sum.remove(offer_entry(offered))
                versions[version] = [offered for offered in versions[version] if offered[0] > self.horizon]
                if not versions[version]:
                    del versions[version]
            if len(versions) == 1:
                del self._replaced[key]
            self.sum.relieve()

    def _forget_policies(self) -> None:
        """Drop the policies of those who have left and offer nothing any more."""
        left = [one for one, known in self._policies.items() if known and not self.roster.may_write(one)]
        if not left:
            return
        holders = {offered[3] for offered in self.offered()}
        for author in [one for one in left if one not in holders]:
            for pattern in self._policies[author]:
                self._changes(("policy", author, pattern))
            del self._policies[author]

    def _entry(self, key: Key) -> Entry:
        kind, owner, place = key
        if kind == "policy":
            entry = self._policies.get(PeerId(owner), {}).get(place)
            return () if entry is None else (*key, entry.height, entry.index, entry.policy)
        if kind == "step":
            task = self.tasks.get(owner)
            step = task.steps.get(place) if task is not None else None
            return () if step is None else step_entry(owner, step)
        if kind == "anchors":
            anchors = self._anchors.get(PeerId(owner))
            return () if anchors is None else (*key, tuple(anchors.items()))
        value = self._values.get(owner, {}).get(place)
        return () if value is None else (*key, value)


def block_entry(height: int, count: int) -> Entry:
    """Return the entry of a block in the window: how many records it has."""
    return ("block", height, count)


def _task_entries(task: TaskState) -> list[Entry]:
    """Return the entries of a task, of its steps, and of their inspections."""
    entries = [task_entry(task)]
    for step in task.steps.values():
        entries.append(step_entry(task.task, step))
        for number, made in enumerate(step.inspections):
            entries.append(inspection_entry(task.task, step, number, made))
    return entries
