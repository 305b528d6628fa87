"""Values: identities, records, blocks, messages, the one codec and the one crypto module. No I/O."""
