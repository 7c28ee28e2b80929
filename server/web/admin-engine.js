// The engine, live: what it does as plots over the last minutes, what it holds as figures.

import * as api from "./admin-api.js";
import { $, element, status } from "./parts.js";
import { plot, short } from "./plots.js";

export const ENGINE_S = 2;
const POINTS = 60; // of a live plot
const LIVE = [
  ["Tokens a second", (now) => now.tokens_per_s],
  ["Answers being written", (now) => now.decoding],
  ["Waiting: answers and lessons", (now) => now.waiting + now.adapts_waiting],
  ["Lessons a second", (now, before) => growth(now, before, "adapts_finished")],
];
const FIGURES = [
  ["adapters on the device", (now) => `${now.slots_resident} of ${now.slots}`],
  ["adapters in the host's memory", (now) => now.host_adapters],
  ["rows of the batch", (now) => `${now.decoding} of ${now.rows}`],
  ["keys and values", (now) => megabytes(now.kv_bytes)],
  ["prompts found in the cache", (now) => share(now.prefix_cache_hit_tokens, now.prefix_cache_miss_tokens)],
  ["prefix cache", (now) => `${short(now.prefix_cache_bytes / 2 ** 20)} of ${megabytes(now.prefix_cache_limit_bytes)}`],
  ["answers", (now) => short(now.requests_finished)],
  ["lessons", (now) => short(now.adapts_finished)],
  ["failed", (now) => now.requests_failed + now.adapts_failed],
];
const series = LIVE.map(() => []);
let before = null;

const megabytes = (bytes) => `${short(bytes / 2 ** 20)} MB`;
const growth = (now, then, name) =>
  then ? Math.max(0, (1000 * (now[name] - then[name])) / (now.at - then.at)) : 0;
const share = (hits, misses) => (hits + misses ? `${short((100 * hits) / (hits + misses))}%` : "–");

export async function readEngine() {
  const now = { ...(await api.readEngine()), at: Date.now() };
  const gate = now.encoder ? ` · ${now.encoder} at its gate` : "";
  status(`${now.model} · rank ${now.rank} · ${now.steps} steps · scope ${now.scope}${gate}`, "on");
  LIVE.forEach(([, value], index) => {
    series[index].push(value(now, before));
    if (series[index].length > POINTS) series[index].shift();
  });
  before = now;
  $("plots").replaceChildren(
    ...LIVE.map(([label], index) => {
      const points = series[index];
      return plot(label, points, [`${ENGINE_S * (points.length - 1)} s ago`, "now"], short(points.at(-1)));
    }),
  );
  $("figures").replaceChildren(
    ...FIGURES.map(([label, value]) => {
      const group = document.createElement("div");
      group.append(element("dt", label), element("dd", value(now)));
      return group;
    }),
  );
}
