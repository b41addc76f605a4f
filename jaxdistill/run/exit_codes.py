"""Exit codes of the commands, which the README explains; 0 means done, or stopped by a signal after saving."""

# The config, command line, data or user's code is wrong; or disk space, memory, a package or a process is missing.
MISTAKE = 2
# A loss is not finite during training.
DIVERGED = 3
# A file of the run is damaged, and nothing can replace it.
DAMAGED = 4
# Another process of the run died; start all of them again.
LOST_PROCESS = 5
# jaxdistill has a bug; the traceback is written to a file (EX_SOFTWARE).
BUG = 70
# A part of a study was stopped; Slurm starts no job that needs it (EX_TEMPFAIL).
UNFINISHED = 75
# A second Ctrl-C ended the command before its state was saved (128 + SIGINT).
INTERRUPTED = 130
# Nobody reads the output any more (128 + SIGPIPE).
NO_READER = 141
