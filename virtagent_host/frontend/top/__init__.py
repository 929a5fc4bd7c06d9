"""`va-host top`: a live screen of VMs.

spark    a curve in one line
figures  what one VM's row tells, and its past
watcher  a thread for each VM that fills its row
screen   rows → what is drawn
live     the terminal: keys, size, signals; one screen in a pipe
"""
