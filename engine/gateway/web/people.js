// What waits for a person's decision; and sessions, with what was said in them.
import { fill, get, go, h, post, show, trouble } from "./base.js";
import { changing, data, facts, many, named, opening, quiet, runLink, seconds, short, table, text, when } from "./values.js";

// -- approvals
const TOLD = 20;  // of which it is said what became of them
export function approvals() {
  const head = h("h2", {}, "Approvals"), body = h("div", {}, quiet("…")), over = h("div", { "aria-live": "polite" });
  const cards = new Map();  // by id: what somebody writes in one stays
  show(head, body, over);
  return async () => {
    const found = (await get("approvals")).approvals;
    head.textContent = found.length ? `Approvals: ${many(found.length)} wait` : "Approvals";
    for (const one of found) if (!cards.has(one.id)) cards.set(one.id, approval(one));
    for (const [id, card] of cards) {
      if (found.some((one) => one.id === id)) continue;
      cards.delete(id);
      card.remove();
      over.prepend(await became(card));
      [...over.children].slice(TOLD).forEach((one) => one.remove());
    }
    if (!found.length) fill(body, quiet("nothing waits for a decision"));
    else {
      body.querySelector(":scope > p")?.remove();
      for (const one of found) if (!cards.get(one.id).isConnected) body.append(cards.get(one.id));
    }
    await named();
    return true;
  };
}

// What became of something that waits no more: it does not vanish from under somebody's eyes without a word.
async function became(card) {
  const { run, operator, decided } = card.dataset;
  const { status } = decided ? {} : await get(`runs/${encodeURIComponent(run)}`).catch(() => ({}));
  const what = decided ?? (status === "cancelled" ? "cancelled with its run" : "decided by somebody else, or its time is over");
  return h("p", { class: "quiet" }, `${operator}, run `, runLink(run), `: ${what}`);
}

function approval(one) {
  const note = h("input", { placeholder: "note", "aria-label": "Note" });
  const fields = h("textarea", { "aria-label": "Fields to change, as JSON", spellcheck: "false" });
  const editor = h("div", { hidden: true }, h("h3", {}, "Fields to change, as JSON"), fields);
  const wrong = h("div");
  const decide = async (decision) => {
    fill(wrong);
    try {
      const edit = editor.hidden ? null : JSON.parse(fields.value);
      await post(`approvals/${encodeURIComponent(one.id)}`, { decision, edit: decision === "accept" ? edit : null, note: note.value });
      card.dataset.decided = `${decision}ed`;
      fill(card, h("p", { class: "quiet" }, card.dataset.decided));
    } catch (error) { fill(wrong, trouble(error)); }
  };
  fields.value = text(one.shown);
  const card = h("div", { class: "card", "data-row": one.id, "data-run": one.run, "data-operator": `${one.topology}/${one.node}`, tabindex: 0 },
    facts({ operator: `${one.topology}/${one.node}`, since: when(one.since), due: when(one.due), run: runLink(one.run), key: one.key ?? "" }),
    data(one.shown), editor, wrong, h("div", { class: "buttons" }, note,
      h("button", { class: "first", onclick: () => decide("accept") }, "Accept"),
      h("button", { onclick: () => decide("reject") }, "Reject"),
      h("button", { onclick: () => { editor.hidden = !editor.hidden; } }, "Edit")));
  return card;
}

// -- sessions
export function sessions({ id }) {
  const body = h("div", {}, quiet("…"));
  if (id) return session(id, body);
  show(h("h2", {}, "Sessions"), body);
  const update = changing(({ sessions: found, count }) => fill(body, table(["session", ">turns", ">used", "~>kept", "state"], found.map((one) => opening([
    h("code", {}, one.id), one.turns, when(one.touched), seconds(one.ttl), state(one)], one.id, () => go("sessions", one.id)))),
  count > found.length ? quiet(`and ${many(count - found.length)} more`) : null));
  return async () => {
    update(await get("sessions"));
    await named();
    return true;
  };
}
const state = (one) => (one.ended ? h("span", { class: "quiet" }, "ended") : one.running
  ? h("span", { class: "running" }, `answers${one.waiting ? `, ${one.waiting} wait` : ""}`) : "idle");

function session(id, body) {
  show(h("p", {}, h("a", { href: "#/sessions" }, "← Sessions")), body);
  const update = changing((one) => fill(body, h("h2", {}, "Session ", h("code", {}, one.id)),
    facts({ state: state(one), turns: many(one.turns), used: when(one.touched), kept: seconds(one.ttl), "running call": one.running ? short(one.running) : "" }),
    one.history.map((turn) => h("div", { class: "card" }, h("p", { class: "quiet" }, when(turn.time)),
      h("div", { class: "turn" }, data(turn.inputs)), h("div", { class: "turn answer" }, data(turn.outputs)))),
    Object.keys(one.data).length ? [h("h2", {}, "Data"), data(one.data)] : null));
  return async () => {
    update(await get(`sessions/${encodeURIComponent(id)}`));
    await named();
    return true;
  };
}
