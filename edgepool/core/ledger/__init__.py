"""What records mean: the state of a chain, the contracts at its door, mempool, proofs, full checks."""
