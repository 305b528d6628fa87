"""The child process in which py-libp2p lives: the only place that imports trio or libp2p.

A peer starts it (transport/libp2p.py) and speaks `messages` with it over a socket pair. It carries byte
streams between this peer and others, authenticated by Noise, and decides nothing: who is a member is judged
by the parent, which holds the certificates.
"""
