"""Bugs in the queue: the state machine and the node around it."""

from __future__ import annotations

from chaos.mutants.mutant import Edit, Mutant

QUEUE = (
    Mutant(
        "token_not_compared",
        "complete, fail, start, renew and release take any token of an item that has one",
        "only the newest token counts",
        (
            Edit(
                "ringraft.state.decide.item:held",
                "if grant is None or grant.token != token:",
                "if grant is None:",
            ),
        ),
    ),
    Mutant(
        "completed_again",
        "a repeated completion is carried out again instead of being answered",
        "one accepted completion per item",
        (Edit("ringraft.state.decide.finish:complete", "if end is not None:", "if end is not None and op.spawn:"),
         Edit("ringraft.state.decide.finish:may_finish", "if item.is_leased:", "if item.is_leased or item.is_final:")),
    ),
    Mutant(
        "late_result_after_grant",
        "a result is taken while the item waits, however its lease had ended",
        "released, failed and timed-out leases hand in nothing",
        (
            Edit(
                "ringraft.state.decide.finish:may_finish",
                'item.grant is not None and item.grant.verdict == "expired"',
                "item.grant is not None",
            ),
        ),
    ),
    Mutant(
        "lease_by_local_clock",
        "each replica lets leases run out by its own clock instead of the log's time",
        "state is a function of the log",
        (
            Edit(
                "ringraft.node.replica:Replica.apply",
                "applied = machine.apply(index, entry)",
                "applied = machine.apply(index, type(entry)(max(entry.log_ms, self._clock.monotonic_ms()), "
                "entry.wall_ms, entry.epoch, entry.commands))",
            ),
        ),
    ),
    Mutant(
        "keys_lost_in_snapshot",
        "whoever starts from a snapshot has forgotten the idempotency keys",
        "one effect per key",
        (
            Edit(
                "ringraft.state.machine:Restoring.end",
                "return self._machine",
                "self._machine._tables.keys.clear()\n    return self._machine",
            ),
        ),
    ),
    Mutant(
        "key_not_remembered",
        "an add leaves no key behind, so its repeat adds again",
        "one effect per key",
        (Edit("ringraft.state.decide.add:Births.remembered", "if births else None", "if not births else None"),),
    ),
    Mutant(
        "renewal_without_effect",
        "a renewal is answered well and prolongs nothing",
        "a renewed lease lasts",
        (
            Edit(
                "ringraft.state.decide.claim:_renew_one",
                "expires_log_ms=at.log_ms + item.grant.lease_ms,",
                "expires_log_ms=item.grant.expires_log_ms,",
            ),
        ),
    ),
    Mutant(
        "expiry_keeps_old_grant_alive",
        "an item whose lease ran out is granted again under the old token",
        "tokens rise from grant to grant",
        (
            Edit(
                "ringraft.state.decide.claim:claim",
                "grant = Grant(op.node_id, token, lease_ms,",
                "token = item.grant.token if item.grant is not None else token\n"
                "        grant = Grant(op.node_id, token, lease_ms,",
            ),
        ),
    ),
    Mutant(
        "batch_stops_at_refusal",
        "a batch of completions answers all as completed, refused ones too",
        "an answer says what happened",
        (
            Edit(
                "ringraft.state.machine:StateMachine._complete_batch",
                "if isinstance(outcome, Done):",
                "if isinstance(outcome, Done) or True:",
            ),
        ),
    ),
)  # fmt: skip
