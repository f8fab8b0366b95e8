"""All planted bugs by name."""

from __future__ import annotations

from chaos.mutants.log import LOG
from chaos.mutants.mutant import Mutant
from chaos.mutants.queue import QUEUE

MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in (*LOG, *QUEUE)}
