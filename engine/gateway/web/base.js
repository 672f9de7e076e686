// What all views stand on: elements, asking the gateway, and going to another view.
// Text of the application reaches the page as text nodes only (see `h`), so nothing in an event can become markup.
const main = document.getElementById("main");
const ask = document.getElementById("ask");
const TOKEN = "dspex.token";  // of this tab: it is gone when the tab is closed
let leave = new AbortController();
let asking = null;  // while a token is asked for: all requests wait for the same one

// Another view is entered: what the last one still asks for is of no use. Aborted when this one is left.
export function entered() {
  leave.abort();
  leave = new AbortController();
  return leave.signal;
}

export class Problem extends Error {
  constructor(said) {
    super(said.detail || said.title || "the gateway cannot be reached");
    this.fix = said.fix || "";
    this.code = said.code || "";
  }
}

export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return made;
}

// Paths are relative, since the gateway may be below any path of another application or of a proxy.
export async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(`../v1/${path}`, { signal: leave.signal, ...options, headers });
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({ title: `HTTP ${answer.status}` }));
    if (answer.status !== 401) throw new Problem(said);
    if (sessionStorage.getItem(TOKEN) !== token) continue;  // another request has been given one meanwhile
    sessionStorage.removeItem(TOKEN);
    await (asking ??= newToken(token ? "This token is not valid." : "").finally(() => { asking = null; }));
  }
}

export const get = async (path) => (await request(path)).json();

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

function newToken(why) {
  document.getElementById("ask-why").textContent = why;
  const field = document.getElementById("token");
  field.value = "";
  ask.showModal();
  return new Promise((given) => {
    document.getElementById("ask-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, field.value.trim());
      ask.close();
      given();
    };
  });
}
ask.addEventListener("cancel", (event) => event.preventDefault());

// Server-sent events by fetch: EventSource cannot send a token. They are asked for at once, before anybody reads them.
export const events = (path) => told(request(path, { headers: { Accept: "text/event-stream" } }));

async function* told(asked) {
  const reader = (await asked).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r", "");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const of = (name) => lines.filter((l) => l.startsWith(`${name}: `)).map((l) => l.slice(name.length + 2)).join("\n");
      if (of("data")) yield { event: of("event"), data: JSON.parse(of("data")) };
    }
  }
}

export function go(name, id = "", query = {}) {
  const said = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  location.hash = `#/${name}${id ? `/${encodeURIComponent(id)}` : ""}${said ? `?${said}` : ""}`;
}

// What is shown in the place of what was; the row that had the focus keeps it.
export function fill(element, ...children) {
  const id = element.contains(document.activeElement) ? document.activeElement.dataset.row : undefined;
  element.replaceChildren(...children.flat(9).filter(Boolean));
  if (id !== undefined) [...element.querySelectorAll("[data-row]")].find((one) => one.dataset.row === id)?.focus({ preventScroll: true });
}

// How current the view is, in the head.
export function live(said) { document.getElementById("live").textContent = said; }

export const show = (...children) => fill(main, ...children);

export function trouble(problem) {
  return h("div", { class: "card", role: "alert" }, h("strong", { class: "bad" }, problem.message),
    problem.fix ? h("p", {}, problem.fix) : null, problem.code ? h("p", { class: "quiet" }, problem.code) : null);
}
