"""A local server of buckets: an emulator of Google Cloud Storage in a process of its own.

python tests/buckets.py PORT    serves the empty bucket `distilled`
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import ThreadingHTTPServer

BUCKET = "distilled"


@contextlib.contextmanager
def served() -> Iterator[dict[str, str]]:
    """Run the server; yield the environment variables that make gcsfs and TensorStore use it instead of Google."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, __file__, str(port)], **quiet) as process:
        try:
            while not is_open(port):
                assert process.poll() is None, "the emulator did not start"
                time.sleep(0.05)
            address = f"http://127.0.0.1:{port}"
            # Two checks of gcsfs that would ask servers of Google are switched off.
            no_google = {"NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
            yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, **no_google}
        finally:
            process.kill()


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def serve(port: int) -> None:
    from gcp_storage_emulator.handlers import objects

    download = objects.download

    def with_generation(request, response, storage, *args, **options):
        """Add the header with an object's generation, which TensorStore needs and the emulator leaves out."""
        with contextlib.suppress(Exception):  # of a missing object, for which `download` answers 404
            about = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = str(about["generation"])
        return download(request, response, storage, *args, **options)

    def move(request, response, storage, *args, **options):
        """Answer Google's request `moveTo`, which gcsfs tries first and the emulator lacks."""
        request.params["dest_bucket_name"] = request.params["bucket_name"]
        objects.copy(request, response, storage, *args, **options)
        if response.status == HTTPStatus.OK:
            storage.delete_file(request.params["bucket_name"], request.params["object_id"])

    objects.download = with_generation
    from gcp_storage_emulator import server  # imported late, since it copies the functions of `objects`

    name = r"/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.*[^/]+)/moveTo/o/(?P<dest_object_id>.*[^/]+)$"
    server.HANDLERS = ((rf"^(/storage/v1)?{name}", {"POST": move}), *server.HANDLERS)
    server.server.HTTPServer = ThreadingHTTPServer  # several processes of a run keep their connections open
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET).run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
