"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const items = data.items;

// -- elements ------------------------------------------------------------------------------------

const at = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const plural = (n, one, many = `${one}s`) => `${whole.format(n)} ${n === 1 ? one : many}`;

/** An element with attributes and children; text is always text, never markup. */
function make(name, attributes = {}, ...children) {
  const element = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("--")) element.style.setProperty(key, value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function table(head, rows) {
  const cells = (row) => row.map((value) => make("td", {}, String(value ?? "")));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((label) => make("th", { scope: "col" }, label)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
}

/** Text with the parts that were searched for emphasized. */
function marked(text, query) {
  const start = query ? fold(text).indexOf(query) : -1;
  if (start < 0 || fold(text).length !== text.length) return [text];
  const end = start + query.length;
  return [text.slice(0, start), make("mark", {}, text.slice(start, end)), text.slice(end)];
}

const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const words = (text) => fold(text).split(/\s+/).filter(Boolean);

// -- charts --------------------------------------------------------------------------------------

const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function niceTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(k * step + 0); // no -0
  return ticks;
}

function logTicks(low, high, count) {
  const ticks = [];
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / count));
  for (let power = first; power <= last; power += every) ticks.push(10 ** power);
  return ticks;
}

/** A scale from values to pixels. */
function scale({ log = false, low, high }, from, to) {
  const map = log ? Math.log10 : (x) => x;
  const width = map(high) - map(low) || 1;
  const place = (value) => from + (to - from) * (map(value) - map(low)) / width;
  return Object.assign(place, { ticks: (count) => (log ? logTicks : niceTicks)(low, high, count) });
}

/** A figure that is drawn anew when its width changes, with its numbers as a table. */
function figure(id, { title, keys = [], height = 230, label, draw, head, rows }) {
  const svg = make("svg:svg", { role: "img", "aria-label": label });
  const caption = make("figcaption", {}, title);
  for (const [name, colour, shape] of keys) {
    const sample = make("i", { class: `${shape} ${colour}`, "aria-hidden": "true" });
    caption.append(make("span", { class: "key" }, sample, name));
  }
  at(id).append(make("figure", {}, caption, svg, make("details", {}, make("summary", {}, "Numbers"),
    make("div", {}, table(head, rows)))));
  const redraw = () => {
    const width = Math.max(200, svg.parentElement.clientWidth);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    draw(svg, width, height);
  };
  new ResizeObserver(redraw).observe(svg.parentElement);
  redraw();
}

const edge = { left: 46, right: 10, top: 12, bottom: 44 };

/** Grid, ticks and names of both axes; returns the scales. */
function axes(svg, width, height, x, y) {
  const right = width - edge.right, bottom = height - edge.bottom;
  const across = scale(x, edge.left, right), up = scale(y, bottom, edge.top);
  for (const tick of up.ticks(4)) {
    const place = up(tick);
    svg.append(make("svg:line", { class: "grid", x1: edge.left, x2: right, y1: place, y2: place }));
    svg.append(make("svg:text", { x: edge.left - 8, y: place + 4, "text-anchor": "end" }, (y.format ?? short.format)(tick)));
  }
  const ticks = x.ticks ?? across.ticks(Math.max(2, Math.floor(width / 90))).map((tick) => [tick, (x.format ?? short.format)(tick)]);
  for (const [tick, name] of ticks) {
    svg.append(make("svg:text", { x: across(tick), y: bottom + 18, "text-anchor": "middle" }, name));
  }
  svg.append(make("svg:line", { class: "axis", x1: edge.left, x2: right, y1: bottom, y2: bottom }));
  svg.append(make("svg:text", { x: (edge.left + right) / 2, y: height - 6, "text-anchor": "middle" }, x.name));
  return [across, up];
}

const titled = (element, text) => { element.append(make("svg:title", {}, text)); return element; };

function drawConvergence() {
  const { iteration, llk, elbo } = data.history;
  const series = [["log-likelihood", llk, "blue"], ["ELBO", elbo, "orange"]]
    .map(([name, values, colour]) => ({ name, colour, points: iteration.map((x, k) => [x, values[k]]).filter((point) => point[1] !== null) }))
    .filter((one) => one.points.length);
  // A lone ELBO, of the last check, is among the facts: here it would flatten the curve.
  const curves = series.filter((one) => one.points.length > 1);
  if (!curves.length) return at("convergence").append(make("p", { class: "note" }, "The fit was checked only once: there is no curve to draw."));
  const ys = curves.flatMap((one) => one.points.map((point) => point[1]));
  const low = Math.min(...ys), high = Math.max(...ys), margin = (high - low) * 0.06 || 1;
  figure("convergence", {
    title: "Convergence", height: 260, keys: curves.map((one) => [one.name, one.colour, ""]),
    label: curves.map((one) => `${one.name} from ${short.format(one.points[0][1])} to ${short.format(one.points.at(-1)[1])}`).join("; "),
    draw(svg, width, height) {
      const [x, y] = axes(svg, width, height,
        { low: 0, high: iteration.at(-1), name: "iteration" }, { low: low - margin, high: high + margin });
      for (const { colour, name, points } of curves) {
        const group = make("svg:g", { class: colour });
        group.append(make("svg:polyline", { class: "line", points: points.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
        for (const [at, value] of points) {
          group.append(titled(make("svg:circle", { class: "mark", cx: x(at), cy: y(value), r: 3 }), `${name} after ${at} iterations: ${whole.format(value)}`));
        }
        svg.append(group);
      }
    },
    head: ["iteration", "log-likelihood", "ELBO"], rows: iteration.map((n, k) => [n, llk[k], elbo[k]].map((v) => v === null ? "" : whole.format(v))),
  });
}

function drawHistogram(id, { edges, numbers }, title, name, what) {
  figure(id, {
    title, label: `${title}: ${plural(numbers.reduce((a, b) => a + b, 0), what)} by ${name}`,
    draw(svg, width, height) {
      const [x, y] = axes(svg, width, height, { log: true, low: 1, high: edges.at(-1), name }, { low: 0, high: Math.max(...numbers) });
      const group = make("svg:g", { class: "blue" });
      numbers.forEach((n, k) => {
        const left = x(edges[k]), right = x(edges[k + 1]);
        const range = edges[k + 1] - edges[k] === 1 ? edges[k] : `${edges[k]}–${edges[k + 1] - 1}`;
        group.append(titled(make("svg:rect", { class: "bar", x: left + 0.5, width: Math.max(0.5, right - left - 1), y: y(n), height: y(0) - y(n) }), `${range} ${name}: ${plural(n, what)}`));
      });
      svg.append(group);
    },
    head: [`${name}, from`, "to", `${what}s`], rows: numbers.map((n, k) => [edges[k], edges[k + 1] - 1, n]),
  });
}

function drawCalibration() {
  const { pairs, predicted, observed, error } = data.calibration;
  const shown = pairs.map((_, k) => k).filter((k) => observed[k] > 0);
  const ends = shown.flatMap((k) => [predicted[k], observed[k]]);
  const low = Math.min(...ends) / 1.5, high = Math.max(...ends) * 1.5;
  const what = data.presence ? "share of pairs with a count" : "count";
  figure("calibration", {
    title: `Mean ${what}, predicted and observed`, height: 340, label: `Observed against predicted ${what} in ${shown.length} groups of pairs; on the diagonal they are equal`,
    draw(svg, width, height) {
      const format = plain.format;
      const [x, y] = axes(svg, width, height, { log: true, low, high, name: `predicted ${what}`, format }, { log: true, low, high, format });
      svg.append(make("svg:line", { class: "axis", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
      const group = make("svg:g", { class: "blue" });
      for (const k of shown) {
        const [bottom, top] = [Math.max(low, observed[k] - 2 * error[k]), Math.min(high, observed[k] + 2 * error[k])];
        group.append(make("svg:line", { class: "whisker", x1: x(predicted[k]), x2: x(predicted[k]), y1: y(bottom), y2: y(top) }));
        group.append(titled(make("svg:circle", { class: "mark", cx: x(predicted[k]), cy: y(observed[k]), r: 4.5 }), `${plural(pairs[k], "pair")}: predicted ${plain.format(predicted[k])}, observed ${plain.format(observed[k])}`));
      }
      svg.append(group);
    },
    head: ["pairs", "predicted", "observed", "standard error"], rows: pairs.map((n, k) => [whole.format(n), plain.format(predicted[k]), plain.format(observed[k]), plain.format(error[k])]),
  });
}

function drawPredictive(of, title, name, what) {
  const all = data.predictive;
  // Nearly all pairs have no count: their number is told in words.
  const rows = all.of.map((_, k) => k).filter((k) => all.of[k] === of && !(of === "pair" && all.low[k] === 0));
  const range = (k) => all.low[k] === all.high[k] ? whole.format(all.low[k]) : `${whole.format(all.low[k])}–${whole.format(all.high[k])}`;
  const log = of === "pair";
  const floor = log ? 0.7 : 0;
  const top = Math.max(...rows.flatMap((k) => [all.observed[k], all.drawn_high[k]]), 1) * (log ? 1.5 : 1.05);
  figure(`predictive-${of}`, {
    title, keys: [["observed", "grey", ""], ["drawn", "orange", "dot"]], label: `${title}: how many ${what}s are observed in each range of the ${name}, and how many are drawn from the model`,
    draw(svg, width, height) {
      const step = Math.ceil(rows.length * 46 / (width - edge.left - edge.right));
      const ticks = rows.map((k, place) => [place, whole.format(all.low[k])]).filter(([place]) => place % step === 0);
      const [x, y] = axes(svg, width, height, { low: -0.6, high: rows.length - 0.4, ticks, name: `${name}, from`, }, { log, low: floor, high: top });
      const half = (x(1) - x(0)) * 0.4;
      rows.forEach((k, place) => {
        const bars = make("svg:g", { class: "grey" }), points = make("svg:g", { class: "orange" });
        const tall = y(floor) - y(Math.max(floor, all.observed[k]));
        const text = `${name} ${range(k)}: ${plural(all.observed[k], what)} observed, ${whole.format(all.drawn_low[k])} to ${whole.format(all.drawn_high[k])} drawn`;
        bars.append(titled(make("svg:rect", { class: "bar", x: x(place) - half, width: 2 * half, y: y(floor) - tall, height: tall }), text));
        const inside = (value) => y(Math.max(floor, value));
        points.append(make("svg:line", { class: "whisker", x1: x(place), x2: x(place), y1: inside(all.drawn_low[k]), y2: inside(all.drawn_high[k]) }));
        if (all.drawn[k] >= floor) points.append(titled(make("svg:circle", { class: "mark", cx: x(place), cy: y(all.drawn[k]), r: 4 }), text));
        svg.append(bars, points);
      });
    },
    head: [name, "observed", "drawn, 5 %", "50 %", "95 %"], rows: rows.map((k) => [range(k), ...[all.observed, all.drawn_low, all.drawn, all.drawn_high].map((column) => whole.format(column[k]))]),
  });
}

// -- lists ---------------------------------------------------------------------------------------

const explored = data.explored_items, people = data.explored_users;
const nItems = explored.count, nUsers = people.count;

/** An item by name, a link if there is more to tell. */
function itemLink(number, query = "") {
  const text = marked(items.name[number], query);
  return number < nItems ? make("a", { href: `#item-${number}` }, ...text) : make("span", {}, ...text);
}

function factorLink(k) {
  return data.factors.some((factor) => factor.k === k) ? make("a", { href: `#factor-${k}` }, `Factor ${k}`) : make("span", {}, `Factor ${k}`);
}

/** A list of [content, part of the longest bar, number]. */
function bars(rows) {
  return make("ol", { class: "bars" }, ...rows.map(([content, part, number]) =>
    make("li", { "--part": `${100 * part}%` }, content, make("span", { class: "number" }, number))));
}

function profile(factors) {
  const largest = Math.max(...factors.map(([, share]) => share));
  return bars(factors.map(([k, share]) => {
    const factor = data.factors.find((one) => one.k === k);
    const first = factor ? items.name[factor.items[0]] : "";
    return [make("span", {}, factorLink(k), " ", make("span", { class: "soft" }, first)), share / largest, percent(share)];
  }));
}

const list = (numbers) => bars(numbers.map((number) => [itemLink(number), 0, ""]));
const part = (title, content) => make("div", {}, make("h4", {}, title), content);

let showFactors = () => {};

function drawFactors() {
  const few = 12;
  let all = data.factors.length <= few;
  const largest = Math.max(...data.factors.flatMap((factor) => factor.parts));
  const cards = data.factors.map((factor) => ({ factor, text: factor.items.map((item) => fold(`${items.name[item]} ${items.id[item]}`)) }));
  const show = () => {
    const query = fold(at("factor-search").value.trim()), wanted = words(query);
    const found = cards.filter(({ factor, text }) => wanted.every((word) => `factor ${factor.k}`.includes(word) || text.some((one) => one.includes(word))));
    const listed = all || wanted.length ? found : found.slice(0, few);
    at("factor-list").replaceChildren(...listed.map(({ factor }) => make("li", { id: `factor-${factor.k}` },
      make("h3", {}, `Factor ${factor.k}`, make("span", {}, percent(factor.share))),
      bars(factor.items.map((item, k) => [itemLink(item, query), factor.parts[k] / largest, percent(factor.parts[k])])))));
    at("factor-status").textContent = wanted.length ? `${found.length} of ${plural(cards.length, "factor")}` : "";
    at("factor-more").hidden = listed.length === found.length;
  };
  showFactors = () => { all = true; at("factor-search").value = ""; show(); };
  at("factor-more").textContent = `Show all ${cards.length} factors`;
  at("factor-more").addEventListener("click", () => {
    showFactors();
    at("factor-list").children[few].querySelector("a, span")?.focus();
  });
  at("factor-search").addEventListener("input", show);
  show();
}

/** A search field, its results, and what is told of the one that is chosen. */
function explorer(kind, count, texts, entry, tell) {
  const most = 60;
  const folded = texts.map(fold);
  let chosen = -1;
  const show = () => {
    const query = fold(at(`${kind}-search`).value.trim()), wanted = words(query);
    const found = [];
    for (let number = 0; number < count; number++) {
      if (wanted.every((word) => folded[number].includes(word))) found.push(number);
    }
    at(`${kind}-list`).replaceChildren(...found.slice(0, most).map((number) => make("li", {},
      make("button", { type: "button", "data-number": number, "aria-current": number === chosen ? "true" : null }, ...entry(number, query)))));
    const limited = found.length > most ? `, the first ${most} are listed` : "";
    at(`${kind}-status`).textContent = `${plural(found.length, kind)}${wanted.length ? " found" : ""}${limited}`;
  };
  const choose = (number) => {
    chosen = number;
    at(kind).replaceChildren(...tell(number));
    for (const button of at(`${kind}-list`).querySelectorAll("button")) {
      if (Number(button.dataset.number) === number) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };
  at(`${kind}-search`).addEventListener("input", show);
  at(`${kind}-list`).addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    choose(Number(button.dataset.number));
    history.replaceState(null, "", `#${kind}-${button.dataset.number}`);
    // On a phone it is below the list.
    if (at(kind).getBoundingClientRect().top > innerHeight - 120) at(kind).scrollIntoView();
  });
  // Arrow keys go from the field into the list, and through it.
  at(`${kind}-search`).closest(".explorer").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const stops = [at(`${kind}-search`), ...at(`${kind}-list`).querySelectorAll("button")];
    const place = stops.indexOf(document.activeElement);
    if (place < 0) return;
    event.preventDefault();
    stops[Math.min(stops.length - 1, Math.max(0, place + step))].focus();
  });
  show();
  if (count) choose(0);
  return choose;
}

function tellItem(number) {
  const sized = explored.size ? ` · ${plural(explored.size[number], "user")}` : "";
  const parts = [];
  if (explored.profile) parts.push(part("Factors behind its expected counts", profile(explored.profile[number])));
  if (explored.goes_with) parts.push(part("Raises the expected counts of", list(explored.goes_with[number])));
  if (explored.like) parts.push(part("Similar items", list(explored.like[number])));
  return [make("h3", {}, items.name[number]), make("p", {}, `${items.id[number]}${sized}`), make("div", { class: "columns" }, ...parts)];
}

function tellUser(number) {
  const scores = people.scores[number], largest = Math.max(...scores, 1e-300);
  const parts = [part("Recommended, with expected counts", bars(people.recommended[number].map((item, k) => [itemLink(item), scores[k] / largest, plain.format(scores[k])])))];
  if (people.had) {
    const more = people.size[number] - people.had[number].length;
    parts.push(part(more > 0 ? `Has, among ${plural(more, "other")}` : "Has", list(people.had[number])));
  }
  if (people.profile) parts.push(part("Factors behind the expected counts", profile(people.profile[number])));
  const sized = people.size ? plural(people.size[number], "item") : "";
  return [make("h3", {}, people.id[number]), make("p", {}, sized), make("div", { class: "columns" }, ...parts)];
}

// -- the page ------------------------------------------------------------------------------------

for (const [label, value] of data.facts) at("facts").append(make("div", {}, make("dt", {}, label), make("dd", {}, value)));
at("parameters").append(data.parameters.length
  ? make("table", {}, make("tbody", {}, ...data.parameters.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, make("code", {}, value))))))
  : make("p", {}, "All have their defaults."));
if (data.history && data.history.iteration.length) drawConvergence();
if (data.members) {
  const rows = data.members.map((one, k) => [k, one.weight, one.parameters, whole.format(one.iterations), one.llk === null ? "" : whole.format(Math.round(one.llk))]);
  at("convergence").append(make("h3", {}, "Members"), make("div", { class: "scroll" },
    table(["", "weight", "differs by", "iterations", "log-likelihood"], rows)));
}

if (data.factors.length) {
  if (data.factors.length < data.k) at("factors-note").textContent = `These are the largest ${data.factors.length} of ${data.k}.`;
  drawFactors();
} else at("factors").hidden = true;

let chooseItem = () => {}, chooseUser = () => {};
if (nItems) {
  at("items-note").textContent = nItems < explored.total
    ? `The ${whole.format(nItems)} most frequent of ${plural(explored.total, "item")} can be searched.`
    : `All ${plural(nItems, "item")} can be searched.`;
  const texts = Array.from({ length: nItems }, (_, k) => `${items.name[k]} ${items.id[k]}`);
  chooseItem = explorer("item", nItems, texts,
    (k, query) => [make("span", {}, ...marked(items.name[k], query)), make("span", { class: "number" }, explored.size ? whole.format(explored.size[k]) : "")], tellItem);
} else at("items").hidden = true;
if (nUsers) {
  const seen = people.had ? "" : " The model has not kept what users have, so recommendations may contain it.";
  at("users-note").textContent = (nUsers < people.total
    ? `The ${whole.format(nUsers)} most active of ${plural(people.total, "user")} can be searched.`
    : `All ${plural(nUsers, "user")} can be searched.`) + seen;
  chooseUser = explorer("user", nUsers, people.id,
    (k, query) => [make("span", {}, ...marked(people.id[k], query)), make("span", { class: "number" }, people.size ? whole.format(people.size[k]) : "")], tellUser);
} else at("users").hidden = true;

if (data.calibration) {
  at("checks-note").textContent = data.presence
    ? "The model has kept which items each user has, and not how often. So it is compared with that: any count is taken as 1."
    : "The model is compared with the counts that were passed for this page.";
  drawHistogram("activity-users", data.activity.users, "Activity of the users", "items of a user", "user");
  drawHistogram("activity-items", data.activity.items, "Popularity of the items", "users of an item", "item");
  at("calibration-note").textContent = "All pairs of a user and an item, with a count or without, in groups of similar predictions. Points on the diagonal are well calibrated; bars are two standard errors to both sides.";
  drawCalibration();
  const { observed, drawn, of } = data.predictive;
  const total = of.reduce((sum, one, k) => sum + (one === "pair" ? observed[k] : 0), 0);
  const users = of.reduce((sum, one, k) => sum + (one === "user" ? observed[k] : 0), 0);
  const sample = users < people.total ? `, here for ${whole.format(users)} users drawn at random` : "";
  const share = (n) => `${(100 * (1 - n / total)).toFixed(2)} %`;
  at("predictive-note").textContent = `If the model were true, data drawn from it would look like those observed${sample}. Of all pairs ${share(observed[0])} have a count, in draws ${share(drawn[0])}. Lines are from the 5 to the 95 % quantile of the draws.`;
  drawPredictive("pair", "Counts of pairs", "count", "pair");
  drawPredictive("user", "Totals of users", data.presence ? "items of a user" : "sum of a user", "user");
  drawPredictive("item", "Totals of items", data.presence ? "users of an item" : "sum of an item", "item");
} else at("checks").hidden = true;

for (const section of document.querySelectorAll("main > section:not([hidden])")) {
  at("sections").append(make("li", {}, make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
}
at("made").textContent = `Made with hpf_gpu ${data.version}. This page is one file; it loads nothing, and sends nothing.`;

/** Links to items, users and factors work from everywhere on the page, and from other pages. */
function follow() {
  const [, kind, number] = /^#(item|user|factor)-(\d+)$/.exec(location.hash) ?? [];
  if (kind === "factor") {
    showFactors();
    at(`factor-${number}`)?.scrollIntoView();
  } else if (kind && Number(number) < (kind === "item" ? nItems : nUsers)) {
    (kind === "item" ? chooseItem : chooseUser)(Number(number));
    at(kind).scrollIntoView({ block: "nearest" });
    at(kind).focus({ preventScroll: true });
  }
}
addEventListener("hashchange", follow);
follow();
})();
