"""What survives a power cut: blocks, votes, blobs."""
