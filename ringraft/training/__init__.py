"""What the workers do for training: executors, each a function that runs in a process of its own."""
