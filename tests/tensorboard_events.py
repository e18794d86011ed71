"""Read TensorBoard's files without TensorBoard."""

from tensorboardX.proto import event_pb2


def events(workdir):
  """Every event of TensorBoard's files: length (8 bytes), its crc (4), the event, its crc (4)."""
  for file in sorted((workdir / "tensorboard").iterdir()):
    content, place = file.read_bytes(), 0
    while place < len(content):
      length = int.from_bytes(content[place : place + 8], "little")
      yield event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
      place += length + 16
