// What operators did, newest first, a page at a time.

import * as api from "./admin-api.js";
import { $, element, shout, tableRow, time } from "./parts.js";

const PAGE = 50;
let offset = 0;
let drawn = "";

export async function readAudit() {
  const found = await api.listAudit({ offset, limit: PAGE });
  const text = JSON.stringify(found);
  if (text === drawn) return;
  drawn = text;
  $("audited").tBodies[0].replaceChildren(...found.entries.map(row));
  $("no-audit").hidden = found.total > 0;
  const last = Math.min(offset + PAGE, found.total);
  $("audit-place").textContent = found.total ? `${offset + 1} to ${last} of ${found.total}` : "";
  $("audit-back").disabled = offset === 0;
  $("audit-next").disabled = last >= found.total;
}

function row(entry) {
  const failed = entry.outcome !== "begun";
  const fields = Object.entries(entry.fields).filter(([, value]) => value !== "");
  const words = fields.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
  const made = tableRow([
    time(entry.at), element("span", entry.who, "mono"), entry.action,
    element("span", entry.session_id ?? "–", "mono"), entry.tenant, words || "–",
    failed ? element("span", entry.outcome, "badge bad") : entry.outcome,
  ]);
  made.cells[5].className = "words";
  return made;
}

function turn(pages) {
  offset = Math.max(0, offset + pages * PAGE);
  return readAudit();
}

$("audit-back").addEventListener("click", () => turn(-1).catch(shout));
$("audit-next").addEventListener("click", () => turn(1).catch(shout));
