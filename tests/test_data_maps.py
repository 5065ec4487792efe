"""Images with a class for every pixel: every source reads what was written, and every mistake is one line."""

from pathlib import Path

import numpy as np
import pytest
from pictures import jpeg
from PIL import Image

from fastdfkd_jax import data
from fastdfkd_jax.data import map_sources, pictures
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec

SHAPE = (6, 8)


def expect_error(match: str, *arguments, **keywords) -> None:
    with pytest.raises(UserError, match=match) as caught:
        data.load(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def random_pairs(count: int, classes: int, shape=SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    masks = generator.integers(0, classes, (count, *shape), np.uint8)
    return generator.integers(0, 256, (count, *shape, 3), np.uint8), masks


def write(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette([(255 - value) for value in range(256) for _ in range(3)])
    picture.save(path)


def write_folders(images: Path, masks: Path, pairs, names=None, palette=False) -> None:
    for index, (image, mask) in enumerate(zip(*pairs, strict=True)):
        name = names[index] if names else f"{index:05d}"
        write(images / f"{name}.png", image)
        write(masks / f"{name}.png", mask, palette)


def write_pack(path: Path, images: np.ndarray, masks: np.ndarray) -> None:
    files = [jpeg(image) for image in images]
    offsets, names = np.cumsum([0, *map(len, files)]), [str(i) for i in range(len(files))]
    np.savez(path, jpeg=np.concatenate(files), offsets=offsets, masks=masks, names=names)


@pytest.fixture
def pairs(tmp_path):
    """Three pairs of three classes as `pairs:DIR` reads them, with one pixel of each without a class."""
    images, masks = random_pairs(3, 3)
    masks[:, 2, 3] = data.VOID
    write_folders(tmp_path / "images" / "val", tmp_path / "masks" / "val", (images, masks))
    (tmp_path / "classes.txt").write_text("road\ncar\nsky and cloud\n")
    return images, masks


# --- pairs


def test_pairs_are_read_as_written_in_the_order_of_their_names(tmp_path):
    images, masks = random_pairs(3, 200)
    masks[0, 0, 0] = data.VOID
    write_folders(tmp_path / "images" / "t", tmp_path / "masks" / "t", (images, masks), names=["b", "a.x", "c"])
    read = data.load("pairs:.", "t", data_dir=tmp_path)
    np.testing.assert_array_equal(read.images, images[[1, 0, 2]])
    np.testing.assert_array_equal(read.labels, masks[[1, 0, 2]])
    assert (read.images.dtype, read.labels.dtype, read.class_names) == (np.uint8, np.uint8, None)


def test_pairs_with_names_bounds_and_other_files(tmp_path, pairs):
    images, masks = pairs
    (tmp_path / "images" / "val" / "notes.txt").touch()
    (tmp_path / "masks" / "val" / "._00000.png").touch()  # what macOS leaves
    read = data.load(f"pairs:{tmp_path}", "val[1:]")
    np.testing.assert_array_equal(read.images, images[1:])
    np.testing.assert_array_equal(read.labels, masks[1:])
    assert read.class_names == ("road", "car", "sky and cloud")
    assert len(data.load(f"pairs:{tmp_path}", "val[:34%]").labels) == 1
    expect_error("has no examples", f"pairs:{tmp_path}", "val[3:]")


def test_a_palette_is_read_by_its_indices_and_jpegs_are_images(tmp_path):
    images, masks = random_pairs(1, 3)
    write(tmp_path / "masks" / "val" / "a.png", masks[0], palette=True)
    write(tmp_path / "images" / "val" / "a.JPG", images[0])
    read = data.load(f"pairs:{tmp_path}", "val")
    np.testing.assert_array_equal(read.labels, masks)
    assert read.images.shape == images.shape


def test_grey_images_keep_one_channel(tmp_path, pairs):
    for path in (tmp_path / "images" / "val").iterdir():
        write(path, np.full(SHAPE, 7, np.uint8))
    assert data.load(f"pairs:{tmp_path}", "val").images.shape == (3, *SHAPE, 1)


def test_pairs_that_are_none(tmp_path, pairs):
    source, masks = f"pairs:{tmp_path}", tmp_path / "masks" / "val"
    for number in range(1, 5):
        write(tmp_path / "images" / "val" / f"x{number}.png", pairs[0][0])
    (masks / "00001.png").unlink()
    expect_error(r"found files without the other: 00001.png, x1.png, x2.png and 2 more$", source, "val")
    for number in range(1, 5):
        (tmp_path / "images" / "val" / f"x{number}.png").unlink()
    (tmp_path / "images" / "val" / "00001.png").unlink()
    write(masks / "z.png", pairs[1][0])
    expect_error(
        r"expected one mask NAME.png .* for every image .* found files without the other: z.png$", source, "val"
    )
    write(tmp_path / "images" / "val" / "z.png", pairs[0][0])
    write(tmp_path / "images" / "val" / "z.bmp", pairs[0][0])
    expect_error("one file of each name in .*, found z.bmp and z.png", source, "val")


def test_folders_that_are_missing(tmp_path, pairs):
    source = f"pairs:{tmp_path}"
    expect_error("found no folder .*/none", f"pairs:{tmp_path / 'none'}")
    expect_error("has no split 'test': expected one of val", source, "test")
    (tmp_path / "images" / "test").mkdir()
    expect_error(
        "expected images/test/ and masks/test/ in .*, found only images/test: check the path in pairs:DIR",
        source,
        "test",
    )
    (tmp_path / "masks" / "test").mkdir()
    expect_error("expected images in .*, found none", source, "test")
    expect_error(
        "expected images/x/ and masks/x/ in .*, found test, val: check the path", f"pairs:{tmp_path / 'images'}", "x"
    )
    for kind in ("camvid", "nyuv2"):
        expect_error("found no folder", f"{kind}:{tmp_path / 'none'}")
        expect_error(
            f"expected .* in .*, found classes.txt, images, masks: check the path in {kind}:DIR",
            f"{kind}:{tmp_path}",
            "test",
        )


MASKS = {
    "of another size": (np.zeros((3, 4), np.uint8), "00002.png to be of its image's 6x8 pixels, found 3x4"),
    "in colours": (np.zeros((*SHAPE, 3), np.uint8), "class indices, palette or 8-bit grey, found 8-bit RGB: replace"),
    "of one bit": (np.zeros(SHAPE, bool), "found 1-bit 1"),
    "of 16 bits": (np.zeros(SHAPE, np.uint16), "found 16-bit I;16"),
    "of other classes": (
        np.full(SHAPE, 3, np.uint8),
        "expected classes 0 to 2, or 255 for no class, .* found 3: name every class in classes.txt",
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask(case, tmp_path, pairs):
    mask, match = MASKS[case]
    write(tmp_path / "masks" / "val" / "00002.png", mask)
    expect_error(match, f"pairs:{tmp_path}", "val")


def test_damaged_pictures_and_masks(tmp_path, pairs):
    for folder, match in (("images", "cannot read the image"), ("masks", "cannot read the mask")):
        path = tmp_path / folder / "val" / "00001.png"
        whole = path.read_bytes()
        for content in (b"", b"no picture", whole[: len(whole) * 2 // 3]):
            path.write_bytes(content)
            expect_error(f"{match} .*00001.png: it is damaged", f"pairs:{tmp_path}", "val")
        path.write_bytes(whole)
    Image.new("L", SHAPE[::-1]).save(tmp_path / "masks" / "val" / "00001.png", "JPEG")
    expect_error("found JPEG", f"pairs:{tmp_path}", "val")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"\n", "found nothing"), (b"a\n\nb\n", "found an empty line"), (b"\xff\xfe\n", "save it as UTF-8")],
)
def test_names_that_are_none(tmp_path, pairs, content, match):
    (tmp_path / "classes.txt").write_bytes(content)
    expect_error(match, f"pairs:{tmp_path}", "val")


def test_mixed_sizes_are_refused_unless_a_short_side_makes_them_one(tmp_path):
    for name, shape in (("a", (6, 8)), ("b", (12, 16))):
        image, mask = (part[0] for part in random_pairs(1, 3, shape))
        write(tmp_path / "images" / "val" / f"{name}.png", image)
        write(tmp_path / "masks" / "val" / f"{name}.png", mask)
    expect_error("one size in .*, found 2 sizes .6x8, 12x16 ....: .* short side", f"pairs:{tmp_path}", "val")
    assert data.load(f"pairs:{tmp_path}", "val", short_side=6).labels.shape == (2, 6, 8)


# --- sizes


@pytest.mark.parametrize(("shape", "short_side", "expected"), [((6, 8), 3, (3, 4)), ((9, 5), 7, (13, 7))])
def test_a_mask_is_resized_to_the_nearest_pixel(tmp_path, shape, short_side, expected):
    images, masks = random_pairs(2, 200, shape)
    write_folders(tmp_path / "images" / "val", tmp_path / "masks" / "val", (images, masks))
    read = data.load(f"pairs:{tmp_path}", "val", short_side=short_side)
    assert read.images.shape == (2, *expected, 3)
    # The pixel under the new one's centre.
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(expected, shape, strict=True)
    )
    np.testing.assert_array_equal(read.labels, masks[:, rows][:, :, columns])


def test_an_image_is_averaged_where_it_becomes_smaller():
    stripes = np.zeros((32, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    smaller = pictures.resize(stripes, 8, Image.Resampling.BILINEAR)
    assert smaller.shape == (8, 16, 3)
    # Plain interpolation between the two nearest pixels would keep the stripes.
    assert abs(smaller[:, 1:-1].astype(int) - 127).max() <= 8
    assert pictures.resize(stripes, 32, Image.Resampling.BILINEAR) is stripes


def test_sizes_that_do_not_fit_the_source(tmp_path, pairs):
    expect_error("takes no image size and no crop, found 8 and 0.0", f"pairs:{tmp_path}", "val", image_size=8)
    expect_error("takes no image size", f"pairs:{tmp_path}", "val", image_size=8, crop=0.5)
    expect_error("at least 1 pixel, found 0", f"pairs:{tmp_path}", "val", short_side=0)
    expect_error("short side is for images with masks .camvid, .* found 8 for digits", "digits", short_side=8)


# --- CamVid


def test_camvid_as_packs(tmp_path):
    images, masks = random_pairs(4, 12)
    write_pack(tmp_path / "camvid_val_8x6.npz", images, masks)
    read = data.load("camvid:.", "val", data_dir=tmp_path)
    np.testing.assert_array_equal(read.labels, np.where(masks == 11, 255, masks))
    assert read.class_names == map_sources.CAMVID
    assert len(map_sources.CAMVID) == 11
    decoded = np.stack([pictures.decode(jpeg(image).tobytes()) for image in images])
    np.testing.assert_array_equal(read.images, decoded)
    part = data.load("camvid:.", "val[1:3]", data_dir=tmp_path)
    np.testing.assert_array_equal(part.images, decoded[1:3])
    np.testing.assert_array_equal(part.labels, read.labels[1:3])
    expect_error("no split 'test': expected one of val$", "camvid:.", "test", data_dir=tmp_path)
    write_pack(tmp_path / "camvid_val_4x3.npz", images, masks)
    expect_error("expected one camvid_val_.*, found 2", "camvid:.", "val", data_dir=tmp_path)


def test_camvid_packs_that_are_damaged(tmp_path):
    images, masks = random_pairs(2, 12)
    path, source = tmp_path / "camvid_val_a.npz", f"camvid:{tmp_path}"
    write_pack(path, images, masks)
    whole = dict(np.load(path))
    for change, match in [
        ({"masks": masks[:1]}, r"offsets \[N \+ 1\]"),
        ({"masks": masks.astype(int)}, "found int64"),
        ({"offsets": whole["offsets"] / 1.0}, "float64"),
        ({"masks": masks[:, :3]}, "mask 0 of .*a.npz to be of its image's 6x8 pixels, found 3x8"),
        ({"masks": np.full_like(masks, 12)}, "classes 0 to 10, or 11 or 255 .* found 12: give CamVid's"),
        ({"jpeg": np.zeros_like(whole["jpeg"])}, "cannot read a picture of"),
    ]:
        np.savez(path, **whole | change)
        expect_error(match, source, "val")
    np.savez(path, masks=masks)
    expect_error("expected jpeg, offsets and masks in .*, found masks", source, "val")
    path.write_bytes(path.read_bytes()[:-40])
    expect_error("damaged or of another kind", source, "val")


def test_camvid_as_folders(tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        pairs = random_pairs(2, 12, seed=seed)
        write_folders(tmp_path / split, tmp_path / f"{split}annot", pairs)
    read = data.load(f"camvid:{tmp_path}", "test")
    np.testing.assert_array_equal(read.images, pairs[0])
    np.testing.assert_array_equal(read.labels, np.where(pairs[1] == 11, 255, pairs[1]))
    assert read.class_names == map_sources.CAMVID
    expect_error("no split 'val': expected one of test, train", f"camvid:{tmp_path}", "val")


def test_the_real_camvid(shared_data):
    # As its description says: 4.0 and 1.7 % of the pixels have no class.
    for split, count, void in (("train", 367, 0.040), ("val", 101, 0.017)):
        read = data.load("camvid:camvid", split, data_dir=shared_data)
        assert read.images.shape == (count, 180, 240, 3)
        assert read.labels.shape == (count, 180, 240)
        assert np.mean(read.labels == data.VOID) == pytest.approx(void, abs=5e-4)
        assert set(np.unique(read.labels)) == {*range(11), data.VOID}


# --- fit with a network


def test_require_distinguishes_maps_from_images(tmp_path, pairs):
    maps, images = data.load(f"pairs:{tmp_path}", "val"), data.load("digits", "test[:3]")
    spec = NetworkSpec("deeplab", 3, 256, task="segmentation")
    assert data.require(maps, spec) is maps, "of any size"
    data.require(maps, NetworkSpec("deeplab", 4, task="segmentation"))  # one output for void
    for found, other, match in [
        (maps, NetworkSpec("wrn16_1", 3), "gives one class for every image, the data set has a class for every pixel"),
        (images, spec, "gives a class for every pixel, the data set has one class for every image"),
        (maps, NetworkSpec("deeplab", 2, task="segmentation"), "has 2 classes, the data set 3"),
        (maps, NetworkSpec("deeplab", 3, channels=1, task="segmentation"), "1 channels, the data set has 3"),
    ]:
        with pytest.raises(UserError, match=match):
            data.require(found, other)
    unnamed = maps._replace(class_names=None)
    data.require(unnamed, NetworkSpec("deeplab", 3, task="segmentation"))  # void is no class
    with pytest.raises(UserError, match="has 2 classes, the data set 3"):
        data.require(unnamed, NetworkSpec("deeplab", 2, task="segmentation"))
