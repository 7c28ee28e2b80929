// How much of the version in force is due to each item: on request, because each takes a derivation.

import * as api from "./admin-api.js";
import { $, busy, element, shout } from "./parts.js";

let shown = null; // the session

/** The session whose feedback is on the page; what was worked out before is gone with its rows. */
export function offerInfluence(detail) {
  shown = detail;
  $("weigh").hidden = !detail.adapter_version || detail.imported;
  $("weighed").textContent = "";
}

async function weigh() {
  const asked = shown;
  $("weighed").textContent = "Deriving without each item…";
  let told = "";
  try {
    const { items, adapter_version: version } = await api.readInfluence(asked, asked.adapter_version);
    if (asked !== shown) return;
    for (const row of $("feedback").children) mark(row, items);
    told = `How far version ${version} would be from where it is without an item, in parts of its way from the start.`;
  } finally {
    if (asked === shown) $("weighed").textContent = told;
  }
}

function mark(row, items) {
  row.querySelector(".weight")?.remove();
  const known = items.find(({ item }) => item === Number(row.dataset.item));
  if (!known) return;
  const made = element("label", undefined, "weight");
  if (known.share === null) {
    made.append("nothing can be learned without it");
  } else {
    const bar = document.createElement("meter");
    bar.value = known.share;
    made.append(bar, ` ${Math.round(100 * known.share)}%`);
  }
  row.querySelector(".about").after(made);
}

$("weigh").addEventListener("click", () => busy([$("weigh")], weigh).catch(shout));
