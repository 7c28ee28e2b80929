// The playground: a chat whose answers can be corrected, beside what its session has learned.

import * as api from "./api.js";
import { ask, dropChat, onTaught, showChat } from "./chat.js";
import { refresh } from "./learned.js";
import { $, button, fill, quiet, shout, status, submits, sure } from "./parts.js";
import * as tabs from "./tabs.js";

const IDEAS = ["Can I return the jug?", "Do you ship abroad?", "When are you open?"];
const AGAIN_MS = 2000;

let current;
let only = null; // the one session that a token opens

async function enter(id) {
  current = id;
  tabs.show(current, enter);
  showChat(current);
  await refresh(current);
}

onTaught(async (session) => {
  if (session === current) await refresh();
});

submits($("ask"), async () => {
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  await ask(question);
  $("question").focus();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("ideas").append(...IDEAS.map((idea) => button(idea, () => fill($("question"), idea))));

$("new-session").addEventListener("click", () => {
  const id = tabs.newId();
  tabs.add(id);
  enter(id).then(() => $("question").focus()).catch(shout);
});

$("delete-session").addEventListener("click", async () => {
  const id = current;
  try {
    if (!(await sure("Delete this session with everything it learned? This cannot be undone.", "Delete"))) return;
    await api.deleteSession(id).catch((error) => {
      if (error.status !== 404) throw error; // it was never used
    });
    if (only !== null) throw new api.CallFailed("This session is deleted, and its token with it.");
    dropChat(id);
    await enter(tabs.remove(id));
  } catch (error) {
    shout(error);
  }
});

// Another tab made or deleted a session; what it taught shows when this one is looked at again.
addEventListener("storage", (event) => {
  if (!tabs.isStore(event.key)) return;
  const ids = tabs.reload();
  if (ids.includes(current)) tabs.show(current, enter);
  else enter(ids[0]).catch(shout);
});
addEventListener("focus", () => current && refresh().catch(shout));

// A new link, opened in the same tab.
addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());

// A server that is away, starting or stopping is asked again until it answers: nobody has to load the page anew.
async function connect() {
  for (let failed = false; ; failed = true) {
    try {
      const model = await api.readModel();
      status(`${model}, learning while it answers`, "on");
      if (failed) {
        quiet();
        await refresh();
      }
      return;
    } catch (error) {
      status("the server does not answer yet", "off");
      if (!failed) shout(error);
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}

let connecting = null;
api.onGone(() => (connecting ??= connect().finally(() => (connecting = null))));

async function start() {
  only = api.takeToken();
  $("new-session").hidden = only !== null;
  const [first] = tabs.load(only);
  connecting = connect().finally(() => (connecting = null));
  await enter(first);
}
start().catch(shout);
