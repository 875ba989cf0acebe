"""Hostile and broken files: a clear error, nothing executed."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from reward_models import RewardModelError, load
from reward_models.convert_mps import convert_mps
from reward_models.images import decode_image
from reward_models.inert_pickle import Inert, read_inert
from tests.reward_models.golden import GOLDEN, TOKENIZER, noise_image
from tests.reward_models.layouts import HPS_CONFIG, mps_config


class Payload:
    """Creates a file when unpickled by anything that executes pickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_zip(path, data_pkl, storages=None):
    """A torch zip archive around a pickle of our own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


@pytest.fixture
def module_checkpoint(tmp_path):
    """MPS as its authors published it: a pickled nn.Module of classes that this machine does not have."""
    foreign = types.ModuleType("trainer_of_others")

    class CLIPModel(nn.Module):
        pass

    CLIPModel.__module__, CLIPModel.__qualname__ = "trainer_of_others", "CLIPModel"
    foreign.CLIPModel = CLIPModel
    root = CLIPModel()
    for name, value in load_file(GOLDEN / "mps" / "model.safetensors").items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, CLIPModel())
            module = module._modules[parent]
        if leaf in ("inv_freq",) or name.endswith("norm.bias") and "cross_model" in name:
            module.register_buffer(leaf, value.half())
        else:
            module.register_parameter(leaf, nn.Parameter(value.half()))
    embeddings = root.model.text_model.embeddings
    embeddings.register_buffer("position_ids", torch.arange(77)[None])
    root.model.register_buffer("scratch", torch.zeros(3), persistent=False)
    root.config = {"note": CLIPModel()}
    sys.modules["trainer_of_others"] = foreign
    try:
        torch.save(root, tmp_path / "MPS_overall_checkpoint.pth")
    finally:
        del sys.modules["trainer_of_others"]
    return tmp_path / "MPS_overall_checkpoint.pth"


def test_pickled_mps_is_refused_with_the_way_out(module_checkpoint):
    with pytest.raises(RewardModelError, match="t2i-align rewards convert-mps"):
        load("mps", module_checkpoint, "cpu", tokenizer=TOKENIZER, model_config=mps_config())


def test_converted_mps_gives_the_same_scores(module_checkpoint, tmp_path, mps):
    """The fp16 module, converted without its classes, scores as the original weights."""
    done = convert_mps(module_checkpoint, tmp_path / "mps", model_config=mps_config(), tokenizer=TOKENIZER)
    assert done.folder == tmp_path / "mps"
    stored = load_file(done.folder / "model.safetensors")
    assert "model.text_model.embeddings.position_ids" not in stored and "model.scratch" not in stored
    assert {value.dtype for value in stored.values()} == {torch.float16}
    images = [noise_image(seed) for seed in range(3)]
    scores = load("mps", done.folder, "cpu").score("a fox", images)
    torch.testing.assert_close(scores, mps.score("a fox", images), rtol=0, atol=0.1)
    with pytest.raises(RewardModelError, match="not empty"):
        convert_mps(module_checkpoint, tmp_path / "mps", model_config=mps_config())


def test_conversion_checks_the_architecture(module_checkpoint, tmp_path):
    wrong = mps_config()
    wrong["cross"] = {**wrong["cross"], "layer_num": 5}
    with pytest.raises(RewardModelError, match="missing: layers.4"):
        convert_mps(module_checkpoint, tmp_path / "out", model_config=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_executes_nothing(tmp_path, protocol):
    proof = tmp_path / "executed"
    payload = pickle.dumps({"state_dict": {"w": Payload(proof)}}, protocol=protocol)
    archive = torch_zip(tmp_path / "evil.pt", payload)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(payload)
    for path in (archive, plain):
        for name in ("hpsv2", "mps"):
            with pytest.raises(RewardModelError, match=r"refused|cannot be read"):
                load(name, path, "cpu", model_config=mps_config() if name == "mps" else HPS_CONFIG)
        with pytest.raises(RewardModelError):
            convert_mps(path, tmp_path / "out", model_config=mps_config())
    content = read_inert(archive)
    assert isinstance(content["state_dict"]["w"], Inert)
    assert not proof.exists()
    with pytest.raises(FileExistsError):  # the payload does work where pickles are executed
        pickle.loads(payload), pickle.loads(payload)


HOSTILE_OPCODES = {
    "INST": b"(S'%s'\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nS'%s'\no.",
    "REDUCE": b"cos\nmkdir\n(S'%s'\ntR.",
    "NEWOBJ": b"\x80\x02cos\nmkdir\n(S'%s'\nt\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(S'%s'\ntR.",
    "EXT1": b"\x80\x02\x82\x01(S'%s'\ntR.",
    "BUILD on OrderedDict itself": b"ccollections\nOrderedDict\n}S'copy'\nS'%s'\nsb.",
}


@pytest.mark.parametrize("opcode", HOSTILE_OPCODES)
def test_every_way_to_call_is_inert(tmp_path, opcode):
    import copyreg

    proof = tmp_path / "executed"
    copyreg.add_extension("os", "mkdir", 1)
    try:
        path = torch_zip(tmp_path / "evil.pt", HOSTILE_OPCODES[opcode] % str(proof).encode())
        try:
            assert isinstance(read_inert(path), Inert)
        except RewardModelError as error:
            assert "nothing in it was executed" in str(error)
    finally:
        copyreg.remove_extension("os", "mkdir", 1)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((4,), (1,), 1), ((1 << 40,), (0,), 0), ((2, 2), (2, 2), 0), ((2,), (-1,), 1), ((4,), (1,), -1)],
)
def test_tensors_cannot_leave_their_storage(tmp_path, size, stride, offset):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(item, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"w": Tensor()})
    path = torch_zip(tmp_path / "w.pt", stream.getvalue(), {"0": bytes(16)})
    with pytest.raises(RewardModelError, match=r"storage|malformed"):
        read_inert(path)
    damaged = torch_zip(tmp_path / "short.pt", stream.getvalue(), {"0": bytes(12)})
    with pytest.raises(RewardModelError, match="12 bytes, 16 expected"):
        read_inert(damaged)


def test_truncated_and_empty_weights(tmp_path):
    data = (GOLDEN / "hpsv2" / "model.safetensors").read_bytes()
    torch.save(load_file(GOLDEN / "hpsv2" / "model.safetensors"), tmp_path / "whole.pt")
    cases = {
        "half.safetensors": data[: len(data) // 2],
        "header.safetensors": data[:4],
        "half.pt": (tmp_path / "whole.pt").read_bytes()[:100_000],
        "empty.pt": b"",
        "empty.safetensors": b"",
        "text.pt": b"<html>404</html>",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RewardModelError, match=name):
            load("hpsv2", tmp_path / name, "cpu", model_config=HPS_CONFIG)


def test_state_dict_of_another_size(tmp_path):
    with pytest.raises(RewardModelError, match="do not fit this model") as error:
        load("hpsv2", GOLDEN / "hpsv2" / "model.safetensors", "cpu")  # the published size
    assert "of another size" in str(error.value) and "model_config" in str(error.value)
    with pytest.raises(RewardModelError, match="not an MPS checkpoint"):
        weights = GOLDEN / "pickscore" / "model.safetensors"
        load("mps", weights, "cpu", tokenizer=TOKENIZER, model_config=mps_config())
    with pytest.raises(RewardModelError, match="the head takes 32 numbers, the tower gives 48"):
        from tests.reward_models.layouts import clip_config

        config = clip_config() | {"projection_dim": 48}
        from reward_models.checkpoints import write_random

        tower = write_random("pickscore", tmp_path / "tower", config, TOKENIZER)
        load("aesthetic", GOLDEN / "mlp_head" / "model.safetensors", "cpu", tower=tower)


def test_missing_files_and_wrong_kinds(tmp_path):
    with pytest.raises(RewardModelError, match="does not exist"):
        load("hpsv2", tmp_path / "nothing.pt", "cpu")
    with pytest.raises(RewardModelError, match="must be a folder"):
        load("pickscore", GOLDEN / "hpsv2" / "model.safetensors", "cpu")
    with pytest.raises(RewardModelError, match="holds no tokenizer"):
        load("pickscore", GOLDEN / "pickscore", "cpu")
    with pytest.raises(RewardModelError, match="holds no weights"):
        load("pickscore", TOKENIZER, "cpu")
    with pytest.raises(RewardModelError, match="aesthetic needs its head"):
        load("aesthetic", device="cpu")
    with pytest.raises(RewardModelError, match="no published hub checkpoint"):
        load("hps_v1", device="cpu")


def test_unreachable_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardModelError, match="neither a local path nor reachable"):
        load("pickscore", "someone/no-such-model", "cpu")
    with pytest.raises(RewardModelError, match="neither a local path nor reachable"):
        load("hpsv2", "someone/no-such-model@main:HPS.pt", "cpu")


def encoded(image, kind):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_broken_images(tmp_path):
    whole = encoded(noise_image(0, 200, 200), "JPEG")
    cases = {
        "zero.jpg": (b"", "0 bytes"),
        "half.jpg": (whole[: len(whole) // 2], "cannot be decoded"),
        "page.png": (b"<html></html>", "cannot be decoded"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        for source in (tmp_path / name, str(tmp_path / name), content):
            with pytest.raises(RewardModelError, match=message):
                decode_image(source)
    with pytest.raises(RewardModelError, match="cannot be decoded"):
        decode_image(Image.open(io.BytesIO(whole[: len(whole) // 2])))  # opened lazily by the caller
    with pytest.raises(RewardModelError, match="cannot be read"):
        decode_image(tmp_path / "absent.png")


def png_header(width, height):
    """A PNG that claims a size; a bomb would follow with highly compressed pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 12_000, 20_000, 60_000])
def test_image_bombs_are_refused_from_their_header(side):
    with pytest.raises(RewardModelError, match="too large"):
        decode_image(png_header(side, side))


def test_very_thin_images_are_refused():
    with pytest.raises(RewardModelError, match="too thin"):
        decode_image(Image.new("RGB", (3000, 2)))


def test_score_reports_a_broken_image(pickscore):
    with pytest.raises(RewardModelError, match="0 bytes"):
        pickscore.score("a fox", [noise_image(0), b""])
