"""Wait until all processes of a run are there, before JAX connects them: JAX would wait silently, and then abort.

Process 0 listens at the address of the coordinator. The others send it a line with their numbers. When all have come,
process 0 answers each, and the port is free for JAX.
"""

import contextlib
import functools
import re
import socket
import sys
import time
from collections.abc import Callable

from jaxdistill.core.errors import ConfigError

FIRST_NOTE, NEXT_NOTES = 10.0, 30.0  # seconds until the first note about processes that are missing; between notes
RETRY = 0.2  # seconds between two attempts to connect
HELLO = re.compile(r"jaxdistill process (\d{1,9}) of (\d{1,9})\n")
GO = b"go\n"


class _Notes:
    """A timer that prints a note about missing processes after 10 seconds, then every 30 seconds, until a timeout."""

    def __init__(self, timeout: float):
        self._start, self._timeout, self._next = time.monotonic(), timeout, FIRST_NOTE

    def check(self, problem: Callable[[], str]) -> None:
        """Print a note if one is due; `problem()` returns its text.

        Raises:
            ConfigError: the timeout has passed.
        """
        waited = time.monotonic() - self._start
        if waited >= self._timeout:
            cure = "Start the missing processes, check the address, or wait longer by distributed.timeout"
            raise ConfigError("distributed", f"waited {waited:.0f} s: {problem()}. {cure}.")
        if waited >= self._next:
            sys.stderr.write(f"waiting for {waited:.0f} s: {problem()}\n")
            sys.stderr.flush()
            self._next += NEXT_NOTES


def wait_for_all(address: str, processes: int, process: int, timeout: float) -> None:
    """Wait until all processes of a run have called this function.

    Args:
        address: host:port of process 0.
        processes: number of processes.
        process: number of this process, from 0.
        timeout: seconds to wait at most.

    Raises:
        ConfigError: a process is still missing after the timeout, two processes have the same number, or processes were
            started with different values of `processes`; the message names the processes.
    """
    host, _, port = address.rpartition(":")
    if processes > 1 and process == 0:
        _receive(int(port), processes, timeout)
    elif processes > 1:
        _join(host, int(port), processes, process, timeout)


def _receive(port: int, processes: int, timeout: float) -> None:
    """Listen until every other process has sent its number, then answer all of them."""
    notes, joined = _Notes(timeout), dict[int, socket.socket]()

    def missing() -> str:
        numbers = [number for number in range(1, processes) if number not in joined]
        names = f"process {numbers[0]}" if len(numbers) == 1 else f"processes {', '.join(map(str, numbers))}"
        return f"{names} of {processes} did not reach process 0 at port {port}"

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        server.settimeout(RETRY)
        while len(joined) < processes - 1 or not all(map(_is_open, joined.values())):
            for gone in [number for number, client in joined.items() if not _is_open(client)]:
                del joined[gone]  # it has left; its successor may take its place
            notes.check(missing)
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            stack.enter_context(client)
            number = _number_of(client, processes)
            if number is None:  # something else has connected
                client.close()
            if number in joined and _is_open(joined[number]):
                raise ConfigError("distributed.process", f"two processes have the number {number}; number them from 0.")
            if number is not None:
                joined[number] = client
        for number, client in joined.items():
            client.settimeout(5)
            try:
                client.sendall(GO)
            except OSError as error:
                problem = f"process {number} died while the processes connected ({error})"
                raise ConfigError("distributed", f"{problem}. Start all processes again.") from None
        for client in joined.values():  # whoever closes first keeps the port busy for a minute, so the others do
            with contextlib.suppress(OSError):
                client.recv(1)


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        cure = "Choose another port, or end the run that uses it"
        raise ConfigError("distributed.coordinator", f"port {port} cannot be opened ({error}). {cure}.") from None


def _number_of(client: socket.socket, processes: int) -> int | None:
    """Return the process number that a client has sent, or None if the client is no process of jaxdistill."""
    client.settimeout(5)
    try:
        match = HELLO.fullmatch(client.makefile("r", encoding="ascii", errors="replace").readline(64))
    except OSError:
        return None
    if match is None:
        return None
    number, total = int(match[1]), int(match[2])
    if total != processes or not 0 < number < processes:
        problem = f"a process says that it is number {number} of {total}, but here there are {processes}"
        raise ConfigError("distributed.processes", f"{problem}. Give all processes the same number.")
    return number


def _is_open(client: socket.socket) -> bool:
    """Return True if the connection to a process that has joined is still open."""
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _join(host: str, port: int, processes: int, process: int, timeout: float) -> None:
    """Send the number of this process to process 0, and wait for its answer."""
    notes, problem = _Notes(timeout), "not tried"
    while True:
        notes.check(functools.partial("process 0 cannot be reached at {}:{} ({})".format, host, port, problem))
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.sendall(f"jaxdistill process {process} of {processes}\n".encode())
                server.settimeout(RETRY)
                while True:
                    notes.check(lambda: f"process 0 at {host}:{port} waits for other processes")
                    with contextlib.suppress(TimeoutError):
                        if server.recv(len(GO)) == GO:
                            return
                        problem = "it closed the connection"
                        break  # it may be started again
        except OSError as error:
            problem = str(error)
        time.sleep(RETRY)
