"""A model folder that brings code along is not believed."""

import json
from pathlib import Path

import pytest
import torch
from server_model import make_model_folder

from adapters.artifact import load_artifact
from adapters.base_model import ArtifactError

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as Evil
"""


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_in_a_model_folder_does_not_run(tmp_path: Path, model_type: str) -> None:
    folder, marker = tmp_path / "model", tmp_path / "ran"
    make_model_folder(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"model_type": model_type}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    path.write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    if model_type == "llama":  # known here: the library's own code is used
        load_artifact(folder, torch.device("cpu"))
    else:
        with pytest.raises(ArtifactError):
            load_artifact(folder, torch.device("cpu"))
    assert not marker.exists()
