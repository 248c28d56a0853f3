"""What the commands do; :mod:`anncoder.cli` says how they are called."""
