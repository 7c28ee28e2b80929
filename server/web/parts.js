// What the pages are made of: controls that are busy while they work, texts, questions, and the notice.

import { CallFailed } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function element(name, text, kind = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const paragraph = (text, kind) => element("p", text, kind);

export function button(label, onClick, kind = "") {
  const made = element("button", label, kind);
  made.type = "button";
  made.addEventListener("click", () => Promise.resolve(onClick()).catch(shout));
  return made;
}

/** A row of a table; texts and nodes become its cells. */
export function tableRow(contents) {
  const made = document.createElement("tr");
  for (const content of contents) {
    const cell = document.createElement("td");
    cell.append(content);
    made.append(cell);
  }
  return made;
}

/** What a feedback item says about its prompt. */
export function said(item) {
  const text = item.completion ?? "";
  if (item.kind !== "rating") return text;
  return `${item.rating > 0 ? "Good answer" : "Bad answer"}: ${text}`;
}

export function actions(node, ...parts) {
  node.querySelector(".actions").replaceChildren(...parts);
}

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export function time(seconds) {
  const made = element("time", MOMENT.format(seconds * 1000));
  made.dateTime = new Date(seconds * 1000).toISOString();
  return made;
}

export function fill(field, text) {
  field.value = text;
  field.focus();
}

export async function busy(controls, work) {
  const last = document.activeElement;
  for (const control of controls) control.disabled = true;
  const [first] = controls;
  first?.setAttribute("aria-busy", "true");
  quiet();
  try {
    return await work();
  } finally {
    for (const control of controls) control.disabled = false;
    first?.removeAttribute("aria-busy");
    // A control that was switched off lost the keyboard.
    if (controls.includes(last) && document.activeElement === document.body) last.focus();
  }
}

export function submits(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy([form.querySelector("[type=submit]")], work).catch(shout);
  });
}

/** Ask whether something is meant that cannot be undone; Escape says no. */
export function sure(question, deed) {
  const [dialog, yes] = [$("sure"), $("sure-yes")];
  $("sure-question").textContent = question;
  yes.textContent = deed;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

/** The model's name in the head, and whether its server answers. */
export function status(text, state) {
  $("model").textContent = text;
  $("model").className = `status ${state}`;
}

export function shout(error) {
  const known = error instanceof CallFailed;
  if (!known) console.error(error);
  $("notice").textContent = known ? error.message : "This page failed: load it again.";
  $("notice").hidden = false;
}

export function quiet() {
  $("notice").hidden = true;
}
