"""One function per command, by area. Each only reads and answers with a Decision, or refuses."""
