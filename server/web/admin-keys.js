// Keys: who has one, make one (it is shown once), revoke one.

import * as api from "./admin-api.js";
import { CallFailed } from "./api.js";
import { $, button, busy, element, shout, submits, sure, tableRow, time } from "./parts.js";

const PAGE = 50;
let offset = 0;
let drawn = "";

export async function readKeys() {
  const found = await api.listKeys({ offset, limit: PAGE });
  if (offset && !found.keys.length) {
    offset = Math.max(0, offset - PAGE);
    return readKeys();
  }
  const open = !api.hasKey();
  $("open").hidden = !open;
  $("key-role").value = open ? "operator" : $("key-role").value;
  $("key-role").disabled = open;
  needed();
  const text = JSON.stringify([found, Math.floor(Date.now() / 60_000)]);
  if (text === drawn) return;
  drawn = text;
  $("key-list").tBodies[0].replaceChildren(...found.keys.map(row));
  $("no-keys").hidden = found.total > 0;
  const last = Math.min(offset + PAGE, found.total);
  $("keys-place").textContent = found.total ? `${offset + 1} to ${last} of ${found.total}` : "";
  $("keys-back").disabled = offset === 0;
  $("keys-next").disabled = last >= found.total;
}

function row(key) {
  const name = key.name || "(no name)";
  const expired = key.expires_at !== null && key.expires_at * 1000 < Date.now();
  const revoke = button("Revoke", () => remove(key, name, revoke), "link");
  revoke.setAttribute("aria-label", `Revoke the key ${key.id}: ${name}`);
  const ends = key.expires_at === null ? "never" : time(key.expires_at);
  const role = element("span", key.role, key.role === "operator" ? "badge" : "");
  const made = tableRow([
    name, key.tenant, role, element("span", `il_${key.id}_…${key.last4}`, "mono"), time(key.created_at),
    expired ? element("span", "expired", "badge bad") : ends, revoke,
  ]);
  made.cells[0].className = "words";
  if (expired) made.className = "gone";
  return made;
}

async function remove(key, name, control) {
  const question =
    `Revoke the key of “${name}” (${key.role}, ends in ${key.last4})? Whoever uses it is shut out at once, ` +
    "and so are the session tokens that were made with it.";
  if (!(await sure(question, "Revoke"))) return;
  await busy([control], () => api.revokeKey(key.id));
  await readKeys();
  $("keys-title").focus();
}

// A client's key needs a tenant; an operator's acts for any.
function needed() {
  $("key-tenant").required = $("key-role").value === "client";
  $("key-tenant").placeholder = $("key-tenant").required ? "whose sessions it opens" : "left out: default";
}

submits($("make-key"), async () => {
  const body = { role: $("key-role").value, name: $("key-name").value.trim() };
  if ($("key-tenant").value) body.tenant = $("key-tenant").value;
  if ($("key-lifetime").value) body.expires_in_s = Number($("key-lifetime").value);
  const made = await api.makeKey(body);
  // From the first key on the server asks for one, this page included.
  if (!api.hasKey()) api.useKey(made.key);
  $("made-key").value = made.key;
  $("made").hidden = false;
  $("make-key").reset();
  await readKeys();
  $("made-key").focus();
  $("made-key").select();
});

function forgetMade() {
  $("made-key").value = "";
  $("made").hidden = true;
}

/** A key that was shown is not shown again to who comes back. */
export function leaveKeys() {
  if (!$("made").hidden) forgetMade();
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("made-key").value);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 2000);
  } catch {
    $("made-key").focus();
    $("made-key").select();
    throw new CallFailed("This browser keeps its clipboard shut here: the key is selected, copy it from the keyboard.");
  }
}

function turn(pages) {
  offset = Math.max(0, offset + pages * PAGE);
  return readKeys();
}

$("key-role").addEventListener("change", needed);
$("copy").addEventListener("click", () => copy().catch(shout));
$("made-done").addEventListener("click", () => (forgetMade(), $("keys-title").focus()));
$("keys-back").addEventListener("click", () => turn(-1).catch(shout));
$("keys-next").addEventListener("click", () => turn(1).catch(shout));
