// The playground: a chat whose answers can be corrected, beside what its session has learned.
// Texts of people and models only ever become text nodes, never markup.

import * as api from "./api.js";
import { $, actions, busy, button, fill, paragraph, quiet, shout, submits } from "./parts.js";

const STORE = "innerloop.sessions";

// --- Sessions: their ids are kept in this browser, their chats on this page -----------------------

const chats = new Map(); // session id -> [{question, answer, node}]
let sessions = [];
let current;

function stored() {
  try {
    const ids = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(ids) ? ids.filter((id) => /^[\w.:@-]{1,128}$/.test(id)) : [];
  } catch {
    return [];
  }
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(5));
  return "web-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function keepSessions() {
  try {
    localStorage.setItem(STORE, JSON.stringify(sessions));
  } catch {
    // A browser that keeps nothing: the sessions last as long as the page.
  }
  $("sessions").replaceChildren(
    ...sessions.map((id, index) => {
      const item = document.createElement("li");
      const tab = button(`Session ${index + 1}`, () => enter(id));
      tab.title = id;
      if (id === current) tab.setAttribute("aria-current", "true");
      item.append(tab);
      return item;
    }),
  );
}

async function enter(id) {
  current = id;
  if (!chats.has(id)) chats.set(id, []);
  keepSessions();
  showChat();
  await refresh();
}

// --- The chat -------------------------------------------------------------------------------------

function showChat() {
  const turns = chats.get(current);
  $("chat").replaceChildren(...turns.map((turn) => turn.node));
  $("empty").hidden = turns.length > 0;
}

async function ask(question) {
  const session = current;
  const turns = chats.get(session);
  const node = $("turn").content.firstElementChild.cloneNode(true);
  const turn = { question, answer: null, node };
  const messages = $("earlier").checked ? conversation(turns, question) : null;
  node.querySelector(".asked").textContent = question;
  const taught = node.querySelector(".answer");
  const sides = [{ node: taught, title: "This session" }];
  if ($("beside").checked) {
    const untaught = taught.cloneNode(true);
    taught.after(untaught);
    sides.push({ node: untaught, title: "Untaught", version: 0 });
  }
  turns.push(turn);
  showChat();
  node.scrollIntoView({ block: "nearest" });
  await Promise.all(sides.map((side) => write(side, { session, turn, messages })));
}

function conversation(turns, question) {
  const earlier = turns.filter((turn) => turn.answer !== null);
  return [
    ...earlier.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.answer },
    ]),
    { role: "user", content: question },
  ];
}

async function write(side, context) {
  const { session, turn, messages } = context;
  const { node, title, version } = side;
  const text = node.querySelector(".text");
  const by = node.querySelector(".by");
  by.textContent = title;
  text.textContent = "";
  node.querySelector(".actions").replaceChildren();
  node.classList.add("writing");
  quiet();
  const body = { session_id: session };
  if (messages) body.messages = messages;
  else body.prompt = turn.question;
  if (version !== undefined) body.adapter_version = version;
  try {
    const answer = await api.generate(body, (soFar) => (text.textContent = soFar));
    text.textContent = answer.text || "(an empty answer)";
    node.classList.toggle("learned", answer.adapter_used);
    if (version === undefined) {
      turn.answer = answer.text;
      by.textContent = author(answer);
      offerCorrection(node, answer.id, turn, session);
    }
  } catch (error) {
    shout(error);
    by.textContent = `${title}: no answer`;
    actions(node, button("Try again", () => write(side, context), "quiet"));
  } finally {
    node.classList.remove("writing");
  }
}

function author(answer) {
  if (answer.adapter_used) return `Learned, version ${answer.adapter_version}`;
  return answer.adapter_version ? "Base model: nothing like it was taught" : "Base model";
}

function offerCorrection(node, completion, turn, session) {
  const open = button("It should have said…", () => {
    const form = $("correction").content.firstElementChild.cloneNode(true);
    const [field, cancel] = [form.querySelector("textarea"), form.querySelector(".quiet")];
    const close = () => (form.remove(), (open.hidden = false), open.focus());
    cancel.addEventListener("click", close);
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    submits(form, async () => {
      const outcome = await api.correct(completion, field.value);
      form.remove();
      const again = button("Ask again", () => fill($("question"), turn.question), "quiet");
      actions(node, verdict(outcome), again);
      if (session === current) await refresh();
    });
    open.hidden = true;
    node.append(form);
    field.focus();
  }, "quiet");
  actions(node, open);
}

function verdict(outcome) {
  const note = document.createElement("span");
  note.className = outcome.accepted ? "outcome" : "outcome refused";
  note.setAttribute("role", "status");
  note.textContent = outcome.accepted
    ? `Learned: version ${outcome.adapter_version}`
    : `Not learned: ${outcome.reason}`;
  return note;
}

// --- What the session learned ---------------------------------------------------------------------

async function refresh() {
  const session = current;
  const known = await api.readSession(session);
  if (session !== current) return; // another one was entered meanwhile
  const version = known?.adapter_version ?? 0;
  $("version").textContent = version ? `version ${version}` : "untaught";
  const items = (known?.feedback ?? []).filter((item) => item.status !== "forgotten");
  $("items").replaceChildren(...items.map((item) => itemNode(session, item)));
  $("nothing").hidden = items.length > 0;
}

function itemNode(session, item) {
  const node = document.createElement("li");
  const counts = item.status === "applied" || item.status === "pending";
  const asked = item.messages?.at(-1)?.content ?? "";
  node.append(paragraph(asked, "question"), paragraph(item.completion ?? "", counts ? "" : "off"));
  if (item.status !== "applied") {
    node.append(paragraph(item.reason ? `${item.status}: ${item.reason}` : item.status, "hint"));
  }
  const remove = button("Forget", () => forget(session, item.id, remove), "quiet");
  remove.setAttribute("aria-label", `Forget: ${asked}`);
  node.append(remove);
  return node;
}

async function forget(session, item, remove) {
  await busy(remove, () => api.forget(session, item));
  await refresh();
  $("learned-title").scrollIntoView({ block: "nearest" });
}

// --- Start ----------------------------------------------------------------------------------------

submits($("ask"), async () => {
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  await ask(question);
  $("question").focus();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

submits($("teach"), async () => {
  const completion = $("wanted").value.trim();
  const prompts = $("wordings").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!prompts.length || !completion) return;
  const outcome = await api.teach(current, prompts.map((prompt) => ({ prompt, completion })));
  if (!outcome.accepted) throw new api.CallFailed(`Not learned: ${outcome.reason}`);
  $("teach").reset();
  await refresh();
});

$("new-session").addEventListener("click", () => {
  const id = newId();
  sessions.push(id);
  enter(id).then(() => $("question").focus()).catch(shout);
});

$("delete-session").addEventListener("click", async () => {
  if (!confirm("Delete this session with everything it learned?")) return;
  const id = current;
  try {
    await api.deleteSession(id).catch((error) => {
      if (error.status !== 404) throw error; // it was never used
    });
    sessions = sessions.filter((other) => other !== id);
    chats.delete(id);
    if (!sessions.length) sessions.push(newId());
    await enter(sessions[0]);
  } catch (error) {
    shout(error);
  }
});

// Another tab made or deleted a session; what it taught shows when this one is looked at again.
addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  sessions = stored();
  if (!sessions.length) sessions.push(newId());
  if (sessions.includes(current)) keepSessions();
  else enter(sessions[0]).catch(shout);
});
addEventListener("focus", () => refresh().catch(shout));

async function start() {
  sessions = stored();
  if (!sessions.length) sessions.push(newId());
  try {
    $("model").textContent = `${await api.readModel()}, learning while it answers`;
  } finally {
    await enter(sessions[0]);
  }
}
start().catch(shout);
