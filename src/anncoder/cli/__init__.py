"""The command line: :mod:`anncoder.cli.app` says what can be typed, the others what each command does."""
