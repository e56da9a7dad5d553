"""`rocforge info`: whether there is a GPU to run on, and why not; device, kernels, versions."""

import json

import rocforge as rf


def test_info(rocforge):
    """Text and JSON say what the library says."""
    found = json.loads(rocforge("info", "--json").stdout)
    device = rf.device_info()
    assert (found["device"]["device"], found["device"]["name"]) == (device.device, device.name)
    assert found["device"]["reason"] == device.reason
    assert found["kernels"]["sources"] >= 8 and found["versions"]["rocforge"] == rf.__version__
    text = rocforge("info").stdout
    assert device.name in text
    verdict = "can run on a GPU" if device.reason is None else f"cannot run on a GPU: {device.reason}"
    assert text.splitlines()[0].split(maxsplit=1) == ["verdict", verdict]


def test_a_device_by_name(rocforge):
    """--device cpu describes the CPU, whatever there is."""
    assert json.loads(rocforge("info", "--json", "--device", "cpu").stdout)["device"]["device"] == "cpu"
