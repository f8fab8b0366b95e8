"""Bugs in the replicated log: journal, votes, commits, reads, snapshots."""

from __future__ import annotations

from chaos.mutants.mutant import Edit, Mutant

REPLOG = "ringraft.consensus.replog"

LOG = (
    Mutant(
        "votes_counted_twice",
        "a vote that arrives twice counts twice",
        "one leader per term",
        (Edit(f"{REPLOG}.filter:Votes.is_new", "if voter in self.voters:", "if voter in ():"),),
    ),
    Mutant(
        "two_votes_a_term",
        "a node forgets whom it voted for, and votes again in the same term",
        "one vote per node and term",
        (
            Edit(
                f"{REPLOG}.journal:Journal.setCurrentTerm",
                "assert term > self._vote.term or",
                "assert True or",
            ),
            Edit(
                f"{REPLOG}.syncobj:RaftLog.receive",
                "if is_asked_to or not self.has_live_leader():\n",
                "if is_asked_to or not self.has_live_leader():\n                self._SyncObj__votedForNodeId = None\n",
            ),
        ),
    ),
    Mutant(
        "truncation_on_a_match",
        "entries that arrive again cut the log behind them, committed ones too",
        "what is committed stays",
        (
            Edit(f"{REPLOG}.filter:place", "if log[index - first][2] != term:", "if index <= last:"),
            Edit(f"{REPLOG}.filter:place", "            if index <= commit_index:", "            if index < 0:"),
            Edit(f"{REPLOG}.journal:Journal.deleteEntriesFrom", "assert index >= self._commit_index,", "assert True,"),
        ),
    ),
    Mutant(
        "conflict_not_cut",
        "a follower keeps its own entries where the leader's conflict, and says that they match",
        "the same entry at the same index everywhere",
        (
            Edit(
                f"{REPLOG}.filter:place",
                "            return Placement(index, _records(entries, offset, prev), matched)",
                "            return Placement(None, (), matched)",
            ),
        ),
    ),
    Mutant(
        "commit_beyond_the_match",
        "a follower commits as far as the leader says, also what it holds of another leader",
        "the same entry at the same index everywhere",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._take_entries",
                "min(message.commit_index, placement.matched)",
                "min(message.commit_index, self.last_index())",
            ),
        ),
    ),
    Mutant(
        "answer_of_a_replaced_entry",
        "who proposed into an entry that another one replaced is told the other one's outcome",
        "an answer is of the command it answers",
        (Edit("ringraft.consensus.proposals:Proposals.applied", "if made.term == term:", "if made:"),),
    ),
    Mutant(
        "unknown_called_not_applied",
        "a proposal in an entry that nobody has confirmed ends as not applied",
        "not applied means never",
        (Edit("ringraft.consensus.proposals:Proposals.expire", "if proposal.index:", "if proposal.index < 0:"),),
    ),
    Mutant(
        "log_time_begins_anew",
        "a new leader stamps entries with its own clock instead of going on from the log's time",
        "time without a leader ends nothing",
        (
            Edit(
                "ringraft.consensus.entries:EntryMaker._append",
                "log_ms=base.log_ms + self._clock.monotonic_ms() - base.monotonic_ms,",
                "log_ms=self._clock.monotonic_ms(),",
            ),
        ),
    ),
    Mutant(
        "commit_by_an_older_term",
        "a leader commits an entry of an older term by counting copies of it",
        "what is committed stays (the figure 8 of the Raft paper)",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._SyncObj__getEntries",
                "return self._journal[position : position + 1]",
                "return [(command, index, self.term()) for command, index, _ in "
                "self._journal[position : position + 1]]",
            ),
        ),
    ),
    Mutant(
        "no_sync_before_an_answer",
        "a follower says that it holds entries before its disk does",
        "acknowledged means kept, whatever dies",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._take_entries",
                "self.promise(node.id, answer)",
                "self._host.send(node.id, encode(answer))",
            ),
        ),
    ),
    Mutant(
        "heartbeat_promises_the_unsynced",
        "the answer to a heartbeat counts entries that are not durable yet",
        "acknowledged means kept, whatever dies",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._take_entries",
                "durable = min(placement.matched, self.durable_index())",
                "durable = placement.matched",
            ),
        ),
    ),
    Mutant(
        "own_copy_counted_unsynced",
        "a leader counts its own copy of an entry before its disk holds it",
        "acknowledged means kept, whatever dies",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._count",
                "self._agreed(self.durable_index(),",
                "self._agreed(self.last_index(),",
            ),
        ),
    ),
    Mutant(
        "vote_leaves_before_its_sync",
        "a vote is sent before the disk holds it",
        "one vote per node and term, over power cuts too",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog.promise",
                "self._promises.make(peer_id, message)",
                "self._host.send(peer_id, encode(message)) if isinstance(message, Vote | RequestVote) "
                "else self._promises.make(peer_id, message)",
            ),
        ),
    ),
    Mutant(
        "term_not_kept",
        "the vote file is written once and never again",
        "terms never fall over restarts",
        (
            Edit(
                f"{REPLOG}.journal:Journal._write_out",
                "if vote != self._vote_kept:",
                "if vote != self._vote_kept and not self._vote_kept.term:",
            ),
        ),
    ),
    Mutant(
        "sync_that_syncs_nothing",
        "the journal writes and says that it synced",
        "acknowledged means kept, whatever dies",
        (Edit(f"{REPLOG}.journal:Journal.sync", "self._tape.sync()", "self._tape.flush()"),),
    ),
    Mutant(
        "sync_covers_what_came_during_it",
        "a sync counts for entries that were written while it ran",
        "acknowledged means kept, whatever dies",
        (Edit(f"{REPLOG}.journal:Journal.sync", "self._synced = written\n", "self._synced = self._written\n"),),
    ),
    Mutant(
        "half_is_a_majority",
        "one copy too few decides",
        "a majority of the configured voters, and nothing lowers it",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._agreed", "agreed(values, self._quorum)", "agreed(values, self._quorum - 1)"
            ),
        ),
    ),
    Mutant(
        "stale_answers_counted",
        "an acknowledgement of an older term counts in the present one",
        "replies of a stale term are dropped",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog._take_answer",
                "if answer.term < self.term() or not self.is_leader()",
                "if not self.is_leader()",
            ),
        ),
    ),
    Mutant(
        "reads_without_a_barrier",
        "a node answers reads that must be fresh from what it happens to have applied",
        "a read sees what was acknowledged before it",
        (
            Edit(
                "ringraft.consensus.raft:RaftConsensus.read_barrier",
                "self._pace.soon()\n",
                "return self._log.applied_index()\n",
            ),
        ),
    ),
    Mutant(
        "leader_reads_without_a_round",
        "who believes to lead confirms reads by itself, without asking a majority",
        "a leader that was replaced answers no read",
        (
            Edit(
                "ringraft.consensus.reads:Reads._begin",
                "if log.confirmed_round() >= self._question.number:",
                "if log.is_leader():",
            ),
        ),
    ),
    Mutant(
        "snapshot_named_before_its_sync",
        "a snapshot gets its name while its bytes are on their way to the disk",
        "log and snapshot agree at every instant of a crash",
        (Edit(f"{REPLOG}.snapshot:SnapshotWriter.commit", "self._file.sync()", "pass"),),
    ),
    Mutant(
        "log_dropped_before_the_snapshot",
        "the log forgets what a snapshot covers before that snapshot is durable",
        "log and snapshot agree at every instant of a crash",
        (
            Edit(
                f"{REPLOG}.install:Images.make",
                "snapshot = await in_thread(writer.commit)\n",
                "self._log.forget_before(base.index)\n    self._log.forget_before(base.index)\n"
                "    self._log._journal._note(__import__('ringraft.consensus.replog.journal', "
                "fromlist=['Drop']).Drop(base.index - 1))\n"
                "    snapshot = await in_thread(writer.commit)\n",
            ),
        ),
    ),
    Mutant(
        "snapshot_ahead_of_its_log",
        "a snapshot is kept before this node's own log is durable as far",
        "log and snapshot agree at every instant of a crash",
        (Edit(f"{REPLOG}.install:Images.make", "await self._log_kept()", "pass"),),
    ),
    Mutant(
        "applied_twice_after_install",
        "the last entry that an installed snapshot covers is applied on top of it",
        "each entry is applied once",
        (
            Edit(
                f"{REPLOG}.syncobj:RaftLog.stand_at",
                "self._SyncObj__raftLastApplied = base.index",
                "self._SyncObj__raftLastApplied = base.index - 1",
            ),
        ),
    ),
    Mutant(
        "wiped_directory_votes",
        "a voter that comes back with an empty directory votes as if it had kept its promises",
        "who lost what it promised has no vote until it is admitted again",
        (
            Edit(
                "ringraft.consensus.roll:Roll.may_vote", "return self.seat.standing == Standing.MEMBER", "return True"
            ),
            Edit(
                "ringraft.consensus.roll:Roll.counts",
                "said is None or said.standing != Standing.MEMBER or self.is_foreign(peer_id)",
                "said is None",
            ),
            Edit("ringraft.consensus.roll:Roll.counts", 'record.data_id in ("", said.data_id)', "True"),
        ),
    ),
)
