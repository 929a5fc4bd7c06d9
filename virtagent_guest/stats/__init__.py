"""What goes on in the guest, measured: a reader for each section, and the sampler that asks them.

rates         counters and clocks → rates
procfs        files of the kernel, read within bounds
cpu  memory  pressure  load  disks  network  filesystems  processes    one reader each
sampler       sections → a record
subscription  records on a stream, as often as was asked for, to a reader who keeps up

docs/statistics.md has each member of a record with its unit.
"""
