"""The extensions of a guest's agent, as commands: ``va.x_df`` there is ``va_x_df`` here."""
