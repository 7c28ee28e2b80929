// The sessions of the playground: their ids are kept in this browser, one tab of the page each.

import { $, button } from "./parts.js";

const STORE = "innerloop.sessions";

let ids = [];
let only = null; // the one session that a token opens

export const isStore = (key) => key === STORE;

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(5));
  return "web-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function stored() {
  if (only !== null) return [only];
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(kept) ? kept.filter((id) => /^[\w.:@-]{1,128}$/.test(id)) : [];
  } catch {
    return [];
  }
}

function keep() {
  try {
    if (only === null) localStorage.setItem(STORE, JSON.stringify(ids));
  } catch {
    // A browser that keeps nothing: the sessions last as long as the page.
  }
}

/** Read what this browser knows; `token` is the one session that may be opened, or null. */
export function load(token) {
  only = token;
  ids = stored();
  if (!ids.length) ids.push(newId());
  return ids;
}

/** Read again after another tab wrote. */
export const reload = () => load(only);

export function add(id) {
  ids = [...stored(), id]; // another tab may have made some meanwhile
}

export function remove(id) {
  ids = stored().filter((other) => other !== id);
  if (!ids.length) ids.push(newId());
  return ids[0];
}

export function show(current, enter) {
  keep();
  $("sessions").replaceChildren(
    ...ids.map((id, index) => {
      const item = document.createElement("li");
      const tab = button(`Session ${index + 1}`, () => enter(id));
      tab.title = id;
      if (id === current) tab.setAttribute("aria-current", "true");
      item.append(tab);
      return item;
    }),
  );
}
