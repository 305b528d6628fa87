"""Edge pools: combination of a route, Algorithm 1, invitation and acceptance."""
