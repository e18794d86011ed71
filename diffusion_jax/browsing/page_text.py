"""The text of the page, which loads nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def page_text(data: Mapping[str, Any]) -> str:
  """Return the page as HTML.

  Args:
    data: JSON values: {"live": true, "runs": ..., "first": ...} for a server, or {"live": false,
      "run": ...} with all answers in it.
  """
  script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
  # "</script>" in a name must not end the element; the page reads the text back with JSON.parse.
  text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
  page = (HERE / "page.html").read_text(encoding="utf-8")
  script = f"\n{script.strip()}\n"
  page = page.replace("\n@SCRIPT@\n", script).replace("@STYLE@", style.strip())
  return page.replace("@POLICY@", page_policy(script, bool(data["live"]))).replace("@DATA@", text)


def page_policy(script: str, is_live: bool) -> str:
  """Return the content security policy: only this script runs, and only this server is asked."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  rules = {
    "default-src": "'none'",
    "img-src": "data: 'self'" if is_live else "data:",
    "style-src": "'unsafe-inline'",
    "script-src": f"'sha256-{digest}'",
    "connect-src": "'self'" if is_live else "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
  }
  return "; ".join(f"{name} {value}" for name, value in rules.items())
