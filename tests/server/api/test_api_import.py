"""POST /sessions with a PEFT zip: served as it is, or refused and nothing kept."""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from api_calls import ANSWER, EXAMPLES, QUESTION, ask, ok, problem, teach
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save
from server_harness import LiveServer
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.sessions import IMPORTED

CONFIG, TENSORS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "innerloop.json"
ZIP = {"Content-Type": "application/zip"}
Files = dict[str, bytes]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def pack(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def unpack(content: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def bring(http: httpx.Client, session: str, content: bytes) -> httpx.Response:
    return http.post("/sessions", params={"session_id": session}, content=content, headers=ZIP)


@pytest.fixture(scope="module")
def exported(live: LiveServer) -> bytes:
    with live.client() as http:
        teach(http, "import:source")
        teach(http, "import:source", [{"prompt": "Hello", "completion": "Hi."}])
        return http.get("/admin/sessions/import:source/export").content


def peft_answer(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_an_export_comes_back_and_answers_the_same(
    http: httpx.Client, session: str, exported: bytes, model_folder: Path, tmp_path: Path
) -> None:
    made = ok(bring(http, session, exported), 201)
    assert (made["session_id"], made["adapter_version"], made["imported"]) == (session, 1, True)
    with zipfile.ZipFile(io.BytesIO(exported)) as archive:
        archive.extractall(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for prompt in (QUESTION, "Hello", "Something else entirely"):
        source = ask(http, "import:source", prompt, logprobs=True)
        answer = ask(http, session, prompt, logprobs=True)
        assert answer["logprobs"] == source["logprobs"]
        assert answer["text"] == source["text"] == peft_answer(model, tokenizer, prompt)
        assert (answer["adapter_version"], answer["adapter_used"]) == (1, True)
    again = http.get(f"/admin/sessions/{session}/export").content
    assert unpack(again)[TENSORS] == unpack(exported)[TENSORS]


def test_what_peft_trained_is_served_though_it_is_smaller(
    http: httpx.Client, session: str, model_folder: Path, tmp_path: Path
) -> None:
    """Another rank, scale and target set; saved by PEFT in a folder that somebody zipped."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    own = json.loads((model_folder / "session_init" / CONFIG).read_text())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=12,
        target_modules=["q_proj", "down_proj"],
        alora_invocation_tokens=own["alora_invocation_tokens"],
        init_lora_weights=False,
    )
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(base, config)
    model.save_pretrained(str(tmp_path))
    files = {f"mine/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
    ok(bring(http, session, pack(files)), 201)
    answers = [ask(http, session, prompt)["text"] for prompt in (QUESTION, "Hello")]
    assert answers == [peft_answer(model, tokenizer, prompt) for prompt in (QUESTION, "Hello")]
    assert answers != [
        ask(http, session, p, adapter_version=0)["text"] for p in (QUESTION, "Hello")
    ]


def test_it_is_not_taught_but_reset_rolled_back_forked_and_deleted(
    live: LiveServer, http: httpx.Client, new_session: Callable[[], str], exported: bytes
) -> None:
    name, copy = new_session(), new_session()
    ok(bring(http, name, exported), 201)
    answer = ask(http, name)
    body = {"session_id": name, "examples": EXAMPLES}
    for call in (
        http.post("/adapt", json=body),
        http.post("/adapt", json={**body, "dry_run": True}),
        http.post("/adapt", json={**body, "wait": False}),
        http.post("/feedback", json={"completion_id": answer["id"], "rating": -1}),
    ):
        assert "imported" in problem(call, 409)["detail"]
    detail = ok(http.get(f"/admin/sessions/{name}"))
    assert (detail["items"], detail["imported"], detail["feedback"]) == (0, True, [])
    assert [v["start"] for v in detail["versions"]] == [IMPORTED]
    assert detail["versions"][0]["snapshot_bytes"] > 0
    assert [(line["type"], line["fields"]) for line in detail["log"]] == [
        ("import", {"version": "1", "from": "an export of session 'import:source', version 2"})
    ]

    ok(http.post(f"/admin/sessions/{name}/reset"))
    teach(http, name, [{"prompt": QUESTION, "completion": "See the barn."}])
    assert ask(http, name)["text"] == "See the barn."
    back = ok(http.post(f"/admin/sessions/{name}/rollback", json={"adapter_version": 1}))
    assert (back["imported"], back["applied_items"], back["pending_items"]) == (True, 0, 0)
    assert ask(http, name)["text"] == answer["text"]
    ok(http.delete(f"/sessions/{name}/feedback/1"))
    assert ask(http, name)["text"] == answer["text"], "it contains no item, so it is none the less"

    made = ok(http.post("/sessions", json={"session_id": copy, "fork": {"session_id": name}}), 201)
    assert made["imported"] is True
    assert http.delete(f"/sessions/{name}").status_code == 204
    assert ask(http, copy)["text"] == answer["text"]
    assert http.delete(f"/sessions/{copy}").status_code == 204
    assert _keys(live, name, copy) == []


def test_its_bytes_are_kept_whatever_comes_after(live: LiveServer, exported: bytes) -> None:
    store, number = live.runtime.store, 0
    with live.client() as http:
        ok(bring(http, "import:kept", exported), 201)
        ok(http.post("/admin/sessions/import:kept/reset"))
        for number in range(2, 20):  # a history of 16, and the bytes of 4
            answer = "Yes." if number % 2 else "No."
            made = teach(http, "import:kept", [{"prompt": "Hm?", "completion": answer}], steps=1)
            assert made["adapter_version"] == number
        versions = ok(http.get("/admin/sessions/import:kept"))["versions"]
        assert [v["adapter_version"] for v in versions] == [1, *range(4, 20)]
        assert [v["adapter_version"] for v in versions if v["snapshot_bytes"]] == [
            1,
            *range(16, 20),
        ]
        assert ask(http, "import:kept", adapter_version=1)["text"] == ANSWER
        snapshot = live.call(store.snapshot("default", "import:kept", 1))
        assert len(snapshot) == versions[0]["snapshot_bytes"]


def test_lost_bytes_leave_the_base_and_the_record(live: LiveServer, exported: bytes) -> None:
    with live.client() as http:
        ok(bring(http, "import:lost", exported), 201)
        known = live.call(live.runtime.store.version_record("default", "import:lost", 1))
        room = live.runtime.store._room
        key = room.keys.session("default", "import:lost").snapshot(known.snapshot_id)
        live.call(room.connection.write("DEL", key))
        untaught = ask(http, "import:base")
        answer = ask(http, "import:lost")
        assert (answer["adapter_version"], answer["text"]) == (0, untaught["text"])
        assert (
            "adapter_version"
            in problem(
                http.post(
                    "/generate",
                    json={"session_id": "import:lost", "prompt": "a", "adapter_version": 1},
                ),
                409,
            )["detail"]
        )
        assert ok(http.get("/sessions/import:lost"))["adapter_version"] == 1


def config(**fields: object) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        return {**files, CONFIG: json.dumps({**json.loads(files[CONFIG]), **fields}).encode()}

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        found = load(files[TENSORS])
        change(found)
        return {**files, TENSORS: save(found)}

    return edit


def with_file(name: str, data: bytes = b"x") -> Callable[[Files], Files]:
    return lambda files: {**files, name: data}


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: data for key, data in files.items() if key != name}


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (config(use_dora=True), "use_dora"),
        (config(use_rslora=True), "use_rslora"),
        (config(peft_type="IA3"), "IA3"),
        (config(r=9), "rank is 9"),
        (config(alora_invocation_tokens=None), "scope is 'full'"),
        (config(alora_invocation_tokens=[1]), "starts at the tokens"),
        (config(target_modules=["q_proj", "lm_head"]), "lm_head"),
        (config(lora_alpha=1e9), "no training makes such an adapter"),
        (config(lora_alpha=float("nan")), "no training makes such an adapter"),
        (with_file(CONFIG, b"{"), "not JSON"),
        (without(CONFIG), f"no {CONFIG}"),
        (without(TENSORS), f"no {TENSORS}"),
        (with_file("adapter_model.bin"), "pickled files are never read"),
        (with_file("sub/optimizer.PT"), "pickled files are never read"),
        (with_file("../evil"), "outside of its folder"),
        (with_file("/etc/evil"), "outside of its folder"),
        (with_file("a\\..\\evil"), "outside of its folder"),
        (with_file(f"other/{CONFIG}", b"{}"), "2 adapters"),
        (lambda files: {**files, **{f"{n}.txt": b"" for n in range(70)}}, "files"),
        (with_file(TENSORS, bytes(10_000_000)), "longer than"),
        (with_file(TENSORS, b"garbage bytes"), "over the limit"),
        (with_file(ABOUT, b'{"base_fingerprint": "another"}'), "belongs to the base 'another'"),
        (with_file(ABOUT, b"[]"), "JSON object"),
        (with_file(ABOUT, b"[" * 100_000), "not JSON"),
        (tensors(lambda t: t[FIRST].fill_(torch.nan)), "not finite"),
        (tensors(lambda t: t[FIRST].mul_(1e30)), "no training makes such an adapter"),
        (tensors(lambda t: t.update({FIRST: torch.ones(8, 3)})), "has shape"),
        (tensors(lambda t: t.update({FIRST: torch.ones(8, 64, dtype=torch.int64)})), "I64"),
        (tensors(lambda t: t.pop(FIRST)), "misses"),
        (tensors(lambda t: t.update({FIRST.replace(".0.", ".7."): t[FIRST].clone()})), "have not"),
    ],
)
def test_what_is_refused_says_why_and_leaves_nothing(
    live: LiveServer,
    http: httpx.Client,
    session: str,
    exported: bytes,
    edit: Callable[[Files], Files],
    told: str,
) -> None:
    document = problem(bring(http, session, pack(edit(unpack(exported)))), 422)
    assert told in document["detail"]
    problem(http.get(f"/sessions/{session}"), 404)
    assert _keys(live, session) == []


def test_broken_zips(live: LiveServer, http: httpx.Client, session: str, exported: bytes) -> None:
    stored = pack(unpack(exported), zipfile.ZIP_STORED)
    at = stored.index(unpack(exported)[TENSORS][200:260])
    flipped = stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]
    bomb = pack({**unpack(exported), TENSORS: bytes(50_000_000)})
    # The directory at the zip's end declares 100 bytes where 50 million come out.
    entry = zipfile.ZipFile(io.BytesIO(bomb)).start_dir
    while bomb[entry + 46 :][: len(TENSORS)] != TENSORS.encode():
        entry = bomb.index(b"PK\x01\x02", entry + 4)
    lying = bomb[: entry + 24] + struct.pack("<I", 100) + bomb[entry + 28 :]
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    linked = io.BytesIO(stored)
    with zipfile.ZipFile(linked, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    crowd = pack({f"{number}.txt": b"" for number in range(20_000)})
    for content, told in (
        (crowd, "many more files"),
        (crowd + b"x" * 50, "many more files"),
        (b"", "no zip"),
        (b"PK\x05\x06 garbage", "no zip"),
        (stored[: len(stored) // 2], "no zip"),
        (flipped, "damaged"),
        (bomb, "longer than"),
        (lying, "damaged"),
        (linked.getvalue(), "link"),
        (pack(unpack(exported), zipfile.ZIP_BZIP2), "deflate"),
    ):
        assert told in problem(bring(http, session, content), 422)["detail"]
    assert _keys(live, session) == []


def test_the_door(live: LiveServer, http: httpx.Client, session: str, exported: bytes) -> None:
    ok(bring(http, session, exported), 201)
    assert "already" in problem(bring(http, session, exported), 409)["detail"]
    document = problem(bring(http, "no spaces", exported), 422)
    assert [error["path"] for error in document["errors"]] == ["session_id"]
    drawn = ok(http.post("/sessions", content=exported, headers=ZIP), 201)
    assert ask(http, drawn["session_id"])["adapter_version"] == 1
    problem(http.post("/sessions?session_id=x", json={}), 422)
    problem(http.post("/sessions", content=exported, headers={"Content-Type": "text/plain"}), 415)
    with live.client(2) as small:
        assert "INNERLOOP_MAX_IMPORT_BYTES" in problem(bring(small, "x", exported), 413)["detail"]
        body = {"session_id": "x" * 50_000}
        assert "INNERLOOP_MAX_BODY" in problem(small.post("/sessions", json=body), 413)["detail"]
    with live.client(1) as keyed:
        problem(bring(keyed, session, exported), 401)
    with live.client(1, headers={"Authorization": "Bearer acme-key"}) as keyed:
        assert ok(bring(keyed, session, exported), 201)["imported"] is True
        assert ask(keyed, session)["text"] == ANSWER


def _keys(live: LiveServer, *sessions: str) -> list[bytes]:
    """What Redis holds of these sessions, anywhere."""
    names = [session.replace(":", "%3A").encode() for session in sessions]
    found = live.call(live.runtime.store._room.connection.read("KEYS", "*"))
    return [key for key in found if any(name + b"}" in key for name in names)]


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "", "multipart/form-data; boundary=x"]
)
def test_a_zip_that_is_not_called_one(http: httpx.Client, kind: str) -> None:
    large = b"x" * 3_000_000  # more than JSON may have
    headers = {"Content-Type": kind}
    document = problem(http.post("/sessions", content=large, headers=headers), 415)
    assert "application/zip" in document["detail"]
    assert kind.partition(";")[0] in document["detail"]
