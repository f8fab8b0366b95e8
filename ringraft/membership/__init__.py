"""Who is there: nodes that can be heard, as advice. Nobody leads, votes or loses a lease by it."""
