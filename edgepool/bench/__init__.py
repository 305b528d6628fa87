"""The benchmark: what a peer costs on this machine, each figure beside the bare thing it is built on."""
