"""The host end of virtagent: the trio service `va-host`, its QMP bridge and its CLI."""
