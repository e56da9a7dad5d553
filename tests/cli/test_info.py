"""`rocforge info`: device, kernels, versions; and why there is no GPU."""

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
    assert device.name in text and ("no GPU" in text) == (device.device == "cpu")
    assert device.reason is None or device.reason in text


def test_a_device_by_name(rocforge):
    """--device cpu describes the CPU, whatever there is."""
    assert json.loads(rocforge("info", "--json", "--device", "cpu").stdout)["device"]["device"] == "cpu"
