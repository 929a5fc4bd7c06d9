"""Statistics of the guest, for clients of the bridge.

record        what a guest may say, and nothing else
commands      va_stats, va_stats_stop: their entries for the table of `commands`
subscription  a client's, with the events that it gets
"""
