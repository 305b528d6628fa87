from __future__ import annotations

from pathlib import Path

import pytest

from edgepool.errors import ConfigError
from edgepool.workshop.topology import Topology, is_workshop, load_topology

EXAMPLES = Path(__file__).parents[2] / "examples"

PEERS = """
[network]
name = "test"
[[peers]]
name = "cloud"
role = "coordinator"
[[peers]]
name = "a"
[[peers]]
name = "b"
[[peers]]
name = "c"
"""


def topology(tmp_path: Path, rest: str, peers: str = PEERS) -> Topology:
    path = tmp_path / "topology.toml"
    path.write_text(peers + rest)
    return load_topology(path)


@pytest.mark.parametrize("name", ["star.toml", "line.toml"])
def test_the_examples_can_be_run(name: str) -> None:
    assert load_topology(EXAMPLES / name).check() == []


def test_the_line_needs_queries_that_hop_from_pool_to_pool() -> None:
    line = load_topology(EXAMPLES / "line.toml")
    routes = [line.route(exchange) for exchange in line.exchanges]
    assert [route.hops for route in routes if route] == [0, 1, 2, 2]
    far = routes[2]
    assert far is not None
    assert far.path == ("d", "c-d", "c", "b-c", "b", "a-b")


def test_data_is_published_in_the_pool_nearest_to_who_wants_it(tmp_path: Path) -> None:
    two = topology(
        tmp_path,
        """
[[pools]]
name = "first"
members = ["a", "b"]
[[pools]]
name = "second"
members = ["a", "c"]
[[exchanges]]
from = "a"
to = "c"
key = "P-1/model"
""",
    )
    route = two.route(two.exchanges[0])
    assert route is not None
    assert (route.pool, route.hops) == ("second", 0)


def test_the_first_peer_coordinates_if_no_other_does(tmp_path: Path) -> None:
    rest = '[[pools]]\nname = "p"\nmembers = ["x", "y"]\n'
    peers = '[network]\nname = "t"\n[[peers]]\nname = "x"\n[[peers]]\nname = "y"\n'
    assert topology(tmp_path, rest, peers).coordinator.name == "x"


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "b", "ghost"]',
            "a member 'ghost' who is not among the peers",
        ),
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "a", "b", "c"]',
            "member of pool 'p' 'a' stands there twice",
        ),
        ('[[pools]]\nname = "p"\nmembers = []', "pool 'p' has 0 members"),
        ('[[pools]]\nname = "p"\nmembers = ["a", "b"]', "peer 'c' is in no pool"),
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "b"]\n[[pools]]\nname = "q"\nmembers = ["c"]',
            "fall apart into 2 groups that share no peer: p | q",
        ),
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "b", "c"]\n'
            '[[exchanges]]\nfrom = "a"\nto = "z"\nkey = "P/model"',
            "names 'z', who is not among the peers",
        ),
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "b", "c"]\n'
            '[[exchanges]]\nfrom = "a"\nto = "b"\nkey = "model"',
            "'model' is not a data key",
        ),
        (
            '[[pools]]\nname = "p"\nmembers = ["a", "b", "c"]\n'
            '[[exchanges]]\nfrom = "a"\nto = "b"\nkey = "P/model"\nexpect_hops = 3',
            "expects 3 hops, but the pools make it 0",
        ),
    ],
)
def test_the_check_names_what_is_wrong(tmp_path: Path, rest: str, problem: str) -> None:
    assert problem in "\n".join(topology(tmp_path, rest).check())


def test_a_peer_name_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    peers = '[network]\nname = "t"\n[[peers]]\nname = "../x"\n'
    problems = topology(tmp_path, '[[pools]]\nname = "p"\nmembers = ["../x"]', peers).check()
    assert "cannot name a folder" in problems[0]


def test_a_malformed_file_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"topology.toml.*pools\[0\].*kind"):
        topology(tmp_path, '[[pools]]\nname = "p"\nmembers = ["a"]\nkind = "loose"')
    with pytest.raises(ConfigError, match="does not exist"):
        load_topology(tmp_path / "none.toml")


def test_a_workshop_is_told_from_a_topology(tmp_path: Path) -> None:
    workshop = tmp_path / "workshop.toml"
    workshop.write_text('[[parts]]\nnumber = "P"\n[[machines]]\nname = "m"\n')
    assert is_workshop(workshop)
    assert not is_workshop(EXAMPLES / "star.toml")
