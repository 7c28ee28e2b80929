// Where in the model a version changed something: a cell for each module, layers below each other.

import * as api from "./admin-api.js";
import { $, shout } from "./parts.js";
import { heat, short } from "./plots.js";

let shown = null; // the session
let asked = ""; // what is read or on the page, so that the same is not read again

/** Show the norms of the version in force, or of the one that was picked. */
export async function showNorms(detail) {
  const versions = detail.versions.map((one) => one.adapter_version);
  const same = shown && shown.tenant === detail.tenant && shown.session_id === detail.session_id;
  const picked = same ? Number($("norms-of").value) : 0;
  const moved = same && shown.adapter_version !== detail.adapter_version;
  shown = detail;
  $("norms").hidden = !versions.length;
  if (!versions.length) return;
  const options = versions.reverse().map((number) => new Option(String(number), String(number)));
  $("norms-of").replaceChildren(...options);
  const wanted = moved || !versions.includes(picked) ? detail.adapter_version : picked;
  $("norms-of").value = String(versions.includes(wanted) ? wanted : versions[0]);
  await read();
}

async function read() {
  const [session, version] = [shown, Number($("norms-of").value)];
  const name = JSON.stringify([session.tenant, session.session_id, session.created_at, version]);
  if (name === asked) return;
  asked = name;
  $("norms-sum").textContent = "Reading the adapter…";
  $("heat").replaceChildren();
  try {
    const found = await api.readNorms(session, version);
    if (name === asked) draw(found);
  } catch (error) {
    if (name !== asked) return;
    asked = "";
    $("norms-sum").textContent = "";
    throw error;
  }
}

function draw(found) {
  const rows = new Map(); // what stands before a module's last name -> last name -> norm
  for (const { module, norm } of found.modules) {
    const at = module.lastIndexOf(".");
    const layer = /\.(\d+)\./.exec(module)?.[1] ?? module.slice(0, Math.max(at, 0));
    if (!rows.has(layer)) rows.set(layer, new Map());
    rows.get(layer).set(module.slice(at + 1), norm);
  }
  const columns = [...new Set([...rows.values()].flatMap((row) => [...row.keys()]))];
  const lines = [...rows].map(([layer, row]) => [layer, columns.map((column) => row.get(column) ?? null)]);
  heat($("heat"), "Layer", columns, lines);
  $("norms-sum").textContent =
    `Frobenius norms of what version ${found.adapter_version} adds to each weight; ${short(found.norm)} in all.`;
}

$("norms-of").addEventListener("change", () => read().catch(shout));
