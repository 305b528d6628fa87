"""A factory on top of peers: orders, stations, coordinator, the demo and its cloud baseline."""
