// The operators' page: which of its views is in front, who may see them, and when they are read again.

import * as api from "./admin-api.js";
import { readAudit } from "./admin-audit.js";
import { ENGINE_S, readEngine } from "./admin-engine.js";
import { leaveKeys, readKeys } from "./admin-keys.js";
import { readSessions } from "./admin-list.js";
import { closeDetail, openDetail, refreshDetail } from "./admin-session.js";
import { CallFailed } from "./api.js";
import { $, quiet, shout, status, submits } from "./parts.js";

const LISTS_S = 6;
const VIEWS = ["overview", "detail", "keys", "audit"];
let view = null;

/** The view that the address names: `#keys`, `#audit`, `#tenant/session`, or the overview. */
function named() {
  const name = location.hash.slice(1);
  if (name === "keys" || name === "audit") return [name];
  const parts = name.split("/");
  if (parts.length !== 2) return ["overview"];
  try {
    const [tenant, session_id] = parts.map(decodeURIComponent);
    return ["detail", { tenant, session_id }];
  } catch {
    return ["overview"]; // somebody typed it
  }
}

async function follow() {
  const [name, session] = named();
  const other = name !== view;
  view = name;
  if (name !== "keys") leaveKeys();
  if (name !== "detail") closeDetail();
  for (const link of $("views").children) {
    const own = link.hash || "#";
    const here = own === `#${name}` || (own === "#" && (name === "overview" || name === "detail"));
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  for (const one of VIEWS) $(one).hidden = one !== name || name === "detail"; // that shows itself when it is read
  if (name === "detail") await openDetail(session);
  else await read();
  if (other && (name === "keys" || name === "audit")) $(`${name}-title`).focus();
}

const READERS = { overview: readSessions, detail: refreshDetail, keys: readKeys, audit: readAudit };
const read = () => READERS[view]();

// A server that is away is told once, and asked again: nobody has to load the page anew.
function repeatedly(work, seconds) {
  let failed = false;
  setInterval(async () => {
    if (document.hidden || $("page").hidden) return;
    try {
      await work();
      if (failed) quiet();
      failed = false;
    } catch (error) {
      if (!failed) await refused(error);
      failed = true;
    }
  }, seconds * 1000);
}

// A key that was revoked or has expired is asked for again, over a page that shows nothing any more.
async function refused(error) {
  if (error.status !== 401 && error.status !== 403) {
    if (!error.status) status("the server does not answer", "off");
    shout(error);
    return;
  }
  const had = api.hasKey();
  api.useKey("");
  leaveKeys();
  $("page").hidden = $("views").hidden = $("waiting").hidden = true;
  $("unlock").hidden = false;
  status("locked", "");
  $("key").value = "";
  $("key").focus();
  if (had) shout(new CallFailed("This is not an operator's key of this server, or not any more."));
}

async function start() {
  try {
    await readEngine();
  } catch (error) {
    if (error.status === 401 || error.status === 403) return refused(error);
    status("the server does not answer yet", "off");
    shout(error);
    setTimeout(() => start().catch(shout), ENGINE_S * 1000);
    return;
  }
  quiet();
  $("unlock").hidden = $("waiting").hidden = true;
  $("page").hidden = $("views").hidden = false;
  await follow();
}

submits($("unlock"), async () => {
  api.useKey($("key").value.trim());
  await start();
});
addEventListener("hashchange", () => $("page").hidden || follow().catch(shout));
repeatedly(readEngine, ENGINE_S);
repeatedly(read, LISTS_S);
start().catch(shout);
