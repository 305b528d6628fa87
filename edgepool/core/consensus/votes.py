"""The votes of one height, kept for each value and not for each sender.

Keeping only a sender's first vote stalls under equivocation: the vote that completes a quorum may
be the second of an equivocator. So a vote counts for its own value. What a member may make us keep
is bounded: a window of rounds, nil, two values, and any number of votes for blocks that we know
(which are few). Nothing here checks signatures; only verified votes are added.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from edgepool.model.ids import PeerId
from edgepool.model.vote import NIL, PRECOMMIT, PREVOTE, Vote, quorum

ROUNDS_KEPT = 16
"""Votes are kept this many rounds behind and ahead of the present round."""
VALUES_KEPT = 2
"""Values of one voter, kind and round that are kept although their blocks are unknown."""


class VoteBook:
    """Verified votes of `members` at one height, with the quorums that they form, as `me` keeps them."""

    def __init__(self, members: Sequence[PeerId], me: PeerId) -> None:
        self.index = {peer: place for place, peer in enumerate(members)}
        self.quorum = quorum(len(members))
        self.count = 0
        self.polkas: dict[int, bytes] = {}
        """Round -> the block id (never nil) with a quorum of prevotes."""
        self.commits: dict[bytes, int] = {}
        """Block id (never nil) -> the first round in which it has a quorum of precommits."""
        self._me = me
        self._faults = (len(members) - 1) // 3
        self._round = 0
        self._votes: dict[tuple[int, int], dict[bytes, dict[PeerId, Vote]]] = {}
        self._values: dict[tuple[int, int], dict[PeerId, int]] = {}
        self._highest: dict[PeerId, int] = {}

    def wants(self, vote: Vote, known: Container[bytes]) -> bool:
        """Say whether `vote` would tell something new; `known` are ids of blocks at hand.

        One more for what has a quorum does not, as long as its voter has said nothing else there: a quorum
        is past its round already, so it leads to no later one either. Own votes always do: they bind.
        """
        if not self._in_window(vote.round):
            return vote.round > max(self._round, self._highest.get(vote.voter, -1))
        place = (vote.kind, vote.round)
        voters = self._votes.get(place, {}).get(vote.block_id, {})
        if vote.voter in voters:
            return False
        kept = self._values.get(place, {}).get(vote.voter, 0)
        if not kept and len(voters) >= self.quorum and vote.voter != self._me:
            return False
        return kept < VALUES_KEPT or vote.block_id == NIL or vote.block_id in known

    def add(self, vote: Vote) -> bool:
        """Count a verified vote; say whether its voter has thereby signed two values (see `contradicted`)."""
        self._highest[vote.voter] = max(vote.round, self._highest.get(vote.voter, -1))
        if not self._in_window(vote.round):
            return False
        place = (vote.kind, vote.round)
        voters = self._votes.setdefault(place, {}).setdefault(vote.block_id, {})
        if vote.voter in voters:
            return False
        voters[vote.voter] = vote
        self.count += 1
        values = self._values.setdefault(place, {})
        values[vote.voter] = values.get(vote.voter, 0) + 1
        if len(voters) >= self.quorum and vote.block_id != NIL:
            if vote.kind == PREVOTE:
                self.polkas.setdefault(vote.round, vote.block_id)
            else:
                self.commits.setdefault(vote.block_id, vote.round)
        return values[vote.voter] > 1

    def holds(self, vote: Vote) -> bool:
        """Say whether exactly this vote, signature included, has been verified and kept."""
        return self._votes.get((vote.kind, vote.round), {}).get(vote.block_id, {}).get(vote.voter) == vote

    def voters(self, kind: int, round: int) -> int:
        """Return how many members have voted at all in this kind and round."""
        return len(self._values.get((kind, round), {}))

    def nil_quorum(self, round: int) -> bool:
        """Say whether a quorum has prevoted nil in `round`."""
        return len(self._votes.get((PREVOTE, round), {}).get(NIL, {})) >= self.quorum

    def said(self, kind: int, round: int, voter: PeerId) -> Vote | None:
        """Return the (first) vote of `voter` in this kind and round."""
        for voters in self._votes.get((kind, round), {}).values():
            if voter in voters:
                return voters[voter]
        return None

    def contradicted(self, vote: Vote) -> Vote | None:
        """Return a kept vote by which the voter of `vote` says something else in its place."""
        for block_id, voters in self._votes.get((vote.kind, vote.round), {}).items():
            if block_id != vote.block_id and vote.voter in voters:
                return voters[vote.voter]
        return None

    def votes_for(self, kind: int, round: int, block_id: bytes) -> tuple[Vote, ...]:
        """Return a quorum (or fewer) of votes for one value, in the order of the members."""
        voters = self._votes.get((kind, round), {}).get(block_id, {})
        return tuple(voters[peer] for peer in sorted(voters, key=self.index.__getitem__)[: self.quorum])

    def votes_of(self, voter: PeerId) -> tuple[Vote, ...]:
        """Return all that is kept of one voter, by rising round."""
        return tuple(
            vote for vote in self.votes_in(sorted({r for _, r in self._votes})) if vote.voter == voter
        )

    def votes_in(self, rounds: Iterable[int]) -> list[Vote]:
        """Return all votes of the given rounds."""
        return [
            vote
            for round in rounds
            for kind in (PREVOTE, PRECOMMIT)
            for voters in self._votes.get((kind, round), {}).values()
            for vote in voters.values()
        ]

    def active_from(self, round: int) -> bool:
        """Say whether anybody has voted in `round` or a later one."""
        return any(highest >= round for highest in self._highest.values())

    def round_to_join(self) -> int:
        """Return the highest round that f + 1 members have reached: one of them is honest."""
        reached = sorted(self._highest.values(), reverse=True)
        return reached[self._faults] if len(reached) > self._faults else 0

    def enter_round(self, round: int) -> None:
        """Move the window of rounds that are kept."""
        self._round = round
        for place in [place for place in self._votes if not self._in_window(place[1])]:
            del self._votes[place], self._values[place]
        self.commits = {block: at for block, at in self.commits.items() if self._in_window(at)}

    def _in_window(self, round: int) -> bool:
        return self._round - ROUNDS_KEPT <= round <= self._round + ROUNDS_KEPT
