"""Exit codes of the commands; the README explains each to users.

0     done; or stopped by a signal, and saved
"""

MISTAKE = 2  # in the config, the command line, the data or the user's own code; or no space, memory, package or process
DIVERGED = 3  # the training: a loss is not finite
DAMAGED = 4  # a file of the run, and nothing can replace it
LOST_PROCESS = 5  # another process of the run died: start all of them again
BUG = 70  # of jaxdistill, whose traceback is written to a file (EX_SOFTWARE)
UNFINISHED = 75  # a part of a study was stopped, so that Slurm starts no job that needs it (EX_TEMPFAIL)
INTERRUPTED = 130  # by a second Ctrl-C, unsaved (128 + SIGINT)
NO_READER = 141  # the reader of the output has gone (128 + SIGPIPE)
