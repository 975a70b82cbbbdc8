"""A real S3 protocol server on loopback (moto), which can fail and dawdle as the real ones do."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BUCKET = "crate-test"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Weather:
    """Passes requests on to an application, but every n-th is answered 500 and every m-th waits a while first."""

    def __init__(self, application: Callable, fail_every: int, slow_every: int) -> None:
        self.application, self.fail_every, self.slow_every = application, fail_every, slow_every
        self.numbers = itertools.count(1)
        self.n_failed = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        number = next(self.numbers)
        if self.slow_every and number % self.slow_every == 0:
            time.sleep(1)
        if self.fail_every and number % self.fail_every == 0:
            self.n_failed += 1
            environ["wsgi.input"].read()
            start_response("500 Internal Server Error", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [b"<Error><Code>InternalError</Code></Error>"]
        return self.application(environ, start_response)


@contextlib.contextmanager
def s3_server(fail_every: int = 0, slow_every: int = 0) -> Iterator[Weather]:
    """A server with one empty bucket, at AWS_ENDPOINT_URL for as long as it is open. Gives its weather."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from pyarrow.fs import S3FileSystem
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    weather = Weather(DomainDispatcherApplication(create_backend_app), 0, 0)
    server = make_server("127.0.0.1", 0, weather, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        S3FileSystem(endpoint_override=variables["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir(BUCKET)
        weather.fail_every, weather.slow_every = fail_every, slow_every
        yield weather
    finally:
        server.shutdown()
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
