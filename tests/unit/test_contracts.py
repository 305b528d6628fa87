from __future__ import annotations

import msgspec
import pytest
from ledger_world import KEY, World, signer

from edgepool.core.ledger.contracts import CONTRACTS, MAX_INSPECTIONS, MAX_OTHERS_INSPECTIONS, REGISTRY
from edgepool.model.ids import ChainId, PeerId
from edgepool.model.record import (
    RECORD_KINDS,
    Complaint,
    DataDemand,
    MachiningRequirement,
    Share,
    SignedRecord,
    TransferReceipt,
    sign_record,
)
from edgepool.model.twin import DataKey


@pytest.fixture
def world() -> World:
    return World()


def verdict(world: World, *records: SignedRecord) -> str:
    """Return what is said of the last record, after the others were let in."""
    draft = world.state.draft()
    for signed in records[:-1]:
        assert draft.add(signed) == ""
    return draft.add(records[-1])


def test_every_kind_of_record_has_a_contract_under_name_and_version() -> None:
    assert sorted(CONTRACTS) == sorted(RECORD_KINDS)
    assert all(REGISTRY[contract.name, contract.version] is contract for contract in CONTRACTS.values())


# --- what holds for every record


def test_kind_without_a_contract_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CONTRACTS, "demand")
    assert "no contract" in verdict(world, world.demand(0))


def test_record_of_another_network_or_chain_is_refused(world: World) -> None:
    author, body = world.signers[0], world.demand(0).record.body
    elsewhere = sign_record(author, "other works", world.genesis.chain, body, 1, 1)
    assert "another network" in verdict(world, elsewhere)
    assert "another chain" in verdict(world, sign_record(author, "works", ChainId("a" * 40), body, 1, 1))


def test_only_members_write_and_the_coordinator_only_requirements_and_changes(world: World) -> None:
    body = world.demand(0).record.body
    assert "no member" in verdict(world, world.record(world.outsider, body))
    assert "only as a member" in verdict(world, world.record(world.coordinator, body))
    assert verdict(world, world.requirement(0, 1)) == ""
    assert verdict(world, world.record(world.coordinator, world.change(outgoing=world.signers[0]))) == ""
    assert "no member" in verdict(world, world.record(world.outsider, world.change(world.signers[0])))


def test_coordinator_who_is_a_member_may_do_what_members_do() -> None:
    world = World(coordinator_votes=True)
    assert verdict(world, world.demand(3)) == ""
    assert verdict(world, *world.step_records(0, 3)) == ""


def test_record_stands_once(world: World) -> None:
    demand = world.demand(0)
    assert "already" in verdict(world, demand, demand)
    world.pack(demand)
    assert "already" in verdict(world, demand)


def test_same_statement_with_another_nonce_is_another_record(world: World) -> None:
    assert verdict(world, world.demand(0), world.demand(0)) == ""


def test_oversized_record_is_refused(world: World) -> None:
    huge = world.record(world.signers[0], DataDemand(KEY, 0, "x" * 5000, ""))
    assert "4096 are allowed" in verdict(world, huge)


# --- tasks


def test_only_the_coordinator_states_requirements(world: World) -> None:
    stolen = world.record(world.signers[0], world.requirement(0, 0).record.body)
    assert "a machine may not state requirements: only a coordinator may" in verdict(world, stolen)


def test_station_of_a_requirement_is_a_member(world: World) -> None:
    body = world.requirement(0, 0).record.body
    foreign = msgspec.structs.replace(body, station=world.outsider.peer)
    assert "station is no member" in verdict(world, world.record(world.coordinator, foreign))


def test_requirements_of_a_task_agree(world: World) -> None:
    first = world.requirement(0, 0)
    assert "count from 0" in verdict(world, world.requirement(3, 0, steps=3))
    assert "another part" in verdict(world, first, world.requirement(1, 1, part="PTVN10312"))
    assert "has 3 steps, not 4" in verdict(world, first, world.requirement(1, 1, steps=4))
    assert "step 0" in verdict(world, first, world.requirement(0, 1, number=15))
    assert "operation 10" in verdict(world, first, world.requirement(1, 1, number=10))
    assert verdict(world, first, world.requirement(1, 1)) == ""
    assert verdict(world, first, world.requirement(0, 1, task="T2", part="PTVN10312", steps=4)) == ""


def test_procedure_is_written_by_the_required_station_once(world: World) -> None:
    required = world.requirement(0, 1)
    assert "not required" in verdict(world, world.procedure(0, 1))
    assert "another station" in verdict(world, required, world.procedure(0, 2))
    assert "not required" in verdict(world, required, world.procedure(1, 1))
    assert "started already" in verdict(world, required, world.procedure(0, 1), world.procedure(0, 1))


def test_step_starts_only_after_the_step_before_is_complete(world: World) -> None:
    second = [world.requirement(1, 1), world.procedure(1, 1)]
    assert "step 0 of task 'T1' is not complete" in verdict(world, *second)
    assert "not complete" in verdict(world, world.requirement(0, 0), world.procedure(0, 0), *second)
    assert verdict(world, *world.step_records(0, 0), *second) == ""


def test_completion_follows_the_procedure_once(world: World) -> None:
    required, started, done = world.step_records(0, 1)
    assert "not started" in verdict(world, required, done)
    assert "another station" in verdict(world, required, started, world.completion(0, 2))
    assert "complete already" in verdict(world, required, started, done, world.completion(0, 1))


def test_station_inspects_its_step_once_it_has_started_and_each_feature_once(world: World) -> None:
    required, started, done = world.step_records(0, 1)
    inspected = world.inspection(0, 1)
    assert "not required" in verdict(world, inspected)
    assert "not started" in verdict(world, required, inspected)
    assert "inspected already" in verdict(world, required, started, inspected, world.inspection(0, 1))
    assert verdict(world, required, started, inspected, done, world.inspection(0, 1, "Feature-4")) == ""


def test_others_inspect_a_step_once_it_is_complete_and_each_feature_once(world: World) -> None:
    required, started, done = world.step_records(0, 1)
    own, other = world.inspection(0, 1), world.inspection(0, 2)
    assert "not complete" in verdict(world, required, other)
    assert "not complete" in verdict(world, required, started, own, other)
    assert verdict(world, required, started, own, done, other) == ""
    assert verdict(world, required, started, done, other, world.inspection(0, 3, accepted=False)) == ""
    again = world.inspection(0, 2, accepted=False)
    assert "inspected already" in verdict(world, required, started, done, other, again)
    stranger = world.record(world.outsider, other.record.body)
    assert "no member" in verdict(world, required, started, done, stranger)


def test_inspections_of_a_step_are_bounded_for_each_member(world: World) -> None:
    many = [world.inspection(0, 1, f"F{i}") for i in range(MAX_INSPECTIONS + 1)]
    few = [world.inspection(0, 2, f"F{i}") for i in range(MAX_OTHERS_INSPECTIONS + 1)]
    assert "at most 256" in verdict(world, *world.step_records(0, 1), *many)
    assert "at most 8" in verdict(world, *world.step_records(0, 1), *few)
    assert verdict(world, *world.step_records(0, 1), *many[:-1], *few[:-1], world.inspection(0, 3)) == ""


def test_the_rule_for_inspections_that_was_replaced_is_kept() -> None:
    assert CONTRACTS["inspection"].version == 2
    assert REGISTRY["inspection", 1] is not CONTRACTS["inspection"]


# --- data


def test_holders_of_one_version_offer_the_same_bytes(world: World) -> None:
    assert verdict(world, world.offer(0), world.offer(1)) == ""
    assert "another root" in verdict(world, world.offer(0), world.offer(1, data=b"forged"))
    assert "another size" in verdict(world, world.offer(0), world.offer(1, size=5))
    assert "offers version 1 already" in verdict(world, world.offer(0), world.offer(0))


def test_versions_of_a_key_only_rise(world: World) -> None:
    newer = world.offer(0, 3, b"new")
    assert "older than version 3" in verdict(world, newer, world.offer(1, 2, b"old"))
    assert verdict(world, world.offer(0), newer, world.offer(1, 3, b"new")) == ""
    assert verdict(world, newer, world.offer(1, 1, key=DataKey("PTVA10212-03", "error"))) == ""


@pytest.mark.parametrize("key", [DataKey("a/b", "model"), DataKey("p", "mo\x00del"), DataKey(" p", "model")])
def test_hostile_keys_are_refused(world: World, key: DataKey) -> None:
    assert "not a data key" in verdict(world, world.offer(0, key=key))
    assert "not a data key" in verdict(world, world.demand(0, key))


def test_confirmation_needs_both_sides(world: World) -> None:
    holder, requester = world.signers[0], world.outsider
    good = world.confirmation(holder, requester)
    assert verdict(world, good) == ""
    assert "by the holder" in verdict(world, world.confirmation(holder, requester, author=world.signers[1]))
    assert "same peer" in verdict(world, world.confirmation(holder, holder))
    replayed = world.confirmation(holder, requester, network="other works")
    assert "requester's signature" in verdict(world, replayed)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("valid_until_ms", 100, "requester's signature"),
        ("requester", signer("thief").peer, "requester's signature"),
        ("requester", PeerId("0" * 50), "requester's signature"),
        ("key", DataKey("a/b", "model"), "not a data key"),
    ],
)
def test_changed_terms_of_a_confirmation_are_refused(
    world: World, field: str, value: object, reason: str
) -> None:
    body = world.confirmation(world.signers[0], world.outsider).record.body
    changed = msgspec.structs.replace(body, **{field: value})
    assert reason in verdict(world, world.record(world.signers[0], changed))


def test_reasons_fit_into_the_message_that_carries_them(world: World) -> None:
    name = "x" * 64
    required = world.requirement(0, 1, task=name, part=name)
    body = required.record.body
    assert isinstance(body, MachiningRequirement)
    clash = world.record(world.coordinator, msgspec.structs.replace(body, part="y" * 64))
    for refused in (
        clash,
        world.requirement(0, 1, task=name, part=name),
        world.procedure(0, 2, task=name),
        world.completion(0, 1, task=name),
        world.inspection(5, 1, task=name),
    ):
        reason = verdict(world, required, refused)
        assert reason
        assert len(reason) <= 256


def test_a_receipt_says_who_sent_how_much_and_adds_up(world: World) -> None:
    author = world.signers[0]
    first, second = sorted((world.peers[1], world.outsider.peer))

    def receipt(*shares: Share, size_bytes: int = 10, key: DataKey = KEY) -> SignedRecord:
        return world.record(author, TransferReceipt(key, 1, bytes(32), size_bytes, shares, 5))

    for good in (receipt(), receipt(Share(first, 10)), receipt(Share(first, 4), Share(second, 5))):
        assert verdict(world, good) == ""
    for bad, why in (
        (receipt(Share(second, 4), Share(first, 4)), "not in order"),
        (receipt(Share(first, 4), Share(first, 4)), "stands twice"),
        (receipt(Share(author.peer, 4)), "from itself"),
        (receipt(Share(first, 0)), "has no share"),
        (receipt(Share(first, 6), Share(second, 5)), "more than the data"),
        (receipt(key=DataKey("P", "a/b")), "not a data key"),
    ):
        assert why in verdict(world, bad)


def test_a_complaint_is_of_somebody_else(world: World) -> None:
    author = world.signers[0]
    for holder, key, why in (
        (world.peers[1], KEY, ""),
        (world.outsider.peer, KEY, ""),
        (author.peer, KEY, "of itself"),
        (world.peers[1], DataKey("P", "a/b"), "not a data key"),
    ):
        found = verdict(world, world.record(author, Complaint(key, bytes(32), 7, holder, bytes(32))))
        assert why in found
        assert bool(why) == bool(found)
