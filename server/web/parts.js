// What the playground is made of: controls that are busy while they work, texts, and its notice.

import { CallFailed } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function button(label, onClick, kind = "") {
  const made = document.createElement("button");
  made.type = "button";
  made.className = kind;
  made.textContent = label;
  made.addEventListener("click", () => Promise.resolve(onClick()).catch(shout));
  return made;
}

export function paragraph(text, kind) {
  const made = document.createElement("p");
  made.className = kind;
  made.textContent = text;
  return made;
}

export function actions(node, ...parts) {
  node.querySelector(".actions").replaceChildren(...parts);
}

export function fill(field, text) {
  field.value = text;
  field.focus();
}

export async function busy(control, work) {
  control.disabled = true;
  quiet();
  try {
    await work();
  } finally {
    control.disabled = false;
  }
}

export function submits(form, work) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(form.querySelector("[type=submit]"), work).catch(shout);
  });
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
