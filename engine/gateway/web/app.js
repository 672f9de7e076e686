// Moving between the views, looking again at what changes, and the keyboard. What each view shows is in a file of its own.
import { Problem, entered, go, h, live, show, trouble } from "./base.js";
import { letters } from "./letters.js";
import { approvals, sessions } from "./people.js";
import { run } from "./run.js";
import { runs } from "./runs.js";
import { pools, topology, windows } from "./state.js";

// Each is a function of the place (id and query of the address) that makes its frame, so that what somebody types or has opened
// stays, and gives what is done at every look; that gives whether to look again. In the order of their keys.
const VIEWS = { runs: (at) => (at.id ? run(at) : runs(at)), letters, approvals, topology, sessions, windows, pools };

const main = document.getElementById("main");
const ask = document.getElementById("ask");
const EVERY = 2000;  // milliseconds between two looks at what changes

// -- the view that is shown: #/runs?status=failed, #/runs/ID
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name: name in VIEWS ? name : "runs", id: rest.join("/"), query: new URLSearchParams(query || "") };
}

const pause = (signal) => new Promise((over) => {
  const timer = setTimeout(over, EVERY);
  signal.addEventListener("abort", () => { clearTimeout(timer); over(); });
});

async function enter() {
  const signal = entered();
  const here = place();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${here.name}`) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "center" });  // where the window is narrow not all links fit
    } else link.removeAttribute("aria-current");
  }
  main.replaceChildren(h("p", { class: "quiet" }, "…"));
  window.scrollTo(0, 0);
  let update = null, again = true, shown = false;
  while (again && !signal.aborted) {
    try {
      update ??= await VIEWS[here.name](here);
      if (signal.aborted) return;
      again = await update(signal);  // true while there may be something new
      shown = true;
      live(again ? "live" : "");
    } catch (error) {
      if (signal.aborted) return;
      live(error.message);
      const refused = error instanceof Problem;  // else the gateway is away for a while, and what is shown stays
      if (refused || !shown) show(trouble(error));
      again = !refused;
    }
    if (again) await pause(signal);
    while (document.hidden && !signal.aborted) await pause(signal);
  }
}

// -- the keyboard
function move(by) {
  const rows = [...main.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement);
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ask.open) return;
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (place().id) history.back();
    return;
  }
  if (typing) return;
  const view = Object.keys(VIEWS)[Number(event.key) - 1];
  if (view) go(view);
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "Enter" && event.target.matches("[data-row]:not(summary)")) event.target.click();
  else if (event.key === "/" && main.querySelector("[data-find]")) {
    event.preventDefault();
    main.querySelector("[data-find]").focus();
  }
});

window.addEventListener("hashchange", enter);
enter();
