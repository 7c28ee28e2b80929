// The server's HTTP contract as the pages use it: JSON calls, and answers as they are written.

/** A call that did not go through; `message` is fit to be shown. */
export class CallFailed extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const GONE = "The server does not answer. Nothing that was learned is lost: try again in a moment.";
const KEYS =
  "This server asks for an API key, which a page must not hold. Start one without keys on your " +
  "own machine to use the playground.";

async function send(method, path, body) {
  const init = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    init.headers["content-type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch {
    throw new CallFailed(GONE);
  }
  if (response.ok) return response;
  if (response.status === 401) throw new CallFailed(KEYS, 401);
  const problem = await response.json().catch(() => ({}));
  throw new CallFailed(problem.detail ?? `The server answered ${response.status}.`, response.status);
}

async function call(method, path, body) {
  const response = await send(method, path, body);
  return response.status === 204 ? null : response.json();
}

const session = (id) => `/sessions/${encodeURIComponent(id)}`;

export const readModel = async () => (await call("GET", "/readyz")).model;
export const teach = (id, examples) => call("POST", "/adapt", { session_id: id, examples });
export const correct = (completion, correction) =>
  call("POST", "/feedback", { completion_id: completion, correction });
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
      throw new CallFailed(GONE);
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
