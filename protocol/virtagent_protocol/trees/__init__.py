"""Files and trees over one stream (SPEC.md section 13): both ends send and receive by these modules.

==========  =========================================================================
module      what
==========  =========================================================================
`records`   records ↔ bytes, without I/O
`entries`   what a record says of a file, directory or symbolic link; names
`digests`   checksums, computed beside the I/O
`pack`      a path → bytes of records
`listen`    what the sender hears of the receiver
`unpack`    bytes of records → a path
`inventory` what the receiver has already
`landing`   one file on its way: temporary name, flushed, renamed
`place`     a path taken apart into a directory that is open and a name in it
==========  =========================================================================

Nothing here is asynchronous: it blocks on disks. The command line calls it as it is, an agent in threads.
"""
