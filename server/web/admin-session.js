// One session as an operator sees it: versions, what it was told, its log, and what to do about it.

import * as api from "./admin-api.js";
import { offerInfluence } from "./admin-influence.js";
import { showNorms } from "./admin-norms.js";
import { $, busy, button, element, paragraph, quiet, said, submits, sure, tableRow, time } from "./parts.js";
import { plot, short } from "./plots.js";

const STANDING = { applied: "good", refused: "bad" };
const BIG = 1; // nats: a token that session and base see so differently is marked
let shown = null;
let drawn = ""; // what is on the page already, so that reading it again disturbs nobody

export async function openDetail(session) {
  const other = !shown || shown.tenant !== session.tenant || shown.session_id !== session.session_id;
  shown = session;
  if (other) {
    drawn = "";
    $("compared").replaceChildren();
    $("legend").hidden = true;
  }
  await refreshDetail();
  if (!other || shown !== session) return;
  $("detail-title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

export function closeDetail() {
  shown = null;
}

export async function refreshDetail() {
  if (!shown) return;
  const asked = shown;
  let detail;
  try {
    detail = await api.readDetail(asked);
  } catch (error) {
    // Somebody deleted it, or typed a name that there cannot be.
    if (asked === shown && (error.status === 404 || error.status === 422)) location.hash = "";
    throw error;
  }
  if (asked !== shown) return;
  $("detail").hidden = false;
  const text = JSON.stringify(detail);
  if (text !== drawn) {
    draw(detail);
    drawn = text;
  }
  await showNorms(detail);
}

function draw(detail) {
  $("detail-title").textContent = detail.session_id;
  const marks = [
    detail.adapter_version ? [`version ${detail.adapter_version}`, "good"] : ["untaught", ""],
    detail.pinned && ["pinned", ""],
    detail.imported && ["imported", ""],
  ];
  $("marks").replaceChildren(
    ...marks.filter(Boolean).map(([text, kind]) => element("span", text, `badge ${kind}`)),
  );
  $("facts").replaceChildren(
    `tenant ${detail.tenant} · ${detail.applied_items} of ${detail.items} items applied, ${detail.pending_items} waiting`,
    " · created ", time(detail.created_at), " · last used ", time(detail.used_at),
  );
  $("deeds").replaceChildren(...deeds(detail));
  $("versions").tBodies[0].replaceChildren(
    ...[...detail.versions].reverse().map((one) => versionRow(detail, one)),
  );
  $("no-versions").hidden = detail.versions.length > 0;
  $("curves").replaceChildren(...curves(detail));
  $("feedback").replaceChildren(...[...detail.feedback].reverse().map((item) => feedbackRow(detail, item)));
  offerInfluence(detail);
  $("feedback").hidden = !detail.feedback.length;
  $("no-feedback").hidden = detail.feedback.length > 0;
  $("log").replaceChildren(...detail.log.map(logRow));
}

function curves(detail) {
  const drawn = [];
  const { versions } = detail;
  const active = versions.find((one) => one.adapter_version === detail.adapter_version);
  if (active) {
    const steps = ["first step", `step ${active.step_losses.length}`];
    const of = `version ${active.adapter_version}`;
    drawn.push(plot(`Inner loss at each step of ${of}, nats`, active.step_losses, steps));
    drawn.push(plot(`Gradient norm at each step of ${of}`, active.gradient_norms, steps));
  }
  if (versions.length > 1) {
    const losses = versions.map((one) => one.loss_after);
    const ends = [versions[0], versions.at(-1)].map((one) => `version ${one.adapter_version}`);
    drawn.push(plot("Loss on the feedback after each version, nats", losses, ends));
  }
  return drawn;
}

function deeds(detail) {
  const acts = [];
  if (detail.adapter_version) {
    acts.push(button("Export for PEFT", () => save(detail, detail.adapter_version)));
  }
  acts.push(button(detail.pinned ? "Unpin" : "Pin", act(() => api.pin(detail, !detail.pinned))));
  const reset = () => api.reset(detail);
  const lost = `Make ${detail.session_id} untaught? Its feedback is refused; kept versions can be gone back to.`;
  acts.push(button("Reset…", act(reset, lost, "Reset")));
  const remove = async () => {
    await api.deleteSession(detail);
    closeDetail();
    location.hash = "";
  };
  const gone = `Delete ${detail.session_id} with everything it learned? This cannot be undone.`;
  acts.push(button("Delete…", act(remove, gone, "Delete"), "danger"));
  return acts;
}

// What a button does: asks where that is wanted, does it, and shows what came of it.
function act(work, question, deed) {
  return async () => {
    if (question && !(await sure(question, deed))) return;
    await busy([...$("deeds").querySelectorAll("button")], work);
    await refreshDetail();
    // What was pressed is often gone with what it did.
    if (document.activeElement === document.body) $("detail-title").focus({ preventScroll: true });
  };
}

async function save(session, version) {
  const { name, content } = await api.exported(session, version);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function versionRow(detail, version) {
  const number = version.adapter_version;
  const current = number === detail.adapter_version;
  const back = button("Go back", act(() => api.rollback(detail, number)), "link");
  back.setAttribute("aria-label", `Go back to version ${number}`);
  const stored = version.snapshot_bytes ? `${short(version.snapshot_bytes / 1e6)} MB` : "derived when used";
  const made = tableRow([
    String(number), time(version.created_at), version.items.join(", "), String(version.steps),
    short(version.loss_before), short(version.loss_after), short(version.update_norm), stored,
    current ? element("span", "in force", "badge good") : back,
  ]);
  made.cells[2].className = "words";
  if (current) made.className = "current";
  return made;
}

function feedbackRow(detail, item) {
  const made = document.createElement("li");
  made.dataset.item = item.id;
  const counts = item.status === "applied" || item.status === "pending";
  const about = [`item ${item.id}`, item.kind];
  if (item.superseded_by) about.push(`by item ${item.superseded_by}`);
  if (item.reason && item.status === "refused") about.push(item.reason);
  if (item.adapter_version) about.push(`since version ${item.adapter_version}`);
  const head = element("div", undefined, "about");
  const mark = element("span", item.status, `badge ${STANDING[item.status] ?? ""}`);
  head.append(mark, element("span", about.join(" · ")), time(item.created_at));
  made.append(head);
  if (item.status === "forgotten") return made;
  const asked = item.messages?.at(-1)?.content ?? "";
  made.append(paragraph(asked, "question"), paragraph(said(item), counts ? "" : "off"));
  if (item.rejected) made.append(paragraph(item.rejected, "off"));
  if (item.comment) made.append(paragraph(`“${item.comment}”`, "hint"));
  const remove = button("Forget", act(() => api.forget(detail, item.id)), "quiet");
  remove.setAttribute("aria-label", `Forget item ${item.id}`);
  made.append(remove);
  return made;
}

function logRow(line) {
  const made = document.createElement("li");
  const fields = Object.entries(line.fields).filter(([, value]) => value !== "");
  const words = fields.map(([name, value]) => `${name} ${value}`).join(", ");
  made.append(time(line.at), element("span", `${line.type}${words ? `: ${words}` : ""}`));
  return made;
}

// --- Comparing ------------------------------------------------------------------------------------

submits($("compare"), async () => {
  const asked = shown;
  if (!asked) return;
  quiet();
  const found = await api.compare(asked, $("prompt").value);
  if (asked !== shown) return;
  const by = found.adapter_used ? versions(found) : "This session leaves it to the base";
  $("compared").replaceChildren(side("Untaught", found.base), side(by, found.session));
  $("legend").hidden = false;
});

function versions({ adapter_version: own, house_version: house }) {
  if (!house) return `Version ${own}`;
  return own ? `Version ${own}, house version ${house}` : `House version ${house}`;
}

function side(title, answer) {
  const made = document.createElement("section");
  const head = element("h4", title);
  const text = document.createElement("p");
  text.className = "answer";
  for (const [index, token] of answer.tokens.entries()) {
    const part = document.createElement("span");
    const more = token.session_logprob - token.base_logprob;
    part.className = more > BIG ? "token up" : more < -BIG ? "token down" : "token";
    if (index === answer.tokens.length - 1) part.classList.add("end"); // the end token
    part.title = `base ${short(token.base_logprob)}, session ${short(token.session_logprob)} nats`;
    part.textContent = token.token;
    text.append(part);
  }
  if (!answer.tokens.length) text.textContent = answer.text || "(an empty answer)";
  made.append(head, text);
  return made;
}
