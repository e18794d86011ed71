"""A client of an ASGI application, without a server and without a library."""

import asyncio
import json
import urllib.parse
from json import dumps

PORT = 8360
HOME = f"http://127.0.0.1:{PORT}"


class Reply:
  """An answer of the application."""

  def __init__(self, sent):
    self.status_code = sent[0]["status"]
    self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    self.content = b"".join(part.get("body", b"") for part in sent[1:])
    self.text = self.content.decode(errors="replace")

  def json(self):
    return json.loads(self.content)


class Client:
  """Calls an ASGI application as a server would, without one."""

  def __init__(self, app):
    self.app = app

  def get(self, path, headers=None, params=None):
    path, _, query = path.partition("?")
    return self.send("GET", path, urllib.parse.urlencode(params) if params else query, headers)

  def post(self, path, json=None, content=None, headers=None, is_whole=True):
    body = dumps(json).encode() if content is None else content
    return self.send("POST", path, "", headers, body, is_whole)

  def send(self, method, path, query, headers, body=b"", is_whole=True):
    """Sends a request; if it is not whole, the client leaves after its body."""
    given = {"host": HOME.removeprefix("http://"), **(headers or {})}
    scope = {
      "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "root_path": "",
      "path": urllib.parse.unquote(path), "raw_path": path.encode(), "query_string": query.encode(),
      "headers": [(name.encode(), value.encode()) for name, value in given.items()],
      "client": ("127.0.0.1", 1), "server": ("127.0.0.1", PORT),
    }  # fmt: skip
    sent = []
    messages = [{"type": "http.request", "body": body, "more_body": not is_whole}]

    async def receive():
      return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
      sent.append(message)

    asyncio.run(self.app(scope, receive, send))
    return Reply(sent)
