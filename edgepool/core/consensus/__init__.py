"""Tendermint on one chain, and the lottery of proof of manufacturing that says who proposes."""
