"""The same core in virtual time, from a seed."""
