import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from vlad.datamodules.custom import index_images
from vlad.datamodules.dataset import AnomalyDataset
from vlad.datamodules.decode import Reading, image_size, inspect_image, load_image, page_count
from vlad.datamodules.video import count_frames, read_frame, video_size
from vlad.errors import DataError
from vlad.types import Preprocess

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (200, 200, 10)]


def pages(count=4, size=(40, 30)):
    """Pictures that differ within, so that no format joins them."""
    found = []
    for number in range(count):
        pixels = np.full((size[1], size[0], 3), COLOURS[number % 4], np.uint8)
        pixels[number % 10 : number % 10 + 4, number % 20 : number % 20 + 5] = 255
        found.append(Image.fromarray(pixels))
    return found


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".png", ".webp"])
def test_every_page_in_any_order(tmp_path, suffix):
    file, parts = tmp_path / f"stack{suffix}", pages()
    options = {"lossless": True} if suffix == ".webp" else {}
    parts[0].save(file, save_all=True, append_images=parts[1:], **options)
    assert page_count(file) == inspect_image(str(file)).pages == 4
    assert not inspect_image(str(file), frame=3).problem
    for content in (None, file.read_bytes()):
        for number in (0, 1, 3, 2, 2, 0):
            read = np.asarray(load_image(str(file), frame=number, content=content)).astype(int)
            assert np.abs(read - np.asarray(parts[number])).mean() < 2, number
            assert image_size(str(file), frame=number, content=content) == (40, 30)
    assert np.array_equal(np.asarray(load_image(str(file))), np.asarray(load_image(str(file), frame=0)))
    with pytest.raises(DataError, match=r"stack.* has 4 pages: there is no frame 4, counted from 0"):
        load_image(str(file), frame=4)
    assert "has 4 pages" in inspect_image(str(file), frame=4).problem


def test_a_file_that_changes_between_its_pages(tmp_path):
    file, parts = tmp_path / "a.tif", pages()
    parts[0].save(file, save_all=True, append_images=parts[1:])
    load_image(str(file), frame=1)
    parts[2].save(file, save_all=True, append_images=[parts[3]] * 4)
    assert np.array_equal(np.asarray(load_image(str(file), frame=1)), np.asarray(parts[3]))


def test_threads_and_forked_processes_read_pages_of_one_file(tmp_path):
    file, parts = tmp_path / "a.tif", pages()
    parts[0].save(file, save_all=True, append_images=parts[1:])
    load_image(str(file), frame=0)

    def right(number):
        return np.array_equal(np.asarray(load_image(str(file), frame=number % 4)), np.asarray(parts[number % 4]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(80)))
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 0 if all(right(number) for number in range(40)) else 1
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_smaller_copies_and_second_pictures_are_no_pages(tmp_path):
    """A TIFF's thumbnail, and what a phone stores beside its JPEG."""
    first, second, third, _ = pages()
    small = first.resize((10, 8))
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as stream:
        for image, kind in ((first, 0), (small, 1), (second, 0)):
            image.save(stream, "TIFF", tiffinfo={254: kind})
            stream.newFrame()
    assert Image.open(tmp_path / "a.tif").n_frames == 3
    assert page_count(tmp_path / "a.tif") == 2
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "a.tif"), frame=1)), np.asarray(second))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[third])
    assert Image.open(tmp_path / "phone.jpg").format == "MPO"
    assert page_count(tmp_path / "phone.jpg") == 1
    assert load_image(str(tmp_path / "phone.jpg")).size == (40, 30)
    assert load_image(str(tmp_path / "phone.jpg"), near=8).size == (20, 15)
    first.save(tmp_path / "one.png")
    assert page_count(tmp_path / "one.png") == 1
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "one.png"), frame=0)), np.asarray(first))


def test_pages_have_limit_orientation_and_intensities(tmp_path):
    values = [np.full((6, 4), value, np.uint16) for value in (20000, 40000)]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values[0]).save(
        tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(values[1])], exif=exif
    )
    read = load_image(str(tmp_path / "a.tif"), frame=1)
    assert read.getpixel((0, 0)) == (156, 156, 156)
    assert load_image(str(tmp_path / "a.tif"), frame=0).size == image_size(str(tmp_path / "a.tif"), frame=0) == (6, 4)
    wide = Reading((0, 40000))
    assert load_image(str(tmp_path / "a.tif"), frame=1, reading=wide).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match="--data.max_pixels 24"):
        load_image(str(tmp_path / "a.tif"), frame=1, reading=Reading(max_pixels=23))


@pytest.fixture
def video(tmp_path):
    import cv2

    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    writer.release()
    return file


def test_frames_of_a_video_are_rows_in_order(video):
    frame = index_images(str(video.parent)).frame
    assert frame["frame"].tolist() == [0, 1, 2, 3, 4]
    assert frame["image_id"].tolist()[:2] == ["clip_000000", "clip_000001"]
    dataset = AnomalyDataset(frame, Preprocess(32, (0, 0, 0), (1, 1, 1)), truth=False)
    for number in (0, 1, 2, 4, 1):  # forward, over one, and back
        assert float(dataset[number]["image"].mean()) == pytest.approx(40 * number / 255, abs=0.02)


def test_facts_of_a_video(video):
    assert count_frames(video) == 5
    assert video_size(str(video)) == image_size(str(video), frame=0) == image_size(str(video), frame=3) == (64, 48)
    assert inspect_image(str(video)) == inspect_image(str(video), frame=4) == ((64, 48), 1, "")
    with pytest.raises(DataError, match=r"clip\.avi \(frame 9 cannot be decoded\)"):
        load_image(str(video), frame=9)


def test_threads_read_frames_of_one_video(video):
    with ThreadPoolExecutor(4) as pool:
        means = list(pool.map(lambda number: read_frame(str(video), number % 5).mean(), range(40)))
    assert means == pytest.approx([40 * (number % 5) for number in range(40)], abs=3)


def test_what_is_no_video(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    os.mkfifo(tmp_path / "fifo.mp4")
    os.symlink("/nowhere", tmp_path / "link.mp4")
    for name in ("clip.mp4", "link.mp4", "none.mp4"):
        with pytest.raises(DataError, match=rf"cannot read video .*{name}"):
            count_frames(tmp_path / name)
        assert inspect_image(str(tmp_path / name), frame=0).problem
        with pytest.raises(DataError, match=name):
            load_image(str(tmp_path / name), frame=0)
    for read in (count_frames, lambda file: load_image(str(file), frame=1), lambda file: image_size(str(file))):
        with pytest.raises(DataError, match=r"fifo\.mp4 \(a FIFO"):
            read(tmp_path / "fifo.mp4")
