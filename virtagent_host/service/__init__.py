"""The service of one VM: what `va-host attach` and `va-host launch` run."""
