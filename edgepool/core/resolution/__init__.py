"""Finding data: Algorithm 2, ranking of holders, confirmation of a transfer."""
