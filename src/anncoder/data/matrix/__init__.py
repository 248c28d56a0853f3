"""Reading, checking and describing a count matrix, in memory or on disk."""
