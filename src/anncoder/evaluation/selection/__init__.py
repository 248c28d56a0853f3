"""Model selection: settings scored on held-out cells, at random or from a list, with a journal."""
