"""The data sets that need no preparation: digits, arrays, folders, synthetic images."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_jax.data import Arrays, Digits, Folder, Synthetic, fingerprint
from diffusion_jax.data.source import DecodedSource, fit_image, fixed_order
from diffusion_jax.types import ImageSpec, UserError


def everything(source):
  return source.gather(np.arange(len(source)))


class TestDigits:
  def test_the_splits_are_the_whole_set_with_its_levels_kept(self):
    train, test = Digits().load("train"), Digits().load("test")
    assert (len(train), len(test)) == (1500, 297)
    assert train.spec == test.spec == ImageSpec(8, 8, 1, 17, 10)
    images, labels = (np.concatenate(p) for p in zip(everything(train), everything(test), strict=1))
    bunch = load_digits()
    ours = sorted((i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True))
    theirs = bunch.images.astype(np.uint8)
    assert ours == sorted((i.tobytes(), y) for i, y in zip(theirs, bunch.target, strict=True))
    assert images.max() == 16

  def test_every_class_is_in_both_splits(self):
    for split in ("train", "test"):
      counts = np.bincount(everything(Digits().load(split))[1], minlength=10)
      assert counts.min() > 0.07 * counts.sum()

  def test_the_split_is_fixed(self):
    assert fingerprint(Digits().load("train")) == fingerprint(Digits().load("train"))
    assert list(fixed_order(10)) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]  # of any version of NumPy


class TestArrays:
  def write(self, path, **arrays):
    np.savez(path / "a.npz", **arrays)
    return Arrays(path=str(path / "a.npz"))

  images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)[..., :3]

  def test_splits_with_labels(self, tmp_path):
    data = self.write(
      tmp_path, train_images=self.images, train_labels=np.array([0, 4]),
      test_images=self.images[:1], test_labels=np.array([6]),
    )  # fmt: skip
    train, test = data.load("train"), data.load("test")
    assert train.spec == test.spec == ImageSpec(3, 4, 3, 256, 7)
    np.testing.assert_array_equal(everything(train)[0], self.images)
    np.testing.assert_array_equal(everything(train)[1], [0, 4])

  def test_grey_images_without_labels_or_test_split(self, tmp_path):
    data = self.write(tmp_path, images=self.images[..., 0].astype(np.int64))
    assert data.load("train").spec == ImageSpec(3, 4, 1, 256, 0)
    assert not data.has_split("test")

  @pytest.mark.parametrize(
    ("arrays", "message"),
    [
      ({"pictures": images}, r"has the arrays pictures; it needs train_images .* or x_train"),
      ({"images": images[0, 0, 0]}, r"images has shape \(3,\)"),
      ({"images": images / 255}, "images is float64; it must hold integers"),
      ({"images": images.astype(int) + 250}, "holds values from 250 to"),
      ({"images": images, "labels": np.zeros(3, int)}, r"labels is int64\[3\].*each of the 2"),
      ({"images": images, "labels": np.zeros(2)}, "labels is float64"),
      ({"images": images, "labels": np.array([-1, 0])}, "from 0 to 65,535"),
      ({"images": images, "labels": np.array([2**40, 0])}, "from 0 to 65,535"),
      ({"images": images[:, :0]}, r"images has shape \(2, 0, 4, 3\)"),
      ({"train_images": images, "train_labels": np.zeros(2, int), "test_images": images},
       "has train_labels but no labels beside test_images"),
    ],
  )  # fmt: skip
  def test_what_does_not_fit_is_named(self, tmp_path, arrays, message):
    data = self.write(tmp_path, **arrays)
    with pytest.raises(UserError, match=message):
      data.load("train")

  def test_levels_that_are_too_few(self, tmp_path):
    self.write(tmp_path, images=self.images)
    with pytest.raises(UserError, match=r"from 0 to \d+; .* 0 and 16, or set .*num_levels"):
      Arrays(path=str(tmp_path / "a.npz"), num_levels=17).load("train")
    for values in (self.images.astype(int) - 300, self.images.astype(int) + 300):
      self.write(tmp_path, images=values)  # no number of levels would do
      with pytest.raises(UserError, match=r"between 0 and 255$"):
        Arrays(path=str(tmp_path / "a.npz")).load("train")

  def test_labels_and_shapes_that_do_not_fit_are_said_with_their_values(self, tmp_path):
    for labels, words in (
      (
        [-7, -2],
        "labels holds values from -7 to -2; it must hold one .* from 0 to 65,535",
      ),
      ([0, 1 << 16], "labels holds values from 0 to 65536; it must"),
      ([0.0, 1.0], r"labels is float64\[2\]; it must hold one class number"),
      ([0], r"labels is int64\[1\]; it must .* each of the 2 images"),
    ):
      with pytest.raises(UserError, match=words):
        self.write(tmp_path, images=self.images, labels=labels).load("train")
    none = self.images[:0]
    for name in ("train_images", "test_images"):
      data = self.write(tmp_path, **{"train_images": self.images, name: none})
      with pytest.raises(UserError, match=rf"{name} has shape \(0, 3, 4, 3\): it holds no image"):
        data.load("train")
    with pytest.raises(UserError, match=r"shape \(2, 0, 4, 3\); it must be \[N, H, W\]"):
      self.write(tmp_path, images=self.images[:, :0]).load("train")

  def test_more_unnamed_arrays_than_have_a_meaning_are_refused(self, tmp_path):
    """Else the held-out images would be left out, and nobody would be told."""
    labels = np.array([0, 1])
    for arrays in ((self.images, labels) * 2, (self.images, labels, self.images)):
      np.savez(tmp_path / "a.npz", *arrays)
      data = Arrays(path=str(tmp_path / "a.npz"))
      for ask in (data.load, data.has_split):
        with pytest.raises(UserError, match=r"has the arrays arr_0, .* name them: np\.savez\(FILE"):
          ask("train")

  def test_files_that_are_missing_or_no_npz(self, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.npz`: no such file"):
      Arrays(path=str(tmp_path / "nothing.npz")).load("train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npz` is no \.npz; write one with np\.savez"):
      Arrays(path=str(tmp_path / "text.npz")).load("train")


def picture(path, size=(6, 4), colour=(200, 100, 0)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, colour).save(path)


class TestFolder:
  def test_sub_folders_are_classes_and_formats_mix(self, tmp_path):
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "cat" / "deep" / "2.webp")
    picture(tmp_path / "ape" / "3.jpg")
    picture(tmp_path / "ape" / "4.JPEG")
    (tmp_path / "ape" / "notes.txt").write_text("not a picture")
    source = Folder(path=str(tmp_path)).load("train")
    assert source.spec == ImageSpec(4, 6, 3, 256, 2)
    images, labels = everything(source)
    assert sorted(labels) == [0, 0, 1, 1]
    assert np.abs(images.astype(int) - [200, 100, 0]).max() <= 8  # jpg and webp lose a little

  def test_png_pixels_are_exact(self, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
      everything(Folder(path=str(tmp_path)).load("train"))[0][0], pixels
    )

  def test_reading_one_by_one_gives_the_same_as_memory(self, tmp_path):
    for i in range(9):
      picture(tmp_path / str(i % 3) / f"{i}.png", colour=(i, 2 * i, 3 * i))
    small = Folder(path=str(tmp_path)).load("train")
    large = Folder(path=str(tmp_path), max_ram_gib=0.0).load("train")
    assert isinstance(large, DecodedSource)
    assert fingerprint(small) == fingerprint(large)
    index = np.array([8, 0, 0, 5])
    for a, b in zip(small.gather(index), large.gather(index), strict=True):
      np.testing.assert_array_equal(a, b)

  def test_grey_and_resized_on_request(self, tmp_path):
    picture(tmp_path / "a.png", (40, 20))
    picture(tmp_path / "b.png", (10, 30))
    source = Folder(path=str(tmp_path), image_size=8, channels=1).load("train")
    assert source.spec == ImageSpec(8, 8, 1, 256, 0)
    grey = round(0.299 * 200 + 0.587 * 100)  # ITU-R 601 luma
    assert np.abs(everything(source)[0].astype(int) - grey).max() <= 1

  def test_the_centre_is_cropped(self):
    """Thirds of red, green and blue side by side: the square in the middle is green."""
    wide = np.zeros((10, 30, 3), np.uint8)
    for i in range(3):
      wide[:, 10 * i : 10 * i + 10, i] = 255
    np.testing.assert_array_equal(fit_image(Image.fromarray(wide), 10, 3), wide[:, 10:20])

  def test_part_is_held_out_the_same_way_each_time(self, tmp_path):
    for i in range(10):
      picture(tmp_path / f"{i}.png", colour=(i, 0, 0))
    data = Folder(path=str(tmp_path), test_fraction=0.3)
    train, test = (everything(data.load(s))[0][:, 0, 0, 0] for s in ("train", "test"))
    assert (len(train), len(test)) == (7, 3)
    assert sorted([*train, *test]) == list(range(10))
    np.testing.assert_array_equal(everything(data.load("test"))[0][:, 0, 0, 0], test)

  def test_a_folder_of_its_own_for_the_test_split(self, tmp_path):
    picture(tmp_path / "train" / "a" / "1.png")
    picture(tmp_path / "train" / "b" / "1.png")
    picture(tmp_path / "test" / "b" / "2.png")
    data = Folder(path=str(tmp_path / "train"), test_path=str(tmp_path / "test"))
    assert list(everything(data.load("test"))[1]) == [1]
    assert data.load("test").spec == data.load("train").spec

  def test_missing_and_empty_folders(self, tmp_path):
    with pytest.raises(UserError, match=r"`data.path=DIR` is missing"):
      Folder().load("train")
    with pytest.raises(UserError, match=r"nowhere`: no such folder"):
      Folder(path=str(tmp_path / "nowhere")).load("train")
    with pytest.raises(UserError, match=r"no pictures there; .* \.png, \.jpg"):
      Folder(path=str(tmp_path)).load("train")

  def test_unreadable_pictures_are_counted_and_the_first_is_named(self, tmp_path):
    picture(tmp_path / "a.png")
    for name in ("b.png", "c.jpg"):
      (tmp_path / name).write_bytes(b"no picture at all")
    with pytest.raises(UserError, match=r"2 of 3 pictures .* read: b\.png \(.*\), c\.jpg \("):
      Folder(path=str(tmp_path)).load("train")

  def test_a_picture_cut_short_is_named(self, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"1 of 1 pictures cannot be read: a\.png \(.*truncated"):
      Folder(path=str(tmp_path)).load("train")

  def test_sixteen_bits_are_refused_rather_than_cut_off(self, tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits"):
      Folder(path=str(tmp_path)).load("train")

  def test_a_picture_of_a_size_to_fill_the_memory_is_refused(self, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 of 1 pictures"):
      Folder(path=str(tmp_path)).load("train")

  def test_sizes_that_differ(self, tmp_path):
    picture(tmp_path / "a.png", (6, 4))
    picture(tmp_path / "b.png", (5, 9))
    with pytest.raises(UserError, match=r"a\.png is 6x4, b\.png is 5x9.*image_size=4"):
      Folder(path=str(tmp_path)).load("train")

  def test_classes_that_do_not_fit(self, tmp_path):
    picture(tmp_path / "train" / "a" / "1.png")
    picture(tmp_path / "test" / "b" / "1.png")
    picture(tmp_path / "flat" / "1.png")
    with pytest.raises(UserError, match=r"has class b, which the training pictures do not have"):
      Folder(path=f"{tmp_path}/train", test_path=f"{tmp_path}/test").load("test")
    with pytest.raises(UserError, match="no sub-folders, but path has the classes a"):
      Folder(path=f"{tmp_path}/train", test_path=f"{tmp_path}/flat").load("test")
    picture(tmp_path / "train" / "stray.png")
    with pytest.raises(UserError, match=r"holds classes .* and stray\.png; move it"):
      Folder(path=f"{tmp_path}/train").load("train")


class TestSynthetic:
  def test_classes_differ_by_the_place_of_the_square(self):
    images, labels = everything(Synthetic(num_images=40, image_size=8, num_classes=4).load("train"))
    for label, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
      bright = images[labels == label] >= 192
      assert bright[:, top : top + 4, left : left + 4].all()
      assert bright.sum() == 10 * 4 * 4 * 3

  def test_splits_are_fixed_and_differ(self):
    prints = [fingerprint(Synthetic().load(s)) for s in ("train", "test", "train")]
    assert prints[0] == prints[2] != prints[1]


def test_a_fingerprint_sees_every_pixel_label_and_the_length():
  source = Digits().load("train")
  images, labels = everything(source)
  same = type(source)("other name", images, labels, 17, 10)
  assert fingerprint(same) == fingerprint(source)
  darker = images.copy()
  darker[77, 3, 2, 0] += 1
  for i, y in ((darker, labels), (images, labels[::-1]), (images[:-1], labels[:-1])):
    assert fingerprint(type(source)("x", i, y, 17, 10)) != fingerprint(source)


@pytest.mark.parametrize(
  ("cls", "fields"),
  [
    (Arrays, {"num_levels": 300}),
    (Folder, {"channels": 2}),
    (Folder, {"image_size": 0}),
    (Folder, {"test_fraction": 1.0}),
    (Synthetic, {"num_images": 0}),
    (Synthetic, {"channels": 4}),
  ],
)
def test_impossible_fields_are_refused(cls, fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    cls(**fields)
