"""``python -m anncoder`` is the command line."""

from anncoder.cli.app import main

if __name__ == "__main__":
    main()
