"""A picture reads as what it shows, whatever its format, or there is one error that names the file."""

import os
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightvlm_fx.errors import InputError
from lightvlm_fx.pictures import open_picture

RAMP = np.linspace(0, 255, 6 * 9).reshape(6, 9).round().astype(np.uint8)
TURNED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T, 6: lambda a: np.rot90(a, -1),
          7: lambda a: np.rot90(a, 2).T, 8: np.rot90}  # fmt: skip


def grey_of(path):
    pixels = np.asarray(open_picture(path))
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_grey_of_16_bits_reads_like_8_bits(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    assert (grey_of(path) == RAMP).all()


def tiff(path, values, sample_format, white_is_zero=False, order="<"):
    """An uncompressed TIFF of one channel, as other programs write it."""
    height, width = values.shape
    bits = values.itemsize * 8
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1), (278, height),
            (279, len(data)), (339, sample_format)]  # fmt: skip
    table = struct.pack(order + "H", len(tags))
    for tag, number in tags:
        table += struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", number)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    path.write_bytes(head + data + table + bytes(4))


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize(("kind", "sample_format"), [(np.uint16, 1), (np.uint32, 1), (np.float32, 3)])
def test_a_tiff_of_wide_grey_reads_like_8_bits(tmp_path, kind, sample_format, white_is_zero):
    path = tmp_path / "picture.tif"
    share = (255 - RAMP if white_is_zero else RAMP) / 255
    values = share.astype(np.float32) if kind is np.float32 else np.round(share * np.iinfo(kind).max).astype(kind)
    tiff(path, values, sample_format, white_is_zero)
    try:
        Image.open(path).close()
    except Image.UnidentifiedImageError:  # then it is refused, which is said
        with pytest.raises(InputError, match="not a picture that Pillow can read"):
            open_picture(path)
        return
    assert np.abs(grey_of(path).astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("values", [
    RAMP.astype(np.int32), RAMP.astype(np.int32) * 257, -RAMP.astype(np.int32), RAMP.astype(np.float32), (RAMP / 100).astype(np.float32),
    np.where(RAMP == 0, np.nan, RAMP / 255).astype(np.float32),
])  # fmt: skip
def test_refuses_numbers_of_which_nothing_says_what_is_white(tmp_path, values):
    path = tmp_path / "picture.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(InputError, match=r"picture\.tif: its numbers go from .* and nothing says which is white; save it with 8 or 16"):
        open_picture(path)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("wide", [False, True])
def test_turns_a_picture_as_its_exif_says(tmp_path, orientation, wide):
    path = tmp_path / "picture.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP.astype(np.uint16) * 257 if wide else RAMP).save(path, exif=exif)
    assert grey_of(path).tolist() == TURNED[orientation](RAMP).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_other_mode_reads_as_pillow_reads_it(tmp_path, mode):
    picture = Image.fromarray(RAMP).convert("RGB").convert(mode)
    picture.save(tmp_path / "picture.tif")
    assert open_picture(tmp_path / "picture.tif").tobytes() == picture.convert("RGB").tobytes()


def bomb(side):
    """A PNG that claims side x side pixels and holds none of them."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns of the first and refuses the second
def test_refuses_a_decompression_bomb(tmp_path, side):
    path = tmp_path / "picture.png"
    path.write_bytes(bomb(side))
    with pytest.raises(InputError, match=r"picture\.png: too large a picture .* scale it down"):
        open_picture(path)


@pytest.mark.parametrize("path", [None, 3, b"picture.png", ["picture.png"]])
def test_refuses_what_is_no_path(path):
    with pytest.raises(InputError, match="expected the path of a picture"):
        open_picture(path)


@pytest.mark.parametrize("path", ["", "a\0b.png", "x" * 5000, "no/such/folder/picture.png"])
def test_refuses_a_path_of_nothing(path):
    with pytest.raises(InputError, match=r"no such file|no regular file|cannot|not a picture"):
        open_picture(path)


def test_refuses_a_folder_and_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match=rf"{path}: no regular file; give the path of a picture"):
            open_picture(path)


@given(suffix=st.sampled_from(["png", "tif", "jpg", "gif", "bmp", "webp", "ppm", "jp2"]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
def test_a_damaged_file_is_a_picture_or_one_error(tmp_path, suffix, seed):
    path, draw = tmp_path / f"picture.{suffix}", random.Random(seed)
    Image.fromarray(RAMP).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content[: draw.choice([len(content), draw.randrange(1, len(content))])])
    try:
        said = open_picture(path).mode
    except InputError as error:
        said = str(error)
    assert said == "RGB" or str(path) in said
