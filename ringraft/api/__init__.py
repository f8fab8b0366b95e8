"""The REST interface: one route table, strict bodies, problem documents, forwarding to the leader."""
