"""The command line: one file a verb. It parses, calls one function of a room and prints."""
