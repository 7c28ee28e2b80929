// The list of sessions: by part of their id, tenant and state, sorted, a page at a time.

import * as api from "./admin-api.js";
import { $, button, element, shout, tableRow, time } from "./parts.js";

const PAGE = 20;
const COLUMNS = [
  ["session_id", "Session"], [null, "Tenant"], ["adapter_version", "Version"], ["items", "Items"],
  [null, "Waiting"], ["created_at", "Created"], ["updated_at", "Changed"],
];

let offset = 0;
let sort = "updated_at";
let order = "desc";
let asked = 0; // a reply that another question has overtaken is dropped

export async function readSessions() {
  const number = ++asked;
  const query = { sort, order, offset, limit: PAGE, contains: $("contains").value };
  if ($("tenant").value) query.tenant = $("tenant").value;
  if ($("taught").value) query.taught = $("taught").value;
  const found = await api.listSessions(query);
  if (number !== asked) return;
  if (offset && !found.sessions.length) {
    offset = Math.max(0, offset - PAGE);
    return readSessions();
  }
  const rows = found.sessions.map(row);
  const focused = document.activeElement?.dataset?.session;
  $("sessions").tBodies[0].replaceChildren(...rows);
  if (focused) document.querySelector(`[data-session="${CSS.escape(focused)}"]`)?.focus();
  const filtered = query.contains || query.tenant || query.taught;
  $("none").textContent = filtered ? "No session fits: change what is looked for." : "No session yet: the first question or lesson makes one.";
  $("none").hidden = found.total > 0;
  const last = Math.min(offset + PAGE, found.total);
  $("place").textContent = found.total ? `${offset + 1} to ${last} of ${found.total}` : "";
  $("back").disabled = offset === 0;
  $("next").disabled = last >= found.total;
}

function row(session) {
  const open = button(session.session_id, () => (location.hash = place(session)), "link mono");
  open.dataset.session = place(session);
  const version = session.adapter_version
    ? element("span", `version ${session.adapter_version}`, "badge good")
    : element("span", "untaught", "badge");
  const state = element("span", undefined, "actions");
  state.append(version);
  if (session.pinned) state.append(element("span", "pinned", "badge"));
  return tableRow([
    open, session.tenant, state, session.items, session.pending_items,
    time(session.created_at), time(session.updated_at),
  ]);
}

const place = (session) =>
  `#${encodeURIComponent(session.tenant)}/${encodeURIComponent(session.session_id)}`;

function heads() {
  $("sessions").tHead.rows[0].replaceChildren(
    ...COLUMNS.map(([name, title]) => {
      const head = document.createElement("th");
      head.scope = "col";
      if (!name) {
        head.textContent = title;
        return head;
      }
      const arrow = name === sort ? (order === "desc" ? " ↓" : " ↑") : "";
      head.setAttribute("aria-sort", name !== sort ? "none" : order === "desc" ? "descending" : "ascending");
      const by = button(title + arrow, () => {
        order = name === sort && order === "desc" ? "asc" : "desc";
        sort = name;
        heads();
        $("sessions").tHead.querySelector(`[data-sort="${name}"]`).focus();
        return restart();
      });
      by.dataset.sort = name;
      head.append(by);
      return head;
    }),
  );
}

function restart() {
  offset = 0;
  return readSessions();
}

function turn(pages) {
  offset = Math.max(0, offset + pages * PAGE);
  return readSessions();
}

heads();
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").addEventListener("input", () => restart().catch(shout));
$("back").addEventListener("click", () => turn(-1).catch(shout));
$("next").addEventListener("click", () => turn(1).catch(shout));
