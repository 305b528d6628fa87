from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgepool.core.transfer.retention import GRACE_MS, Held, may_go, plan_eviction

NOW_MS = 1_000_000
HELD = st.builds(
    Held,
    root=st.binary(min_size=32, max_size=32),
    size_bytes=st.integers(0, 1000),
    used_ms=st.integers(0, NOW_MS + 50),
    kept=st.sampled_from(["", "", "pinned", "offered in cell"]),
)
EVERYTHING = st.lists(HELD, max_size=20, unique_by=lambda held: held.root)


@given(EVERYTHING, st.integers(1, 5000))
def test_enough_goes_or_nothing_and_never_what_is_kept(everything: list[Held], lacking_bytes: int) -> None:
    chosen = plan_eviction(everything, lacking_bytes, NOW_MS)
    may = {held.root: held for held in everything if may_go(held, NOW_MS)}
    if chosen is None:
        assert sum(held.size_bytes for held in may.values()) < lacking_bytes
        return
    assert set(chosen) <= set(may)
    freed = sum(may[root].size_bytes for root in chosen)
    assert freed >= lacking_bytes
    assert all(freed - may[root].size_bytes < lacking_bytes for root in chosen), "something went for nothing"


@given(EVERYTHING)
def test_what_was_used_last_stays_longest(everything: list[Held]) -> None:
    same_size = [Held(held.root, 10, held.used_ms, held.kept) for held in everything]
    may = [held for held in same_size if may_go(held, NOW_MS)]
    for count in range(1, len(may) + 1):
        chosen = plan_eviction(same_size, 10 * count, NOW_MS)
        assert chosen is not None
        stays = [held.used_ms for held in may if held.root not in chosen]
        goes = [held.used_ms for held in may if held.root in chosen]
        assert len(goes) == count
        assert not stays or max(goes) <= min(stays)


def test_who_has_just_got_data_has_time_to_open_it() -> None:
    just = Held(bytes(32), 10, NOW_MS - GRACE_MS + 1, "")
    assert plan_eviction([just], 1, NOW_MS) is None
    assert plan_eviction([just], 1, NOW_MS + 1) == (bytes(32),)
