// A session's chat: questions, answers as they are written, and what people say about them.
// Texts of people and models only ever become text nodes, never markup.

import * as api from "./api.js";
import { $, actions, busy, button, element, fill, quiet, shout, submits } from "./parts.js";

const KEPT = "innerloop.chat."; // in this tab, so that a page loaded anew can still rate what was said
const KEPT_TURNS = 50;

const chats = new Map(); // session id -> [{question, answer, node, said}], `said` as it is kept
let current = null;
let taught = async () => {}; // what to do when a session learned something

export function onTaught(work) {
  taught = work;
}

export function showChat(session) {
  current = session;
  if (!chats.has(session)) chats.set(session, kept(session).map((turn) => restored(turn, session)));
  const turns = chats.get(session);
  $("chat").replaceChildren(...turns.map((turn) => turn.node));
  $("chat").hidden = turns.length === 0;
  $("empty").hidden = turns.length > 0;
}

export function dropChat(session) {
  chats.delete(session);
  keep(session);
}

function keep(session) {
  const said = (chats.get(session) ?? []).map((turn) => turn.said).filter(Boolean).slice(-KEPT_TURNS);
  try {
    if (said.length) sessionStorage.setItem(KEPT + session, JSON.stringify(said));
    else sessionStorage.removeItem(KEPT + session);
  } catch {
    // A browser that keeps nothing, or no more: the chat lasts as long as the page.
  }
}

function kept(session) {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT + session)) ?? [];
  } catch {
    return [];
  }
}

function newTurn(question) {
  const node = $("turn").content.firstElementChild.cloneNode(true);
  node.querySelector(".asked").textContent = question;
  return { question, answer: null, node };
}

function restored(said, session) {
  const turn = newTurn(said.question);
  const node = turn.node.querySelector(".answer");
  finish({ node }, { session, turn, messages: null }, said);
  return turn;
}

export async function ask(question) {
  const session = current;
  const turns = chats.get(session);
  const turn = newTurn(question);
  const { node } = turn;
  const messages = $("earlier").checked ? conversation(turns, question) : null;
  const learned = node.querySelector(".answer");
  const sides = [{ node: learned, title: "This session" }];
  if ($("beside").checked) {
    const untaught = learned.cloneNode(true);
    learned.after(untaught);
    sides.push({ node: untaught, title: "Untaught", version: 0 });
  }
  turns.push(turn);
  showChat(session);
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
  actions(node);
  writing(node, true);
  quiet();
  const body = { session_id: session };
  if (messages) body.messages = messages;
  else body.prompt = turn.question;
  if (version !== undefined) body.adapter_version = version;
  try {
    const answer = await api.generate(body, (soFar) => {
      text.textContent = soFar;
      if (session === current) node.scrollIntoView({ block: "nearest" });
    });
    finish(side, context, { question: turn.question, ...answer });
    keep(session);
  } catch (error) {
    shout(error);
    by.textContent = text.textContent ? `${title}: broke off` : `${title}: no answer`;
    const refused = error.status === 422; // as it is, it never gets an answer
    const edit = button("Change the question", () => fill($("question"), turn.question));
    actions(node, refused ? edit : button("Try again", () => write(side, context)));
  } finally {
    writing(node, false);
  }
}

/** Show a whole answer, as the server gave it or as it was kept. */
function finish(side, context, said) {
  const { node, version } = side;
  const { turn } = context;
  node.querySelector(".text").textContent = said.text || "(an empty answer)";
  node.classList.toggle("learned", said.adapter_used);
  if (version !== undefined) return;
  const { question, text, id, adapter_used, adapter_version } = said;
  turn.answer = text;
  turn.said = { question, text, id, adapter_used, adapter_version };
  node.querySelector(".by").textContent = author(said);
  offerFeedback(side, context);
}

function writing(node, now) {
  node.classList.toggle("writing", now);
  node.setAttribute("aria-busy", String(now)); // told once it is whole, not piece by piece
}

function author(answer) {
  if (answer.adapter_used) return `Learned, version ${answer.adapter_version}`;
  return answer.adapter_version ? "Base model: nothing like it was taught" : "Base model";
}

function offerFeedback(side, context) {
  const { node } = side;
  const { turn, session } = context;
  const completion = turn.said.id;
  const thumb = (label, rating) => {
    const made = button("", () => rate(rating), rating > 0 ? "quiet thumb" : "quiet thumb down");
    made.setAttribute("aria-label", label);
    made.title = label;
    made.setAttribute("aria-pressed", "false");
    return made;
  };
  const thumbs = [thumb("Good answer", 1), thumb("Bad answer", -1)];
  const rate = async (rating) => {
    const outcome = await busy(thumbs, () => api.rate(completion, rating));
    thumbs.forEach((made, index) => made.setAttribute("aria-pressed", (index === 0) === (rating > 0)));
    const another = button("Another answer", () => write(side, context), "quiet");
    actions(node, ...thumbs, open, ...(rating > 0 ? [] : [another]), verdict(outcome));
    thumbs[rating > 0 ? 0 : 1].focus();
    await taught(session);
  };
  const open = button("It should have said…", () => {
    const form = $("correction").content.firstElementChild.cloneNode(true);
    const [field, cancel] = [form.querySelector("textarea"), form.querySelector(".quiet")];
    const close = () => (form.remove(), (open.hidden = false), open.focus());
    cancel.addEventListener("click", close);
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    submits(form, async () => {
      const wanted = field.value.trim();
      if (!wanted) throw new api.CallFailed("Write what the answer should have been.");
      const outcome = await api.correct(completion, wanted);
      form.remove();
      const again = button("Ask again", () => fill($("question"), turn.question), "quiet");
      actions(node, verdict(outcome), again);
      again.focus();
      await taught(session);
    });
    open.hidden = true;
    node.append(form);
    field.focus();
  }, "quiet");
  actions(node, ...thumbs, open);
}

function verdict(outcome) {
  const made = outcome.accepted
    ? element("span", `Learned: version ${outcome.adapter_version}`, "outcome")
    : element("span", `Not learned: ${outcome.reason}`, "outcome refused");
  made.setAttribute("role", "status");
  return made;
}
