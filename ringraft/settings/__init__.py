"""The parts of ``ringraft.config``: the tree, its types and rules, and the forms a value arrives in."""
