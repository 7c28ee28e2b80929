// A session's chat: questions, answers as they are written, and what people say about them.
// Texts of people and models only ever become text nodes, never markup.

import * as api from "./api.js";
import { $, actions, busy, button, element, fill, quiet, shout, submits } from "./parts.js";

const chats = new Map(); // session id -> [{question, answer, node}]
let current = null;
let taught = async () => {}; // what to do when a session learned something

export function onTaught(work) {
  taught = work;
}

export function showChat(session) {
  current = session;
  if (!chats.has(session)) chats.set(session, []);
  const turns = chats.get(session);
  $("chat").replaceChildren(...turns.map((turn) => turn.node));
  $("chat").hidden = turns.length === 0;
  $("empty").hidden = turns.length > 0;
}

export const dropChat = (session) => chats.delete(session);

export async function ask(question) {
  const session = current;
  const turns = chats.get(session);
  const node = $("turn").content.firstElementChild.cloneNode(true);
  const turn = { question, answer: null, node };
  const messages = $("earlier").checked ? conversation(turns, question) : null;
  node.querySelector(".asked").textContent = question;
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
    text.textContent = answer.text || "(an empty answer)";
    node.classList.toggle("learned", answer.adapter_used);
    if (version === undefined) {
      turn.answer = answer.text;
      by.textContent = author(answer);
      offerFeedback(node, answer.id, turn, session);
    }
  } catch (error) {
    shout(error);
    by.textContent = text.textContent ? `${title}: broke off` : `${title}: no answer`;
    actions(node, button("Try again", () => write(side, context)));
  } finally {
    writing(node, false);
  }
}

function writing(node, now) {
  node.classList.toggle("writing", now);
  node.setAttribute("aria-busy", String(now)); // told once it is whole, not piece by piece
}

function author(answer) {
  if (answer.adapter_used) return `Learned, version ${answer.adapter_version}`;
  return answer.adapter_version ? "Base model: nothing like it was taught" : "Base model";
}

function offerFeedback(node, completion, turn, session) {
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
    actions(node, ...thumbs, open, verdict(outcome));
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
