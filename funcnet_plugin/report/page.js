"use strict";
// Text of the data is shown by textContent only: it can hold anything.
const data = JSON.parse(document.getElementById("data").textContent);
const networks = data.networks;
const byName = new Map(networks.map((network, i) => [network.name, i]));
const element = (id) => document.getElementById(id);
const FIGURES = {
  variance: "share of the signals' variance that the network makes",
  kurtosis: `kurtosis of its map: large where few ${data.pieces} carry it`,
  stability_starts: "how well other random starts find it again, 0 to 1",
  stability_groups: "how well it is found again in other samples, 0 to 1",
  density: "share of tokens where it is active",
  position: "correlation with the place in the window",
  frequency: "correlation with how often the text has the token",
  members: `${data.pieces} that are members`,
  cluster: "networks that act together have the same; near numbers are alike",
};
if (networks.some((network) => network.kept)) FIGURES.kept = "share of its members that the pruned model kept";

function figureOf(network, figure) {
  if (figure === "cluster") return network.cluster;
  if (figure === "members") return Object.values(network.layers).reduce((sum, of) => sum + of[0], 0);
  if (figure === "kept") return network.kept && network.kept[1] ? network.kept[0] / network.kept[1] : null;
  return network.figures[figure];
}

function add(parent, tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}

const style = getComputedStyle(document.body);
const isNarrow = () => document.body.clientWidth < 640;
function layout(more) {
  return Object.assign({
    margin: { t: 10, r: 10, b: 45, l: isNarrow() ? 45 : 70 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: style.color }, dragmode: false,
  }, more);
}
const PLAIN = { displayModeBar: false, responsive: true };
const shown = (value) => (value === null || value === undefined ? "not measured" : String(Number(value.toPrecision(3))));

function drawOverview() {
  const figure = element("figure").value;
  const most = Math.max(...data.blocks.map((block) => block.networks));
  const z = data.blocks.map(() => new Array(most).fill(null));
  const text = data.blocks.map(() => new Array(most).fill(""));
  const next = data.blocks.map(() => 0);
  for (const network of networks) {
    const k = next[network.block]++;
    z[network.block][k] = figureOf(network, figure);
    text[network.block][k] = network.name;
  }
  const trace = {
    type: "heatmap", z, text, y: data.blocks.map((block) => block.name), hovertemplate: "%{text}: %{z}<extra></extra>",
    colorscale: "Viridis", xgap: isNarrow() ? 0 : 1, ygap: isNarrow() ? 0 : 1,
  };
  const height = Math.max(160, 40 + 16 * data.blocks.length);
  Plotly.react("overview", [trace], layout({
    height, yaxis: { autorange: "reversed", type: "category" }, xaxis: { title: { text: "network" } },
  }), PLAIN);
  element("explain").textContent = `${figure}: ${FIGURES[figure]}. Choose a network by a click.`;
}

function colour(activity) {
  const strength = Math.min(Math.abs(activity) / 6, 1) * 0.75;
  return activity > 0 ? `rgba(230,120,0,${strength})` : `rgba(40,110,220,${strength})`;
}

function drawContexts(network) {
  const parent = element("contexts");
  parent.replaceChildren();
  for (const context of network.contexts) {
    const box = add(parent, "div", undefined, "context");
    const activities = context.tenths.map((value) => value / 10);
    add(box, "small", `${context.rank > 0 ? "most" : "least"} ${Math.abs(context.rank)}: ${activities[context.at]} deviations, ` +
      `sample ${context.sample}, token ${context.position}${context.document ? `, of ${context.document}` : ""}`);
    context.tokens.forEach((token, i) => {
      const part = add(box, "span", token, i === context.at ? "token peak" : "token");
      part.style.backgroundColor = colour(activities[i]);
      part.title = `${activities[i]}`;
    });
  }
}

function drawWords(network) {
  const parent = element("words");
  parent.replaceChildren();
  for (const [title, words] of [["raises", network.raises], ["lowers", network.lowers]]) {
    if (!words.length) continue; // not known of these signals
    const line = add(parent, "p", `${title} `);
    for (const word of words) add(line, "span", word, "word");
  }
}

function drawFigures(network) {
  const parent = element("figures");
  parent.replaceChildren();
  for (const [figure, about] of Object.entries(FIGURES)) {
    const row = add(parent, "tr");
    add(row, "th", figure);
    add(row, "td", shown(figureOf(network, figure)));
    add(row, "td", about, "hint");
  }
}

function bars(id, title, names, values, others) {
  const traces = [{ type: "bar", x: names, y: values, name: "network", marker: { color: "#e67800" } }];
  if (others) traces.push(others);
  Plotly.react(id, traces, layout({
    height: 320, yaxis: { title: { text: title } }, xaxis: { type: "category", automargin: true }, showlegend: Boolean(others),
    barmode: "group",
  }), PLAIN);
}

function drawProfile(network) {
  const layers = Object.keys(network.layers);
  element("profile").hidden = layers.length < 2;
  if (layers.length < 2) return;
  bars("profile", "share of energy", layers.map((layer) => `L${layer}`), layers.map((layer) => network.layers[layer][1]));
}

// Points that a task loses, per cent that a perplexity gains: what is lost is above zero.
const asLoss = (measure, change) => 100 * (measure.startsWith("text/") ? Math.exp(change) - 1 : -change);

function drawEffect(network) {
  const effects = data.lesions && data.lesions[network.name];
  element("effect").hidden = !effects;
  if (!effects) return;
  const names = Object.keys(effects);
  const control = (name) => effects[name].control;
  const points = names.map((name) => asLoss(name, effects[name].change));
  const random = names.map((name) => (control(name) === null ? null : asLoss(name, control(name))));
  const bound = (name, key) => (effects[name][key] === null ? 0 : Math.abs(asLoss(name, effects[name][key]) - asLoss(name, control(name))));
  const worse = (name) => (name.startsWith("text/") ? "high" : "low"); // a task that loses has a lower score
  const better = (name) => (name.startsWith("text/") ? "low" : "high");
  const others = {
    type: "bar", x: names, y: random, name: "random neurons", marker: { color: "#8a8f98" },
    error_y: { type: "data", symmetric: false, array: names.map((n) => bound(n, worse(n))), arrayminus: names.map((n) => bound(n, better(n))) },
  };
  bars("effect", "lost without it", names, points, others);
}

function drawLesions() {
  if (!data.lesions) return;
  element("lesions-section").hidden = false;
  const lesions = Object.keys(data.lesions);
  const measures = [...new Set(lesions.flatMap((lesion) => Object.keys(data.lesions[lesion])))];
  const z = lesions.map((lesion) => measures.map((m) => (data.lesions[lesion][m] ? asLoss(m, data.lesions[lesion][m].change) : null)));
  const beyond = [];
  lesions.forEach((lesion, y) => measures.forEach((m, x) => {
    if (data.lesions[lesion][m] && data.lesions[lesion][m].beyond_chance) {
      beyond.push({ type: "rect", x0: x - 0.48, x1: x + 0.48, y0: y - 0.48, y1: y + 0.48, line: { width: 2, color: style.color } });
    }
  }));
  const most = Math.max(1, ...z.flat().filter((value) => value !== null).map(Math.abs));
  Plotly.react("lesions", [{
    type: "heatmap", z, x: measures, y: lesions, zmin: -most, zmax: most, colorscale: "RdBu", hovertemplate: "%{y}, %{x}: %{z:.1f}<extra></extra>",
  }], layout({
    height: Math.max(220, 140 + 22 * lesions.length), shapes: beyond, yaxis: { autorange: "reversed", type: "category", automargin: true },
    xaxis: { type: "category", automargin: true },
  }), PLAIN);
}

function drawNetwork(network) {
  drawProfile(network);
  drawEffect(network);
  connectivity.show(current);
}

let current = -1;
function choose(number, fromAddress) {
  current = Math.min(Math.max(number, 0), networks.length - 1);
  const network = networks[current];
  element("network-title").textContent = `Network ${network.name}`;
  drawFigures(network);
  drawWords(network);
  drawContexts(network);
  if (window.Plotly) drawNetwork(network);
  if (!fromAddress) history.replaceState(null, "", `#${network.name}`);
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return;
  const exact = networks.findIndex((network) => network.name.toLowerCase() === wanted);
  const found = exact >= 0 ? exact : networks.findIndex((network) =>
    [...network.raises, ...network.contexts.filter((c) => c.rank > 0).map((c) => c.tokens[c.at])]
      .some((token) => token.trim().toLowerCase() === wanted));
  if (found >= 0) choose(found);
  else element("explain").textContent = `No network is called ${text}, raises it, or is moved most by it.`;
}

function fromAddress() {
  const number = byName.get(decodeURIComponent(location.hash.slice(1)));
  choose(number === undefined ? 0 : number, true);
}

for (const figure of Object.keys(FIGURES)) add(element("figure"), "option", figure);
for (const network of networks) add(element("names"), "option").value = network.name;
element("about").textContent =
  `${data.model.architecture}${data.model.source ? ` (${data.model.source})` : ""}: ${networks.length} networks of ` +
  `${data.blocks.length} blocks, found in ${data.data.tokens.toLocaleString("en")} tokens; signals: ${data.settings.scorer.signals.join(", ")}.`;
element("figure").addEventListener("change", () => window.Plotly && drawOverview());
element("search").addEventListener("change", (event) => find(event.target.value));
element("before").addEventListener("click", () => choose(current - 1));
element("after").addEventListener("click", () => choose(current + 1));
document.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
  if (event.key === "ArrowRight") choose(current + 1);
  if (event.key === "ArrowLeft") choose(current - 1);
});
window.addEventListener("hashchange", fromAddress);
fromAddress();
performance.mark("text");
// The library for plots is long: what can be read is there before it is run.
requestAnimationFrame(() => setTimeout(drawPlots));

function drawPlots() {
  add(document.head, "script", element("plotly").textContent);
  drawOverview();
  element("overview").on("plotly_click", (event) => {
    const number = byName.get(event.points[0].text);
    if (number !== undefined) choose(number);
  });
  drawLesions();
  drawNetwork(networks[current]);
  document.body.dataset.ready = "true";
  performance.mark("ready");
  // The matrices of all networks are unpacked last.
  requestAnimationFrame(() => setTimeout(() => connectivity.open()));
}
