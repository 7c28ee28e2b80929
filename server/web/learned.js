// What the session in front learned, item by item, each to be forgotten; and teaching it directly.

import * as api from "./api.js";
import { $, busy, button, paragraph, said, submits } from "./parts.js";

const AT_ONCE = 64; // examples that the server takes in one call

let shown = null;
let drawn = ""; // what is on the page already, so that reading it again disturbs nobody

/** Show what `session` learned; for none, read the one in front again. */
export async function refresh(session = shown) {
  if (session !== shown) drawn = "";
  shown = session;
  const known = await api.readSession(session);
  if (session !== shown) return; // another one was entered meanwhile
  const items = (known?.feedback ?? []).filter((item) => item.status !== "forgotten");
  const version = known?.adapter_version ?? 0;
  const text = JSON.stringify([version, items]);
  if (text === drawn) return;
  drawn = text;
  $("version").textContent = version ? `version ${version}` : "untaught";
  $("version").className = version ? "badge good" : "badge";
  $("items").replaceChildren(...items.map((item) => itemNode(session, item)));
  $("nothing").hidden = items.length > 0;
}

function itemNode(session, item) {
  const node = document.createElement("li");
  const counts = item.status === "applied" || item.status === "pending";
  const asked = item.messages?.at(-1)?.content ?? "";
  node.append(paragraph(`${item.id}. ${asked}`, "question"), paragraph(said(item), counts ? "" : "off"));
  if (item.status !== "applied") {
    const reason = item.reason?.startsWith(item.status) ? null : item.status;
    node.append(paragraph([reason, item.reason].filter(Boolean).join(": "), "hint"));
  }
  const remove = button("Forget", () => forget(session, item.id, remove), "quiet");
  remove.setAttribute("aria-label", `Forget: ${asked}`);
  node.append(remove);
  return node;
}

async function forget(session, item, remove) {
  await busy([remove], () => api.forget(session, item));
  await refresh();
  $("learned-title").focus();
}

submits($("teach"), async () => {
  const completion = $("wanted").value.trim();
  const prompts = $("wordings").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!prompts.length || !completion) throw new api.CallFailed("Write a question, and the answer to it.");
  const examples = prompts.map((prompt) => ({ prompt, completion }));
  const session = shown;
  for (let begin = 0; begin < examples.length; begin += AT_ONCE) {
    const outcome = await api.teach(session, examples.slice(begin, begin + AT_ONCE));
    if (!outcome.accepted) throw new api.CallFailed(`Not learned: ${outcome.reason}`);
  }
  $("teach").reset();
  await refresh();
});
