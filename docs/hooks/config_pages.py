"""Make the reference of the config's fields from their classes when the site is built.

It is what `diffusion-jax options` prints, by the same functions, one page per section.
"""

import html
import inspect
import re

FOLDER = "reference/config"


def pages() -> dict[str, str]:
  """Return section -> its page in Markdown, in the order of `diffusion-jax options`."""
  from diffusion_jax.runs.config_help import all_parts

  texts: dict[str, list[str]] = {}
  for part in all_parts():
    texts.setdefault(part.section, [f"# {part.section}"]).append(_part(part))
  return {section: "\n\n".join(parts) + "\n" for section, parts in texts.items()}


def _part(part) -> str:
  """Return one section, or its form for some kinds of models."""
  models = " and ".join(f"`generative.name={name}`" for name in part.models)
  lines = [f"For {models}."] if models else []
  names = [entry.name for entry in part.entries if entry.name]
  if names:
    listed = ", ".join(f"`{name}`" for name in sorted(names))
    lines.append(f"`--config.{part.section}.name` is one of {listed}.")
  return "\n\n".join([*lines, *(_entry(part, entry) for entry in part.entries)])


def _entry(part, entry) -> str:
  from diffusion_jax.runs.config_help import fields_of

  about = inspect.cleandoc(entry.cls.__doc__ or "").partition("\n")[0]
  place = f"{part.models[0]}-" if part.models else ""
  lines = [f"## {entry.name} {{ #{place}{entry.name} }}", about] if entry.name else [about]
  items = [
    f'<dt id="{place}{entry.name}.{field.name}"><code>{field.name}</code> = '
    f"<code>{html.escape(field.default)}</code> <em>{html.escape(field.kind)}</em></dt>\n"
    f"<dd>{_sentence(field.about)}</dd>"
    for field in fields_of(entry)
  ]
  if items:
    lines.append('<dl class="fields">\n' + "\n".join(items) + "\n</dl>")
  return "\n\n".join(lines)


def _sentence(text: str) -> str:
  """Return a field's documentation as HTML."""
  marked = html.escape(text[:1].upper() + text[1:])
  return re.sub("`([^`]+)`", r"<code>\1</code>", marked)


def on_config(config):
  """List the pages in the navigation, in the place of the folder's name."""
  config.nav = _filled(config.nav, [{name: f"{FOLDER}/{name}.md"} for name in pages()])
  return config


def _filled(nav, found):
  if isinstance(nav, list):
    return [_filled(item, found) for item in nav]
  if isinstance(nav, dict):
    return {k: found if v == f"{FOLDER}/" else _filled(v, found) for k, v in nav.items()}
  return nav


def on_files(files, config):
  """Add the pages."""
  from mkdocs.structure.files import File

  for name, text in pages().items():
    files.append(File.generated(config, f"{FOLDER}/{name}.md", content=text))
  return files
