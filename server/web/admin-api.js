// What the operators' page asks the server. The key stays in this page's memory and nowhere else.

import { call, send } from "./api.js";

let key = "";
export const useKey = (text) => (key = text);
export const hasKey = () => key !== "";

function headers(tenant) {
  const found = {};
  if (key) found.authorization = `Bearer ${key}`;
  if (tenant) found["x-tenant"] = tenant;
  return found;
}

const at = ({ session_id: id }) => `/admin/sessions/${encodeURIComponent(id)}`;
const own = ({ session_id: id }) => `/sessions/${encodeURIComponent(id)}`;
const ask = (method, path, tenant, body) => call(method, path, body, headers(tenant));

export const readEngine = () => ask("GET", "/admin/engine");
export const listSessions = (query) => ask("GET", `/admin/sessions?${new URLSearchParams(query)}`);
export const readDetail = (session) => ask("GET", at(session), session.tenant);
export const readNorms = (session, version) =>
  ask("GET", `${at(session)}/versions/${version}/norms`, session.tenant);
export const readInfluence = (session, version) =>
  ask("GET", `${at(session)}/versions/${version}/influence`, session.tenant);
export const listKeys = (query) => ask("GET", `/admin/keys?${new URLSearchParams(query)}`);
export const makeKey = (body) => ask("POST", "/admin/keys", undefined, body);
export const revokeKey = (id) => ask("DELETE", `/admin/keys/${encodeURIComponent(id)}`);
export const listAudit = (query) => ask("GET", `/admin/audit?${new URLSearchParams(query)}`);
export const rollback = (session, version) =>
  ask("POST", `${at(session)}/rollback`, session.tenant, { adapter_version: version });
export const reset = (session) => ask("POST", `${at(session)}/reset`, session.tenant);
export const pin = (session, pinned) => ask("POST", `${at(session)}/pin`, session.tenant, { pinned });
export const compare = (session, prompt) =>
  ask("POST", `${at(session)}/compare`, session.tenant, { prompt });
export const forget = (session, item) =>
  ask("DELETE", `${own(session)}/feedback/${item}`, session.tenant);
export const deleteSession = (session) => ask("DELETE", own(session), session.tenant);

/** The adapter of a version as a zip, under the name that the server gives it. */
export async function exported(session, version) {
  const path = `${at(session)}/export?adapter_version=${version}`;
  const response = await send("GET", path, undefined, headers(session.tenant));
  const name = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "");
  return { name: name?.[1] ?? "adapter.zip", content: await response.blob() };
}
