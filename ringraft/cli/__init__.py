"""The command line: thin commands over ``ringraft.client``, and the processes they start."""
