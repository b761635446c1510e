"""What `doctor` found, as JSON has it: texts that programs of others may read."""

from __future__ import annotations

import json

import pytest

from spq_graph.documents.examination import Examination, Gpu, Library, LibraryBuild, Machine, Probed, ProbeStatus
from spq_graph.terms.form import Form

PROBED = {
    "int8": (Probed(ProbeStatus.RAN, "MatMulIntegerToFloat"), "MatMulIntegerToFloat"),
    "w8a16": (Probed(ProbeStatus.RAN), "not found"),
    "fp8_e4m3": (Probed(ProbeStatus.FUNCTION), "function"),
    "fp16": (Probed(ProbeStatus.NOT_HERE, form=Form.MATMUL_INTEGER), "not executed here; written as MatMulInteger"),
    "bf16": (Probed(ProbeStatus.UNSUPPORTED, why="no kernel"), "unsupported: no kernel"),
    "fp32": (Probed(ProbeStatus.ERROR, why="it broke"), "error: it broke"),
}
BUILD = LibraryBuild("0.1.0", 1, "avx2", ["generic", "avx2"], None)


@pytest.mark.parametrize(
    ("library", "facts"),
    [
        (Library(None, "it was not built"), {"path": None, "problem": "it was not built"}),
        (
            Library("lib.so", build=BUILD),
            {
                "path": "lib.so",
                "version": "0.1.0",
                "operator_version": 1,
                "isa": "avx2",
                "available": ["generic", "avx2"],
                "cuda": None,
                "problem": None,
            },
        ),
    ],
)
def test_json_of_an_examination(library: Library, facts: dict[str, object]) -> None:
    found = Examination(
        versions={"numpy": "2"},
        machine=Machine("a processor", 2, ["avx2"], [Gpu("a GPU", "sm_90", "580")], "Linux x86_64", ["CPU"]),
        library=library,
        targets={"cpu": {precision: probed for precision, (probed, _) in PROBED.items()}},
        absent={"cpu": None},
        warnings=["saturates"],
    ).to_dict()
    assert json.loads(json.dumps(found)) == found  # plain data
    assert list(found["library"].items()) == list(facts.items())
    assert found["targets"] == {"cpu": {precision: name for precision, (_, name) in PROBED.items()}}
    assert list(found["machine"]) == ["processor", "cores", "instruction_sets", "gpus", "system", "providers"]
    assert found["machine"]["gpus"] == [{"name": "a GPU", "architecture": "sm_90", "driver": "580"}]
