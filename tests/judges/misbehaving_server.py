"""A loopback server that does what servers do: answers, 429, 500, half a reply, nonsense, after a delay, never."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, dict[str, Any]], Any]  # (path, body) -> JSON value, or an `Other`


class Other:
    """Anything but a good answer."""

    def __init__(
        self, status: int = 200, text: str = "", headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.status, self.text, self.headers, self.cut = status, text, headers or {}, cut
        self.seconds = 0.0


def chat(text: str | None, **choice: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    return {"choices": [{"message": message, "finish_reason": "stop"} | choice], "usage": usage}


class Judge:
    """Serves `answer` while in a `with` block; counts calls and how many were under way at once."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                judge.serve(self, {})

            def do_POST(self) -> None:
                judge.serve(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.calls.append((handler.path, body, dict(handler.headers)))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            found = self.answer(handler.path.removeprefix("/v1/"), body)
            self._send(handler, found if isinstance(found, Other) else Other(text=json.dumps(found)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting
        finally:
            with self._lock:
                self._now -= 1

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Other) -> None:
        time.sleep(answer.seconds)
        data = answer.text.encode()
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data) + (1000 if answer.cut else 0)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = handler.close_connection or answer.cut

    def __enter__(self) -> Judge:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
