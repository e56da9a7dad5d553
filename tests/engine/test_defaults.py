"""What a file recommends for sampling is what a request, a call and a command take where nobody says."""

import pickle
from types import SimpleNamespace

import pytest
from golden import build

import rocforge as rf
from rocforge.cli.options import Sampling, sampling_options
from rocforge.engine.defaults import file_defaults

FILE = {
    "temp": 0.0,
    "top_k": -1,
    "top_p": 0.5,
    "penalty_repeat": 1.5,
    "mirostat_tau": 4.0,
    "sequence": "kpt",
    "min_p": "x",
}
WANTED = {"temperature": 0.0, "top_k": 0, "top_p": 0.5, "repetition_penalty": 1.5, "mirostat_tau": 4.0}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("defaults") / "llama.gguf"
    build(path, "llama", "F32")
    with rf.open_gguf(path) as file:
        metadata = {**file.metadata, **{f"general.sampling.{name}": value for name, value in FILE.items()}}
        tokenizer = rf.Tokenizer(SimpleNamespace(metadata=metadata))
    return rf.load(path, device="cpu")[0], tokenizer


def test_of_a_file(loaded):
    """By our names, in every process that has the tokenizer; what is out of range is told and left out."""
    assert file_defaults(loaded[1]) == file_defaults(pickle.loads(pickle.dumps(loaded[1]))) == WANTED
    with pytest.warns(UserWarning, match=r"general\.sampling is not taken: top_p is 7"):
        assert file_defaults(SimpleNamespace(recommended_sampling={"top_p": 7.0, "min_p": 0.1})) == {"min_p": 0.1}


def test_of_a_call(loaded):
    """The file's, but for what is said."""

    def tokens(**options):
        return [piece.token for piece in rf.stream_generate(*loaded, [3, 4], max_tokens=8, ignore_eos=True, **options)]

    assert tokens() == tokens(**WANTED)
    assert tokens(repetition_penalty=1.0) == tokens(**{**WANTED, "repetition_penalty": 1.0}) != tokens()
    assert rf.generate(*loaded, [3, 4], max_tokens=8, ignore_eos=True) == loaded[1].decode(tokens())


def test_of_a_command(loaded):
    """Options of the command line come before the file's."""
    sampling = Sampling(sampling_options(temperature=0.3), frozenset(["temperature"]))
    assert sampling.of(loaded[1]) == {**sampling_options(), **WANTED, "temperature": 0.3}
