// The server's HTTP contract as the pages use it: JSON calls, and answers as they are written.

/** A call that did not go through; `message` is fit to be shown. */
export class CallFailed extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const GONE = "The server does not answer. Nothing that was learned is lost: try again in a moment.";
const TOKEN = "innerloop.token";
const NO_TOKEN =
  "This server asks for an API key, which a page must not hold. Open this page with a session token " +
  "behind it, as in /#token=ilt_…: whoever has a key makes one with POST /sessions/{id}/tokens.";
const NO_MORE =
  "This page's session token has expired, or was revoked. Nothing that was learned is lost: ask whoever " +
  "gave you the link for a new one, and open that.";

let token = null;
let gone = () => {}; // told whenever the server does not answer

export function onGone(work) {
  gone = work;
}

function away() {
  gone();
  return new CallFailed(GONE);
}

/** The session that a token out of the page's address opens, or null; the token stays in this tab. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  // Out of the address bar and the history, before anybody copies or photographs it.
  if (given) history.replaceState(null, "", location.pathname + location.search);
  const found = given ?? kept();
  if (found === null) return null;
  const session = sessionOf(found);
  token = found;
  if (given) keep(given);
  return session;
}

function keep(text) {
  try {
    sessionStorage.setItem(TOKEN, text);
  } catch {
    // A browser that keeps nothing: the token lasts as long as the page.
  }
}

function kept() {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null;
  }
}

/** A token names tenant, session and maker, for people and pages; the server believes its secret. */
function sessionOf(text) {
  try {
    const [, named] = /^ilt_([\w-]+)\.[\w-]{43}$/.exec(text);
    const [, session] = atob(named.replace(/-/g, "+").replace(/_/g, "/")).split("/");
    return decodeURIComponent(session);
  } catch {
    throw new CallFailed("This link's token is cut or mistyped: open the whole link again.");
  }
}

export async function send(method, path, body, headers = {}) {
  const shown = token === null ? {} : { authorization: `Bearer ${token}` };
  const init = { method, headers: { accept: "application/json", ...shown, ...headers } };
  if (body !== undefined) {
    init.headers["content-type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch {
    throw away();
  }
  if (response.ok) return response;
  if (response.status === 401) throw new CallFailed(token === null ? NO_TOKEN : NO_MORE, 401);
  const problem = await response.json().catch(() => ({}));
  throw new CallFailed(problem.detail ?? `The server answered ${response.status}.`, response.status);
}

export async function call(method, path, body, headers) {
  const response = await send(method, path, body, headers);
  return response.status === 204 ? null : response.json();
}

const session = (id) => `/sessions/${encodeURIComponent(id)}`;

/** The model's name, once the server is ready; tells nobody that it is away. */
export async function readModel() {
  const response = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
  const found = await response?.json().catch(() => null);
  if (response?.ok && found) return found.model;
  throw new CallFailed(found?.detail ?? GONE, response?.status);
}
export const teach = (id, examples) => call("POST", "/adapt", { session_id: id, examples });
export const correct = (completion, correction) =>
  call("POST", "/feedback", { completion_id: completion, correction });
export const rate = (completion, rating) =>
  call("POST", "/feedback", { completion_id: completion, rating });
export const forget = (id, item) => call("DELETE", `${session(id)}/feedback/${item}`);
export const deleteSession = (id) => call("DELETE", session(id));

/** Where a session stands and what it was taught, newest first; null while it is not there yet. */
export async function readSession(id) {
  try {
    const known = await call("GET", session(id));
    const page = 1000;
    const offset = Math.max(0, known.items - page);
    const found = await call("GET", `${session(id)}/feedback?offset=${offset}&limit=${page}`);
    return { ...known, feedback: found.items.reverse() };
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Ask; `onText` gets the text so far, each time there is more. Resolves to the whole answer. */
export async function generate(body, onText) {
  const response = await send("POST", "/generate", { ...body, stream: true });
  let text = "";
  for await (const { name, data } of events(response)) {
    if (name === "delta") onText((text += data.text));
    else if (name === "done") return data;
    else if (name === "error") throw new CallFailed(data.detail ?? "The answer broke off.");
  }
  throw new CallFailed("The answer broke off before it was finished: try again.");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch {
      throw away();
    }
    if (piece.done) return;
    const blocks = (rest + piece.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(
        block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]),
      );
      if (fields.data) yield { name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
