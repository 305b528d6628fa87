"""The local HTTP API and the metrics of a running peer."""
