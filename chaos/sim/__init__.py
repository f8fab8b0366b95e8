"""The code that ships, on a virtual clock, network and disk, in one thread, from one seed."""
