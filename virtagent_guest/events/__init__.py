"""Events that the guest tells its host."""
