"""The running node: what stands between the replicated log and the REST surface."""
