"""Real voters that are killed, paused and stopped under clients that lose answers."""
