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
                "case RequestVote(term, last_index, last_term):\n",
                "case RequestVote(term, last_index, last_term):\n            self._SyncObj__votedForNodeId = None\n",
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
)
