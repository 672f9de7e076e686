// Dead letters by what went wrong, the largest group first and open; run again at a pace, or dropped.
import { fill, get, go, h, post, show } from "./base.js";
import { button, changing, data, facts, many, named, opening, quiet, runLink, table, when } from "./values.js";

const SHOWN = 20;  // letters of a group

export function letters({ query }) {
  const list = h("div", {}, quiet("…")), inside = h("div");
  show(h("h2", {}, "Dead letters"), list, inside);
  let here = query.get("fingerprint"), doing = null;
  const drawGroups = changing(({ groups, of }) => fill(list, groups.length ? table([">letters", "reason", "operator", "~message", "~>oldest", ">latest"],
    groups.map((group) => opening([group.count, h("span", { class: "bad" }, group.reason), `${group.topology}/${group.node}`,
      h("span", { class: "cut", title: group.message }, group.message), when(group.oldest), when(group.latest)],
    group.fingerprint, () => go("letters", "", { fingerprint: group.fingerprint }), group.fingerprint === of)))
    : quiet("none: everything went well")));
  const drawLetters = changing(({ group, found }) => {
    if (doing?.of !== group.fingerprint) doing = acting(group);
    doing.count(group.count);
    fill(inside, h("h2", {}, `${group.reason} at ${group.topology}/${group.node}`), doing.element, found.map(letter),
      group.count > found.length ? quiet(`and ${many(group.count - found.length)} more`) : null);
  });
  return async () => {
    const { groups } = await get("letters/groups");
    const open = groups.find((one) => one.fingerprint === here) ?? groups[0];
    drawGroups({ groups, of: open?.fingerprint });
    if (open) drawLetters({ group: open, found: (await get(`letters?${new URLSearchParams({ fingerprint: open.fingerprint, limit: SHOWN })}`)).letters });
    else fill(inside);
    await named();
    return true;
  };
}

const letter = (one) => h("div", { class: "card", "data-row": one.sequence, tabindex: 0 },
  h("p", {}, one.message), one.fix ? h("p", { class: "quiet" }, one.fix) : null,
  facts({ number: String(one.sequence), at: when(one.time), attempts: many(one.attempts), run: one.run ? runLink(one.run) : "" }),
  h("details", {}, h("summary", {}, "event"), data(one.event.data ?? one.event)),
  one.traceback ? h("details", {}, h("summary", {}, "traceback"), h("pre", {}, one.traceback)) : null);

// What is done with a group. `count`: how many it has by now.
function acting(group) {
  const wrong = h("div"), told = h("p", { class: "quiet", role: "status" }), of = { fingerprint: group.fingerprint };
  const pace = h("input", { type: "number", min: 1, max: 1000, value: 10, size: 4, "aria-label": "Letters a second" });
  let stopped = false;
  const stop = h("button", { hidden: true, onclick: () => { stopped = true; } }, "Stop");
  const tell = (said) => { told.textContent = said; };
  const dry = button("How many?", async () => {
    const { count } = await post("letters/redrive", { ...of, dry_run: true });
    tell(`${many(count)} would run again; nothing was done`);
  }, wrong);
  const redrive = button("Redrive", async () => {
    const { count } = await post("letters/redrive", { ...of, dry_run: true });
    if (!confirm(`Run ${many(count)} events again, ${pace.value} a second?`)) return;
    let done = 0, refused = 0, after = 0;
    stopped = false;
    stop.hidden = false;
    try {
      while (!stopped && done + refused < count) {
        const now = await post("letters/redrive", { ...of, after, limit: Math.max(1, Number(pace.value)) });
        if (now.last === after) break;
        [done, refused, after] = [done + now.redriven, refused + now.refused.length, now.last];
        tell(`${many(done)} of ${many(count)} run again${refused ? `, ${many(refused)} refused: ${now.refused[0]?.why ?? ""}` : ""}`);
        if (done + refused < count) await new Promise((over) => { setTimeout(over, 1000); });
      }
    } finally { stop.hidden = true; }
    if (stopped) tell(`stopped: ${many(done)} of ${many(count)} run again`);
  }, wrong, { class: "first" });
  const drop = button("Drop", async () => {
    const { count } = await post("letters/drop", { ...of, dry_run: true });
    if (!confirm(`Remove ${many(count)} dead letters for good?`)) return;
    let dropped = 0;
    for (let now = null; now !== 0; dropped += now) now = (await post("letters/drop", of)).dropped;
    tell(`${many(dropped)} dropped`);
  }, wrong);
  const element = h("div", { class: "card" }, h("div", { class: "buttons" }, redrive, h("label", {}, pace, " a second"), stop, dry, drop), told, wrong);
  return { of: group.fingerprint, element, count: (number) => { redrive.textContent = `Redrive ${many(number)}`; } };
}
