"""The command line: what is run by people and by build tools, never by a service."""
