// What the reader touches.
function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, text })));
}
options($("group"), [...(G.length > 1 ? [["-1", "all categories"]] : []), ...G.map((one, g) => [String(g), one.name])]);
options($("f-group"), [["", "all"], ...G.map((one, g) => [String(g), one.name])]);
options($("f-error"), [
  ["", "all"],
  ...(isTest ? [["any", "errors"], ["false alarm", "false alarms"], ["miss", "misses"], ["none", "no error"]] : []),
  ["flips", "flips with the threshold"],
]);
if (facts.against) $("f-order").append(make("option", { value: "differs", text: `ranked most differently by ${facts.against}` }));
$("group").value = String(state.group);
if (!everyone.some((i) => R.label[i] >= 0)) $("f-label").parentElement.hidden = true;

const STEPS = 1000;
function drawControls() {
  const [low, high] = range();
  const value = currentValue();
  const turned = state.group < 0 && scale !== "score";
  const place = Math.round(((Math.min(high, Math.max(low, value)) - low) / (high - low)) * STEPS);
  $("slider").value = String(turned ? STEPS - place : place);
  $("threshold").value = Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "";
  $("slider-name").textContent = state.group >= 0 ? "Threshold: a score from which on an image is anomalous"
    : scale === "p" ? "Largest p-value of an anomalous image, the same in every category"
      : scale === "share" ? "False-alarm rate on the labelled normal images, the same in every category"
        : "Threshold, the same in every category";
  const from = state.group >= 0 ? `First threshold ${short(base[state.group])}: ${origin[state.group]}.`
    : `First thresholds: ${[...new Set(origin)].join("; ")}.`;
  const use = state.group >= 0 && Number.isFinite(value) ? ` To decide so elsewhere: --decision ${Number(value.toPrecision(6))}` : "";
  $("threshold-from").textContent = from + use;
}

function drawCounts() {
  const c = count(chosen());
  const line = (name, text, id) => make("tr", {}, make("th", { text: name }), make("td", { class: "n", id: `c-${id}`, text }));
  const lines = [line("called anomalous", `${c.flagged} of ${c.total} (${share(c.flagged, c.total)})`, "flagged")];
  if (hasTruth) {
    const [positives, negatives] = [c.tp + c.fn, c.fp + c.tn];
    const balanced = positives && negatives ? `${(50 * (c.tp / positives + c.tn / negatives)).toFixed(1)} %` : "–";
    lines.push(
      line("anomalous, called so (true positives)", String(c.tp), "tp"),
      line("anomalous, missed (false negatives)", String(c.fn), "fn"),
      line("normal, called anomalous (false positives)", String(c.fp), "fp"),
      line("normal, called so (true negatives)", String(c.tn), "tn"),
      line("false-positive rate", share(c.fp, negatives), "fpr"),
      line("recall", share(c.tp, positives), "recall"),
      line("precision", share(c.tp, c.tp + c.fp), "precision"),
      line("balanced accuracy", balanced, "balanced"),
      line("F1", c.tp + c.fp + c.fn ? `${((200 * c.tp) / (2 * c.tp + c.fp + c.fn)).toFixed(1)} %` : "–", "f1"),
    );
  }
  $("counts").replaceChildren(make("table", {}, make("tbody", {}, ...lines)));
  const flipping = chosen().filter(flips).sort((a, b) => Math.abs(margin(a)) - Math.abs(margin(b)));
  const text = flipping.length
    ? `${flipping.length} flip against the first threshold: ${c.toAnomalous} to anomalous, ${c.toNormal} to normal` : "No image flips against the first threshold.";
  $("flips").replaceChildren(make("h3", { text }), ...(flipping.length ? [strip(flipping)] : []));
}

function strip(list, most = 24) {
  return make("div", { class: "strip" }, ...list.slice(0, most).map((i) => tile(i, list)));
}

function drawCases() {
  const list = chosen();
  const by = (key) => (a, b) => key(a) - key(b);
  const of = (label) => list.filter((i) => R.label[i] === label);
  const near = list.slice().sort(by((i) => Math.abs(margin(i))));
  const parts = hasTruth ? [
    ["Hardest: anomalous images of the lowest scores", of(1).sort(by(margin))],
    ["Hardest: normal images of the highest scores", of(0).sort(by((i) => -margin(i)))],
    ["Borderline: nearest to the threshold", near],
    ["Clearest: anomalous images of the highest scores", of(1).sort(by((i) => -margin(i)))],
  ] : [
    ["Highest scores", list.slice().sort(by((i) => -R.score[i]))],
    ["Borderline: nearest to the threshold", near],
    ["Lowest scores", list.slice().sort(by((i) => R.score[i]))],
  ];
  const found = parts.filter(([, some]) => some.length).flatMap(([title, some]) => [make("h3", { text: title }), strip(some, 12)]);
  $("cases").replaceChildren(make("h2", { text: "Cases" }), ...found);
}

function drawSummary() {
  const figure = (value, name) => make("div", { class: "figure" }, make("b", { text: value }), make("span", { text: name }));
  const figures = facts.summary.map(([name, value]) => figure(value, name));
  $("summary").replaceChildren(...figures);
}

let late = 0;
function drawLater() {
  clearTimeout(late);
  late = setTimeout(() => {
    drawCases();
    filterImages();
  }, 120);
}
listeners.push(drawControls, drawHistogram, drawCounts, drawCurves, drawLater);

$("group").addEventListener("change", () => {
  state.group = Number($("group").value);
  state.all = null;
  changed();
});
$("slider").addEventListener("input", () => {
  const [low, high] = range();
  const turned = state.group < 0 && scale !== "score";
  const place = Number($("slider").value) / STEPS;
  setThreshold(turned ? high - place * (high - low) : low + place * (high - low));
});
$("threshold").addEventListener("change", () => {
  const value = Number($("threshold").value);
  if ($("threshold").value !== "" && Number.isFinite(value)) setThreshold(value);
});
$("reset").addEventListener("click", reset);
for (const id of ["f-group", "f-label", "f-decision", "f-error", "f-order", "f-maps"]) $(id).addEventListener("change", filterImages);
$("f-name").addEventListener("input", filterImages);

if (failed.length) {
  $("failures").hidden = false;
  $("failed").append(...failed.slice(0, 1000).map((i) => make("tr", {}, make("td", { text: R.path[i] }), make("td", { text: R.error[i] }))));
}
if (!everyone.length) for (const id of ["decision", "curves", "cases", "gallery"]) $(id).hidden = true;
else {
  drawControls();
  drawHistogram();
  drawCounts();
  drawCurves();
  drawCases();
  filterImages();
}
drawSummary();
document.documentElement.dataset.ready = "1";
