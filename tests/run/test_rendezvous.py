"""Tests of the start of a run with several processes: they wait for each other, and notes name the missing ones."""

import contextlib
import re
import socket
import threading
import time

import runs

from jaxdistill.core.errors import ConfigError
from jaxdistill.run import rendezvous
from jaxdistill.run.rendezvous import wait_for_all


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(port: int, processes: int, process: int, timeout: float = 20):
    """Start `wait_for_all` in a thread; return the thread and a list that gets its error message, or None."""
    raised: list[object] = []

    def work():
        try:
            wait_for_all(f"localhost:{port}", processes, process, timeout)
            raised.append(None)
        except ConfigError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, raised


def ended(*started):
    for thread, _ in started:
        thread.join(30)
        assert not thread.is_alive()
    return [raised[0] for _, raised in started]


def test_all_come_in_any_order_and_the_port_is_free_again():
    port = free_port()
    started = [start(port, 4, process) for process in (2, 0, 3, 1)]
    assert ended(*started) == [None] * 4
    assert ended(*[start(port, 2, process) for process in (1, 0)]) == [None] * 2
    wait_for_all("nowhere:1", 1, 0, 0.0)  # one process waits for nobody


def test_who_is_missing_is_named_soon_and_again(monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "FIRST_NOTE", 0.3)
    monkeypatch.setattr(rendezvous, "NEXT_NOTES", 0.6)
    port = free_port()
    first, second = ended(*(start(port, 4, 0, 2.0), start(port, 4, 2, 4.0)))
    assert re.match(
        rf"distributed: waited 2 s: processes 1, 3 of 4 did not reach process 0 at port {port}\. Start", first
    )
    said = capfd.readouterr().err
    assert len(re.findall(r"waiting for \d+ s: processes 1, 3 of 4 did not reach process 0", said)) == 3
    assert re.match(rf"distributed: waited 4 s: process 0 cannot be reached at localhost:{port}", second)
    assert f"process 0 at localhost:{port} waits for other processes" in said


def test_an_address_where_nobody_listens_is_named():
    port = free_port()
    (said,) = ended(start(port, 2, 1, 0.5))
    assert re.search(rf"process 0 cannot be reached at localhost:{port} \(.*refused\)\. Start the missing", said)


def test_two_processes_of_one_number_are_named():
    port = free_port()
    said, *_ = ended(*[start(port, 3, process, 3.0) for process in (0, 1, 1)])
    assert said.startswith("distributed.process: two processes have the number 1")


def test_another_number_of_processes_is_named():
    port = free_port()
    said, _ = ended(start(port, 3, 0, 3.0), start(port, 4, 1, 3.0))
    assert said.startswith("distributed.processes: a process says that it is number 1 of 4, but here there are 3.")


def say(port: int, words: bytes) -> None:
    """Connect as soon as somebody listens, say these words, and hang up."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)) as connection:
            connection.sendall(words)
            return


def test_whatever_else_connects_is_ignored():
    port = free_port()
    first = start(port, 2, 0)
    say(port, b"GET / HTTP/1.1\r\n")
    assert ended(first, start(port, 2, 1)) == [None, None]


def test_a_process_that_was_started_again_takes_its_place():
    port = free_port()
    first = start(port, 3, 0)
    say(port, b"jaxdistill process 1 of 3\n")
    assert ended(first, start(port, 3, 2), start(port, 3, 1)) == [None] * 3


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as server:
        (said,) = ended(start(server.getsockname()[1], 2, 0, 1.0))
    assert said.startswith("distributed.coordinator: port") and "Choose another port" in said


def test_the_command_ends_with_exit_code_2(tmp_path, capsys):
    words = ("--config.distributed.processes=2", "--config.distributed.process=1", "--config.distributed.timeout=1")
    assert runs.run(tmp_path / "run", f"--config.distributed.coordinator=localhost:{free_port()}", *words) == 2
    assert "process 0 cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_number_that_no_process_has_is_named():
    port = free_port()
    thread = start(port, 2, 0, 5.0)
    time.sleep(0.3)
    with socket.create_connection(("localhost", port)) as client:
        client.sendall(b"jaxdistill process 2 of 2\n")
        (said,) = ended(thread)
    assert "number 2 of 2" in said
