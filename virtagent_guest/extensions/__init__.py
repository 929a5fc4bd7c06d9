"""Extensions: files in a directory that become methods of the agent (docs/extensions.md)."""
