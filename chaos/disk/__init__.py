"""Real disks: power cuts, death at every system call, failing writes and syncs, damaged bytes."""
